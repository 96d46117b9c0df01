"""What a method may have written for it before its contexts exist, and that the loop goes on with what it returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.runs import assert_bit_equal, small_config, small_run, weights
from visd.config import ConfigError
from visd.methods.base import Services
from visd.methods.grpo import GRPO
from visd.train.launch import run_stage
from visd.train.services import StepServices
from visd.types import PrivilegedContext, Rollout, RolloutGroup


def test_student_and_teacher_write_by_their_own_weights(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=sdpo", "rollout.batch_prompts=1")
    services = StepServices(run)
    video, text = run.prompts(run.sampler.batch(0))[0][1], services.chat("note", "Say left.")
    prompts = [services.teacher_view(video, PrivilegedContext(peers=("left",))), services.insert(text, " Now."), text]
    assert [len(p.frame_times) for p in prompts] == [1, 0, 0]
    assert "Correct solution:" in prompts[0].text and prompts[1].text.count(" Now.") == 1

    before = services.write(prompts, [1, 2, 3], 6)
    assert [len(r.token_ids) <= 6 for r in before] == [True] * 3
    assert services.write(prompts[2:], [3], 6)[0].token_ids == before[2].token_ids, "the batch has no say"
    with torch.no_grad():
        for number, shard in enumerate(run.backend.local_shards().values()):
            shard.add_(0.3 * torch.randn(shard.shape, generator=torch.Generator().manual_seed(number)))
    student = weights(run)
    by_teacher = services.write(prompts, [1, 2, 3], 6, "teacher")
    assert [r.token_ids for r in by_teacher] == [r.token_ids for r in before], "the average has not moved"
    assert_bit_equal(student, weights(run))
    assert [r.token_ids for r in services.write(prompts, [1, 2, 3], 6)] != [r.token_ids for r in before]
    assert services.write([], [], 6) == []


def test_seeds_depend_on_run_step_and_purpose(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    first = StepServices(run)
    run.step = 1
    second = StepServices(run)
    assert first.seed("a", 1) == first.seed("a", 1) and first.gather(3) == [3]
    assert len({first.seed("a", 1), first.seed("a", 2), first.seed("b", 1), second.seed("a", 1)}) == 4


@pytest.mark.parametrize("settings", [["method=grpo"], ["method=sdpo", "teacher.weights=trust_region"]])
def test_without_weights_of_its_own_no_teacher_writes(
    settings: list[str], small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings)
    with pytest.raises(ConfigError, match=r"teacher\.weights"):
        StepServices(run).write([], [], 4, "teacher")


def test_a_step_goes_on_with_the_groups_that_prepare_returns(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that has a fifth answer written for each prompt: it is trained on, counted and written down."""
    written: list[Rollout] = []

    def prepare(self: GRPO, groups: Sequence[RolloutGroup], services: Services) -> list[RolloutGroup]:
        texts = services.write([g.prompt for g in groups], [services.seed("fifth", g.sample.id) for g in groups], 5)
        written.extend(texts)
        return [
            replace(
                group,
                rollouts=(*group.rollouts, text),
                rewards=(*group.rewards, group.rewards[0]),
                reports=(),
                advantages=(*group.advantages, 1.0),
            )
            for group, text in zip(groups, texts, strict=True)
        ]

    monkeypatch.setattr(GRPO, "prepare", prepare)
    config = small_config(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo", "train.steps=1")
    assert run_stage(config) == 0
    (record,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert record["rollout/count"] == 10 and record["optim/grad_norm"] > 0 and len(written) == 2
