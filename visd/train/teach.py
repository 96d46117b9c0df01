"""Passes with other weights than the student's: the privileged teacher, and the reference of the KL term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visd.config import TeacherSection
from visd.objective.overlap import with_overlap
from visd.policy.batch import Row
from visd.policy.policy import Policy
from visd.teacher.external import ExternalTeacher
from visd.teacher.scorer import ScoreJob, score_full, score_mixed, score_rows
from visd.teacher.view import render, teacher_prompt
from visd.teacher.weights import TeacherWeights
from visd.train.batches import Item
from visd.train.plan import plan_rows
from visd.train.run import Run
from visd.train.sharing import confirm_teacher
from visd.types import DroppedSample, Prompt, RolloutGroup, ScoreNeeds, TokenScores

RowScores = dict[tuple[str, int], TokenScores]
"""Unpadded scores by (sample id, rollout index)."""


@dataclass(frozen=True)
class Target:
    """A rollout that the teacher scores."""

    item: Item
    text: str  # privileged text; an external teacher may have none


def items_of(run: Run, groups: Sequence[RolloutGroup]) -> list[Item]:
    """The rollouts that the update may learn from: those whose advantage, KL or extra terms give a gradient."""
    teaches = run.method.learns_without_advantage and run.method.active(run.step)
    everything = run.config.objective.kl_weight > 0 or teaches
    items = []
    for group, features in zip(groups, run.policy.encode([group.prompt for group in groups]), strict=True):
        items += [
            Item(group, i, features, run.policy.shown(group.sample.id, rollout))
            for i, rollout in enumerate(group.rollouts)
            if everything or group.advantages[i] != 0
        ]
    return items


def targets_of(run: Run, groups: Sequence[RolloutGroup]) -> list[Target]:
    """The rollouts that the teacher scores; without privileged text only another model has something to say."""
    section = run.config.teacher
    targets = []
    for item in items_of(run, groups):
        if run.judge is not None and item.group.reports and run.judge.removes_target(item.group.reports[item.index]):
            continue
        context = run.method.context(item.group, item.index)
        if context is None:
            continue
        text = render(context, section.context, section.max_feedback_chars, section.layout)
        if text or run.external is not None:
            targets.append(Target(item, text))
    return targets


def teacher_scores(run: Run, groups: Sequence[RolloutGroup], step: int) -> RowScores:
    """The teacher's scores of each target rollout; a rollout without privileged text is no target."""
    needs = run.method.needs(step)
    if needs is None or (run.teacher is None and run.external is None):
        return {}
    needs = with_overlap(needs, run.config.teacher.overlap_k)
    if needs.units is None:
        needs = replace(needs, entropy=True)  # costs little beside the logits, and is logged for every method
    targets = targets_of(run, groups)
    external: list[tuple[Target, Row]] | None = None
    if run.external is not None:
        with run.backend.together():
            external = external_rows(run, run.external, targets)
        run.drops.check_all(run.backend)
        targets = [target for target, _ in external]
    items = [target.item for target in targets]
    support = _student_support(run, items, needs) if needs.top_k and needs.support != "teacher" else None
    if run.external is not None and external is not None:
        return external_scores(run, run.external, items, [row for _, row in external], needs, support)
    assert run.teacher is not None
    rows = [target.item.row(teacher_prompt(run.processor, target.item.group.prompt, target.text)) for target in targets]
    return _scored(run, run.teacher, items, rows, needs, support)


def external_rows(run: Run, teacher: ExternalTeacher, targets: Sequence[Target]) -> list[tuple[Target, Row]]:
    """The targets after the external teacher's own prompts; one whose prompt cannot be made is counted and left out."""
    rows: list[tuple[Target, Row]] = []
    prompts: dict[str, Prompt] = {}
    for target in targets:
        sample = target.item.group.sample
        try:
            prompts[sample.id] = prompts.get(sample.id) or teacher.prompt(sample)
            rows.append((target, teacher.row(prompts[sample.id], target.text, target.item.rollout)))
        except DroppedSample as error:
            run.drops.add(error)
    return rows


def external_scores(
    run: Run,
    teacher: ExternalTeacher,
    items: Sequence[Item],
    rows: Sequence[Row],
    needs: ScoreNeeds,
    support: Sequence[Tensor] | None,
) -> RowScores:
    """The external teacher's pass. Every rank holds it whole, so that nothing is gathered; an error ends all ranks."""

    def fitted(index: int, scores: TokenScores) -> TokenScores:
        return teacher.fitted(scores, items[index].rollout, rows[index], needs)

    with run.backend.together():
        confirm_teacher(run, teacher.policy, rows)
        scores = score_rows(teacher.policy, _job(run, teacher.policy, items, rows, needs, support), fitted)
    teacher.policy.forget_features()
    return {item.key: score for item, score in zip(items, scores, strict=True)}


def _student_support(run: Run, items: Sequence[Item], needs: ScoreNeeds) -> list[Tensor]:
    """The student's own most probable ids at each token, [T_i, K] a rollout: one more forward, without gradients.

    The weights do not change between this pass and the update, so these are the top K of the update's forward.
    """
    live = TeacherWeights(TeacherSection(weights="live"))
    asked = ScoreNeeds(top_k=needs.top_k)
    found = _scored(run, live, items, [item.row() for item in items], asked)
    support = [found[item.key].support_ids for item in items]
    return [ids for ids in support if ids is not None]


def reference_scores(run: Run, groups: Sequence[RolloutGroup]) -> RowScores:
    """The initial policy's log-probabilities, for the KL term."""
    if run.reference is None:
        return {}
    items = items_of(run, groups)
    return _scored(run, run.reference, items, [item.row() for item in items], ScoreNeeds(sampled=True))


def _job(
    run: Run,
    policy: Policy,
    items: Sequence[Item],
    rows: Sequence[Row],
    needs: ScoreNeeds,
    support: Sequence[Tensor] | None,
    passes: int = 1,
) -> ScoreJob:
    plan = plan_rows(
        rows,
        run.config.train.micro_batch_tokens,
        lambda i: f"the teacher's view of rollout {items[i].index} of sample {items[i].group.sample.id!r}",
        policy.shares_prefixes,
    )
    run.meter.scored("teacher", policy, rows, passes)
    return ScoreJob(rows, plan.batches, run.config.rollout.temperature, needs, support)


def old_scores(run: Run, groups: Sequence[RolloutGroup]) -> RowScores:
    """The policy's own log-probabilities before the step's first update, where ratios are taken to these."""
    if run.config.objective.old_logp != "start":
        return {}
    items = items_of(run, groups)
    live = TeacherWeights(TeacherSection(weights="live"))
    return _scored(run, live, items, [item.row() for item in items], ScoreNeeds(sampled=True))


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
    mixed = weights.section.weights == "trust_region"
    job = _job(run, run.policy, items, rows, needs, support, passes=2 if mixed else 1)
    if mixed:
        with weights.applied(run.backend), run.backend.whole_weights():
            initial = score_full(run.policy, job)
        with run.backend.whole_weights():
            scores = score_mixed(run.policy, job, initial, weights.section.rate)
    else:
        with weights.applied(run.backend), run.backend.whole_weights():
            scores = score_rows(run.policy, job)
    return {item.key: score for item, score in zip(items, scores, strict=True)}
