"""Passes with other weights than the student's: the privileged teacher, and the reference of the KL term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from visd.config import TeacherSection
from visd.policy.batch import Row
from visd.teacher.scorer import ScoreJob, score_full, score_mixed, score_rows
from visd.teacher.view import render, teacher_prompt
from visd.teacher.weights import TeacherWeights
from visd.train.batches import Item
from visd.train.plan import micro_batches
from visd.train.run import Run
from visd.types import RolloutGroup, ScoreNeeds, TokenScores

RowScores = dict[tuple[str, int], TokenScores]
"""Unpadded scores by (sample id, rollout index)."""


def items_of(run: Run, groups: Sequence[RolloutGroup]) -> list[Item]:
    """The rollouts that the update may learn from: those whose advantage, KL or extra terms give a gradient."""
    everything = run.config.objective.kl_weight > 0 or run.method.learns_without_advantage
    items = []
    for group, features in zip(groups, run.policy.encode([group.prompt for group in groups]), strict=True):
        items += [
            Item(group, i, features) for i in range(len(group.rollouts)) if everything or group.advantages[i] != 0
        ]
    return items


def teacher_scores(run: Run, groups: Sequence[RolloutGroup], step: int) -> RowScores:
    """The teacher's scores of each target rollout; a rollout without privileged text is no target."""
    needs = run.method.needs(step)
    if needs is None or run.teacher is None:
        return {}
    section = run.config.teacher
    items, rows = [], []
    for item in items_of(run, groups):
        if run.judge is not None and item.group.reports and run.judge.removes_target(item.group.reports[item.index]):
            continue
        context = run.method.context(item.group, item.index)
        if context is None:
            continue
        text = render(context, section.context, section.max_feedback_chars, section.layout)
        if text:
            items.append(item)
            rows.append(item.row(teacher_prompt(run.processor, item.group.prompt, text)))
    support = _student_support(run, items, needs) if needs.top_k and needs.support == "student" else None
    return _scored(run, run.teacher, items, rows, needs, support)


def _student_support(run: Run, items: Sequence[Item], needs: ScoreNeeds) -> list[Tensor]:
    """The student's own most probable ids at each token, [T_i, K] a rollout: one more forward, without gradients.

    The weights do not change between this pass and the update, so these are the top K of the update's forward.
    """
    live = TeacherWeights(TeacherSection(weights="live"))
    found = _scored(run, live, items, [item.row() for item in items], replace(needs, entropy=False, full=False))
    support = [found[item.key].support_ids for item in items]
    return [ids for ids in support if ids is not None]


def reference_scores(run: Run, groups: Sequence[RolloutGroup]) -> RowScores:
    """The initial policy's log-probabilities, for the KL term."""
    if run.reference is None:
        return {}
    items = items_of(run, groups)
    return _scored(run, run.reference, items, [item.row() for item in items], ScoreNeeds(sampled=True))


def _scored(
    run: Run,
    weights: TeacherWeights,
    items: Sequence[Item],
    rows: Sequence[Row],
    needs: ScoreNeeds,
    support: Sequence[Tensor] | None = None,
) -> RowScores:
    most = run.backend.all_reduce(torch.tensor(float(len(rows))), "max")
    if most.item() == 0:
        return {}  # on no rank is there anything to score: the weights need not even be swapped
    plan = micro_batches(
        [len(row) for row in rows],
        run.config.train.micro_batch_tokens,
        lambda i: f"the teacher's view of rollout {items[i].index} of sample {items[i].group.sample.id!r}",
    )
    job = ScoreJob(rows, plan, run.config.rollout.temperature, needs, support)
    if weights.section.weights == "trust_region":
        with weights.applied(run.backend), run.backend.whole_weights():
            initial = score_full(run.policy, job)
        with run.backend.whole_weights():
            scores = score_mixed(run.policy, job, initial, weights.section.rate)
    else:
        with weights.applied(run.backend), run.backend.whole_weights():
            scores = score_rows(run.policy, job)
    return {item.key: score for item, score in zip(items, scores, strict=True)}
