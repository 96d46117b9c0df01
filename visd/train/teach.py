"""Passes with other weights than the student's: the privileged teacher, and the reference of the KL term."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visd.policy.batch import Row
from visd.teacher.scorer import score_rows
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
        text = render(context, section.context, section.max_feedback_chars) if context is not None else ""
        if text:
            items.append(item)
            rows.append(item.row(teacher_prompt(run.processor, item.group.prompt, text)))
    return _scored(run, run.teacher, items, rows, needs)


def reference_scores(run: Run, groups: Sequence[RolloutGroup]) -> RowScores:
    """The initial policy's log-probabilities, for the KL term."""
    if run.reference is None:
        return {}
    items = items_of(run, groups)
    return _scored(run, run.reference, items, [item.row() for item in items], ScoreNeeds(sampled=True))


def _scored(
    run: Run, weights: TeacherWeights, items: Sequence[Item], rows: Sequence[Row], needs: ScoreNeeds
) -> RowScores:
    most = run.backend.all_reduce(torch.tensor(float(len(rows))), "max")
    if most.item() == 0:
        return {}  # on no rank is there anything to score: the weights need not even be swapped
    plan = micro_batches(
        [len(row) for row in rows],
        run.config.train.micro_batch_tokens,
        lambda i: f"the teacher's view of rollout {items[i].index} of sample {items[i].group.sample.id!r}",
    )
    with weights.applied(run.backend), run.backend.whole_weights():
        scores = score_rows(run.policy, rows, plan, run.config.rollout.temperature, needs)
    return {item.key: score for item, score in zip(items, scores, strict=True)}
