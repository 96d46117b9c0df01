"""Methods with terms of their own through a real step: splits change nothing, and the trust-region teacher is the mixture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.runs import assert_same_gradients, capture_gradients, groups_with_advantages, small_run
from visd.train.batches import token_batch
from visd.train.run import Run
from visd.train.teach import items_of, reference_scores, teacher_scores
from visd.train.update import count, update_policy
from visd.types import Rewards, RolloutGroup, ScoreNeeds


def groups_with_successes(run: Run) -> list[RolloutGroup]:
    """Made-up advantages, and every second rollout right."""
    rewards = [Rewards(float(i % 2), {"accuracy": float(i % 2)}, bool(i % 2), float(i % 2)) for i in range(4)]
    return [replace(group, rewards=tuple(rewards)) for group in groups_with_advantages(run)]


def with_a_tool(group: RolloutGroup) -> RolloutGroup:
    """As if a tool had written the third and fourth token of each rollout that goes on after them."""
    rollouts = []
    for rollout in group.rollouts:
        count = len(rollout.token_ids)
        own = tuple(i not in (2, 3) for i in range(count)) if count > 4 else ()
        logp = tuple(value if i not in (2, 3) or not own else 0.0 for i, value in enumerate(rollout.logp))
        rollouts.append(replace(rollout, own=own, logp=logp))
    return replace(group, rollouts=tuple(rollouts))


def test_tokens_of_tools_are_neither_trained_on_nor_counted(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=sod_self", "method.opd_weight=0")
    groups = [with_a_tool(group) for group in groups_with_successes(run)]
    whole = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    written = sum(rollout.length for group in groups for rollout in group.rollouts)
    assert written < whole and count(run, groups).tokens == written
    items = items_of(run, groups)
    batch = token_batch(items, [False] * len(items), run.backend.device)
    assert int(batch.mask.sum()) == written
    grads = capture_gradients(run)
    traces = update_policy(run, groups, {}, {}, 0).traces
    advantages = {(g.sample.id, r.seed): (g.advantages[i], r) for g in groups for i, r in enumerate(g.rollouts)}
    for key, trace in traces.items():
        advantage, rollout = advantages[key]
        own = rollout.own or (True,) * len(rollout.token_ids)
        assert trace.advantage == pytest.approx([advantage if mine else 0.0 for mine in own], abs=1e-5)
    expected = capture_gradients(run)
    run.policy.set_training(True)
    student = run.policy.score([item.row() for item in items], temperature=1.0, needs=ScoreNeeds())
    loss = -(student.logp * batch.advantages[:, None] * batch.mask).sum() / written
    run.backend.backward(loss, last=True)
    run.backend.step(0.0)
    assert_same_gradients(grads, expected, relative=1e-5)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("opsd", []),
        ("sdpo", ["method.grpo_share=0.3"]),
        ("srpo", []),
        ("rlrt", []),
        ("antisd", ["method.gate=false"]),
        ("dasd", ["method.beta=1"]),
        ("resd", []),
        ("sod_self", []),
    ],
)
def test_any_split_into_micro_batches_gives_the_same_gradients(
    method: str, settings: list[str], small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    found = []
    for budget in (100_000, 600):
        run = small_run(
            small_world, tiny_qwen2_5_vl, tmp_path, f"method={method}", f"train.micro_batch_tokens={budget}",
            "data.train=[train.jsonl,text_train.jsonl]", *settings,
        )  # fmt: skip
        groups = groups_with_successes(run)
        if method == "sod_self":
            groups = [with_a_tool(group) for group in groups]
        grads = capture_gradients(run)
        update = update_policy(run, groups, teacher_scores(run, groups, 0), reference_scores(run, groups), 0)
        metrics = update.metrics.values()
        assert metrics["weight/teacher_share"] > 0
        found.append((grads, metrics["loss"]))
    assert_same_gradients(found[0][0], found[1][0], relative=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)


def test_the_trust_region_teacher_lies_between_the_initial_and_the_current_policy(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """At rate 0 it is the frozen teacher, at rate 1 the live one, and between them neither."""
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=srpo", "teacher.weights=trust_region")
    assert run.teacher is not None
    groups = groups_with_successes(run)
    with torch.no_grad():
        for number, shard in enumerate(run.backend.local_shards().values()):
            shard.add_(0.02 * torch.randn(shard.shape, generator=torch.Generator().manual_seed(number)))
    section = run.teacher.section

    def scored(weights: str, rate: float) -> list[torch.Tensor]:
        assert run.teacher is not None
        run.teacher.section = replace(section, weights=weights, rate=rate)
        scores = teacher_scores(run, groups, 0)
        assert len(scores) == 4, "the wrong rollouts are routed to the teacher"
        return [t for s in scores.values() for t in (s.logp, s.entropy, s.support_logp) if t is not None]

    frozen, live, between = scored("frozen", 0.0), scored("live", 0.0), scored("trust_region", 0.5)
    for mixed, pure in ((scored("trust_region", 0.0), frozen), (scored("trust_region", 1.0), live)):
        for a, b in zip(mixed, pure, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    gaps = [
        min(float((m - a).abs().max()), float((m - b).abs().max()))
        for m, a, b in zip(between, frozen, live, strict=True)
    ]
    assert min(gaps) > 1e-3


def test_both_models_are_read_at_the_students_own_top_k(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=sdpo", "method.top_k=5")
    groups = groups_with_successes(run)
    student = teacher_scores(run, groups, 0)
    run.method.support = "teacher"  # type: ignore[attr-defined]
    teacher = teacher_scores(run, groups, 0)
    assert student.keys() == teacher.keys() and student
    mass = [
        [float(s.support_logp.exp().sum()) for s in kind.values() if s.support_logp is not None]
        for kind in (student, teacher)
    ]
    assert sum(mass[0]) < sum(mass[1]), "no other ids hold more of the teacher's mass than its own top K"
