"""Whole runs with `rollout.max_staleness=1`: which weights sampled what, and resume with answers under way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_resume import assert_same_run, config, records
from tests.runs import small_run
from tests.unit.test_ahead import made_up_score
from visd.train import loop
from visd.train.ahead import read_answers
from visd.train.launch import run_stage

STALE = ("rollout.max_staleness=1", "objective.old_logp=engine", "rollout.max_new_tokens=24")


def dumped(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """The rollouts that step `step` (from 0 on) learnt from."""
    path = sorted((run_dir / "rollouts").glob("*.jsonl"))[step]
    return [json.loads(line) for line in path.read_text().splitlines()]


def sampled_by(model: Path, world: Path, out: Path, step: int) -> dict[tuple[str, int], list[int]]:
    """What the weights of a folder answer at a step: token ids by sample and seed."""
    settings = ("data.train=[text_train.jsonl,train.jsonl]", "rollout.max_new_tokens=24", "method=grpo")
    run = small_run(world, model, out, *settings)
    groups = loop.sample_rollouts(run, run.step_prompts(step), step)
    return {(group.sample.id, r.seed): list(r.token_ids) for group in groups for r in group.rollouts}


def test_answers_are_of_the_weights_before_the_last_update(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the first checkpoint give what the third step learnt from; those of the second would not."""
    monkeypatch.setattr(loop, "score", made_up_score)
    ahead, off = tmp_path / "ahead", tmp_path / "off"
    large = (
        "method=grpo",
        "optim.lr=1e-2",
        "optim.schedule=constant",
        "train.stop_after=3",
        "rollout.max_mismatch=1e-3",
    )
    run_stage(config(small_world, tiny_qwen2_5_vl, ahead, *STALE, *large, "checkpoint.export=all"))
    third = {(record["sample_id"], record["seed"]): record["token_ids"] for record in dumped(ahead, 2)}
    by_version = [
        sampled_by(ahead / "checkpoints" / f"step_{version:06d}" / "model", small_world, tmp_path / "again", 2)
        for version in (1, 2)
    ]
    assert third == by_version[0] != by_version[1]
    assert [{r["policy_version"] for r in dumped(ahead, step)} for step in range(3)] == [{0}, {0}, {1}]
    steps = records(ahead)
    assert [step["rollout/staleness"] for step in steps] == [0, 1, 1]
    # Compared at the same weights, engine and trainer agree as ever; the ratio has what the update changed.
    assert all(step["engine/logp_diff_max"] < 1e-3 for step in steps)
    assert all(step["stale/logp_diff_mean"] > 0.05 and step["policy/ratio_max"] > 1.1 for step in steps[1:])
    # The tower runs once a prompt, whose features stay from sampling to learning.
    videos = {json.loads(line)["id"] for line in (small_world / "train.jsonl").read_text().splitlines()}
    seen = [{record["sample_id"] for record in dumped(ahead, step)} for step in range(3)]
    seen.append(set(read_answers(ahead / "checkpoints" / "step_000003" / "ahead")))
    last = json.loads((ahead / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["media/tower_calls"] == sum(len(ids & videos) for ids in seen) > 0

    # Off, nothing of this is there; and the first two steps of both have the same prompts, seeds and, in the first, weights.
    run_stage(
        config(small_world, tiny_qwen2_5_vl, off, *STALE, *large, "rollout.max_staleness=0", "train.stop_after=2")
    )
    assert dumped(off, 0) == dumped(ahead, 0) and {r["policy_version"] for r in dumped(off, 1)} == {1}
    assert not any(name.startswith("stale/") or name == "rollout/staleness" for step in records(off) for name in step)
    assert not list(off.glob("checkpoints/*/ahead"))


def test_two_and_two_steps_equal_four_with_answers_under_way(
    small_world: Path, warm_model: Path, tmp_path: Path
) -> None:
    settings = (*STALE, "optim.lr=1e-3")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_stage(config(small_world, warm_model, straight, *settings))
    for _ in range(2):
        run_stage(config(small_world, warm_model, resumed, *settings, "train.stop_after=2"))
    assert_same_run(straight, resumed)
    assert [step["rollout/staleness"] for step in records(resumed)] == [0, 1, 1, 1]
    assert records(resumed)[2]["stale/logp_diff_mean"] > 0
