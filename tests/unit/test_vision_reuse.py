"""Features of a frozen tower are kept for a step and no longer: a changed weight of it changes what is sampled next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import visd.train.loop as loop
import visd.train.run as run_module
from tests.runs import small_config, small_run
from visd.policy.vision import vision_modules
from visd.train.launch import run_stage
from visd.train.loop import sample_rollouts
from visd.train.run import Run
from visd.types import RolloutGroup

Sampled = list[tuple[tuple[int, ...], tuple[float, ...]]]


def sampled(groups: list[RolloutGroup]) -> Sampled:
    return [(rollout.token_ids, rollout.logp) for group in groups for rollout in group.rollouts]


def change_one_weight(run: Run, by: float) -> None:
    """One number of the last layer of the vision modules."""
    policy = run.policy
    modules = policy.tower if policy.tower is not None else vision_modules(policy.model.hf, policy.family)
    weight = list(modules[-1].parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] += by


@pytest.mark.parametrize("freeze", ["[vision]", "[]"])
@pytest.mark.parametrize("model", ["tiny_qwen2_5_vl", "tiny_qwen3_vl"])
def test_one_vision_weight_changes_every_rollout(
    model: str, freeze: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = ("data.train=[train.jsonl]", "rollout.max_new_tokens=6", f"model.freeze={freeze}")
    run = small_run(small_world, request.getfixturevalue(model), tmp_path, *settings)
    pairs = run.prompts(run.sampler.batch(0))
    found = []
    for by in (0.0, 0.0, 8.0, -8.0):
        change_one_weight(run, by)
        found.append(sampled(sample_rollouts(run, pairs, 0)))
        run.policy.forget_features()  # as the loop does after each step
    assert found[0] == found[1] == found[3]
    assert all(logp != was for (_, logp), (_, was) in zip(found[2], found[0], strict=True))
    assert any(ids != was for (ids, _), (was, _) in zip(found[2], found[0], strict=True))


def test_the_next_step_notices_though_its_prompt_is_the_same(
    small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = run_module.load_samples
    monkeypatch.setattr(run_module, "load_samples", lambda config, split: read(config, split)[:1])
    seen: dict[str, list[Sampled]] = {"plain": [], "changed": []}
    for name, of_run in seen.items():

        def watched(run: Run, pairs: object, step: int, judge: object = None) -> list[RolloutGroup]:
            if name == "changed" and step == 1:  # noqa: B023
                change_one_weight(run, 8.0)
            groups = sample_rollouts(run, pairs, step, judge)  # type: ignore[arg-type]
            of_run.append(sampled(groups))  # noqa: B023
            return groups

        monkeypatch.setattr(loop, "sample_rollouts", watched)
        settings = ("data.train=[train.jsonl]", "train.prompts_per_step=1", "rollout.max_new_tokens=6", "judge=none",
                    "method=grpo", "checkpoint.export=never", "checkpoint.every=0", "data.validation=[]")  # fmt: skip
        assert run_stage(small_config(small_world, tiny_qwen3_vl, tmp_path / name, *settings)) == 0
    plain, changed = seen["plain"], seen["changed"]
    assert plain[0] == changed[0]
    assert all(logp != was for (_, logp), (_, was) in zip(changed[1], plain[1], strict=True))
