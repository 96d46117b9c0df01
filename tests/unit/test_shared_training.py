"""Training with shared prefixes against training without: gradients of a step, losses of twenty, and the check before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.runs import (
    assert_same_gradients,
    capture_gradients,
    groups_with_advantages,
    small_config,
    small_run,
    weights,
)
from visd.config import ConfigError
from visd.policy import attention
from visd.policy import policy as policy_module
from visd.policy.batch import ForwardInputs, Row
from visd.train.launch import summary
from visd.train.run import Run
from visd.train.sharing import confirm, score_gap
from visd.train.teach import reference_scores, teacher_scores
from visd.train.update import Update, update_policy
from visd.types import Rewards, RolloutGroup, VisdError


def prepared(run: Run, step: int = 0) -> list[RolloutGroup]:
    rewards = tuple(Rewards(float(i % 2), {"accuracy": float(i % 2)}, bool(i % 2), float(i % 2)) for i in range(4))
    return [replace(group, rewards=rewards) for group in groups_with_advantages(run, step)]


def step(run: Run, groups: list[RolloutGroup], number: int = 0) -> Update:
    run.policy.forget_features()
    teacher, reference = teacher_scores(run, groups, number), reference_scores(run, groups)
    return update_policy(run, groups, teacher, reference, number)


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (["method=visd"], "tiny_qwen2_5_vl"),
        (["method=sdpo", "method.top_k=5"], "tiny_qwen3_vl"),
        (["method=opsd"], "tiny_qwen2_5_vl"),
    ],
    ids=["visd: teacher's top K", "sdpo: student's top K", "opsd: whole distributions"],
)
def test_a_step_has_the_same_gradients(
    method: list[str], family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A step with several groups in one sequence, text beside video."""
    model, found, groups = request.getfixturevalue(family), [], []
    for setting in ("false", "true"):
        run = small_run(
            small_world, model, tmp_path, *method, f"train.shared_prefix={setting}",
            "data.train=[train.jsonl,text_train.jsonl]",
        )  # fmt: skip
        groups = groups or prepared(run)
        grads = capture_gradients(run)
        metrics = step(run, groups).metrics.values()
        found.append((grads, metrics))
    (plain, before), (shared, after) = found
    assert_same_gradients(plain, shared, relative=1e-5)
    assert after["loss"] == pytest.approx(before["loss"], abs=1e-5)
    assert after["update/tokens"] < 0.5 * before["update/tokens"] and after["update/repeated_tokens"] == 0


def test_a_group_that_does_not_fit_is_divided_exactly(small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path) -> None:
    found = []
    run = small_run(small_world, tiny_qwen3_vl, tmp_path, "method=grpo", "rollout.max_new_tokens=40")
    groups = prepared(run)
    grads = capture_gradients(run)
    tokens = [len(g.prompt) + sum(len(r.token_ids) for r in g.rollouts) for g in groups]
    for budget in (sum(tokens), max(tokens) - 1):
        run.config.train.micro_batch_tokens = budget
        metrics = step(run, groups).metrics.values()
        found.append((dict(grads), metrics))
        grads.clear()
    (whole, before), (divided, after) = found
    assert_same_gradients(whole, divided, relative=1e-5)
    assert before["update/tokens"] == sum(tokens) and before["update/repeated_tokens"] == 0
    assert after["update/tokens"] == sum(tokens) + after["update/repeated_tokens"]
    assert after["update/repeated_tokens"] >= min(len(g.prompt) for g in groups)


def test_twenty_steps_have_the_same_losses(small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path) -> None:
    """On the same rollouts; the loss moves with the weights through the teacher's weights and the KL term."""
    runs = [
        small_run(
            small_world, tiny_qwen3_vl, tmp_path, "method=visd", "objective.kl_weight=0.5", "optim.lr=1e-3",
            "train.steps=20", "train.prompts_per_step=1", "rollout.max_new_tokens=6", "rollout.max_mismatch=0",
            f"train.shared_prefix={setting}",
        )
        for setting in ("false", "auto")
    ]  # fmt: skip
    before = weights(runs[0])
    groups = prepared(runs[0])
    losses: list[list[float]] = [[], []]
    for number in range(20):
        for run, own in zip(runs, losses, strict=True):
            update = step(run, groups, number)
            own.append(update.metrics.values()["loss"])
            assert run.teacher is not None
            run.teacher.update(run.backend, number + 1)
    for plain, shared in zip(*losses, strict=True):
        assert shared == pytest.approx(plain, abs=1e-5)
    assert max(losses[0]) - min(losses[0]) > 1e-3, "nothing was learned that could differ"
    moved = sum(float((w - before[n]).norm()) for n, w in weights(runs[0]).items())
    other = weights(runs[1])
    assert sum(float((w - other[n]).norm()) for n, w in weights(runs[0]).items()) < 1e-3 * moved


def test_the_first_use_is_compared_and_a_difference_stops_the_run(
    small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(small_world, tiny_qwen3_vl, tmp_path, "method=grpo")
    assert run.policy.shares_prefixes
    groups = prepared(run)
    confirm(run, groups)
    assert run.policy.sharing_confirmed
    rows = [Row(groups[0].prompt, r.token_ids, run.policy.encode([groups[0].prompt])[0]) for r in groups[0].rollouts]
    assert score_gap(run.policy, rows, 1.0, 10_000) < 1e-6
    exact = attention._join
    monkeypatch.setattr(attention, "_join", lambda output, lse, other, sums: exact(output, lse, other, sums + 0.5))
    confirm(run, groups)  # it was confirmed: no second comparison
    run.policy.sharing_confirmed = False
    with pytest.raises(VisdError, match=rf"(?s)disagree.*{groups[0].sample.id}.*shared_prefix=false"):
        confirm(run, groups)
    run.policy.shares_prefixes = False
    confirm(run, groups)


def test_a_kernel_with_wrong_gradients_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert attention.kernel_gap(cpu, torch.float32) < 1e-5
    assert attention.kernel_gap(cpu, torch.bfloat16) < 2e-2
    exact = attention.summed
    monkeypatch.setattr(attention, "summed", lambda grad, key: exact(grad, key) * 0.9)
    assert attention.kernel_gap(cpu, torch.bfloat16) > 5e-2


def test_the_setting_decides_and_what_cannot_share_is_counted(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    eager, never, insist = "model.attention=eager", "train.shared_prefix=false", "train.shared_prefix=true"
    cases: list[tuple[list[str], bool]] = [([never], False), (["stage=sft"], False), ([insist], True), ([], True)]
    for settings, shared in (*cases, ([eager], False)):
        caplog.clear()
        run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo", *settings)
        assert run.policy.shares_prefixes == shared, settings
        assert summary(run, 0.0)["shared_prefix"] == shared
        assert bool(summary(run, 0.0)["unshared"]) == (settings == [eager])
        said = [line.getMessage() for line in caplog.records if "train.shared_prefix" in line.getMessage()]
        assert len(said) == (shared or settings == [eager])
        assert all(("once in" in line and "sdpa, in torch.float32 on cpu" in line) == shared for line in said)
    assert "it needs model.attention=sdpa, not eager" in caplog.text
    for settings, why in (([eager], "needs model.attention=sdpa, not eager"), (["stage=sft"], "one answer a prompt")):
        with pytest.raises(ConfigError, match=rf"train\.shared_prefix: true, but .*{why}"):
            small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo", insist, *settings)
    groups = prepared(run)
    confirm(run, groups)
    assert step(run, groups).metrics.values()["update/unshared_rollouts"] == 8
    assert "no kernel for torch.float32" in attention.no_kernel(torch.device("cuda"), torch.float32)


@pytest.mark.parametrize("value", ["always", "never", "1"])
def test_another_value_is_refused(value: str, small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.shared_prefix: .*(is not one of auto, true, false|type 'int')"):
        small_config(small_world, tmp_path, tmp_path, f"train.shared_prefix={value}")


def test_the_comparison_needs_no_larger_micro_batches(
    small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(small_world, tiny_qwen3_vl, tmp_path, "method=grpo")
    groups = prepared(run)
    longest = max(len(g.prompt) + len(r.token_ids) for g in groups for r in g.rollouts)
    run.config.train.micro_batch_tokens = longest
    seen: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[[list[Row]], ForwardInputs]:
        exact = getattr(policy_module, name)

        def build(rows: list[Row]) -> ForwardInputs:
            inputs: ForwardInputs = exact(rows)
            seen.append((name, inputs.input_ids.numel()))
            return inputs

        return build

    for name in ("build_inputs", "build_shared_inputs"):
        monkeypatch.setattr(policy_module, name, noting(name))
    confirm(run, groups)
    assert {name for name, _ in seen} == {"build_inputs", "build_shared_inputs"}
    assert max(tokens for _, tokens in seen) <= longest
    assert run.policy.sharing_confirmed
    run.policy.sharing_confirmed = False
    confirm(run, [])
    assert not run.policy.sharing_confirmed, "nothing was compared"
