"""Step data to named metrics. Pure functions; the step's value comes from `accumulate.reduce` over ranks.

Names: `reward/`, `accuracy/<family>`, `advantage/`, `group/`, `rollout/`, `leak/`, `teacher/`, `judge/`, `gap/` (D_t = log
teacher - log student), `overlap/` (their most probable tokens, `objective/overlap.py`), `weight/` (per-token weight), `policy/`, `engine/`, `stale/` (answers against the weights that learn from them), `update/` (tokens that went through the model),
`drops/<reason>`, `prompts/reduced_<rule>`, `prompts/key_frames`, `time/<phase>`, `meter/` (phases against their floors, `train/meter.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from visd.observe.accumulate import Metrics, Quantiles, Std
from visd.observe.diagnostics import deliberation_markers, mentions_privileged
from visd.seeding import generator
from visd.types import (
    DIMENSIONS,
    JudgeReport,
    Rewards,
    Rollout,
    RolloutGroup,
    Sample,
    TokenBatch,
    TokenCredit,
    TokenScores,
)

if TYPE_CHECKING:
    from torch import Tensor


def group_metrics(groups: Sequence[RolloutGroup]) -> Metrics:
    """All that is known of rollouts before any is scored by the policy; what is not the policy's is counted apart."""
    metrics = Metrics()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for source, name in (("teacher", "teacher/tokens_written"), ("data", "data/answer_tokens")):
        if lengths := [rollout.length for rollout in rollouts if rollout.source == source]:
            metrics.sum(name, *lengths)
    groups = [_of_policy(group) for group in groups]
    for group in groups:
        _rewards(metrics, group.sample.family, group.rewards)
        _reports(metrics, group.reports, group.rewards)
        if group.advantages:
            _advantages(metrics, group)
    _rollouts(metrics, [rollout for group in groups for rollout in group.rollouts])
    return metrics


def _of_policy(group: RolloutGroup) -> RolloutGroup:
    """The group with the policy's own answers alone."""
    own = [i for i, rollout in enumerate(group.rollouts) if rollout.source == "policy"]
    if len(own) == len(group.rollouts):
        return group

    def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[i] for i in own) if values else ()

    return replace(
        group,
        rollouts=pick(group.rollouts),
        rewards=pick(group.rewards),
        reports=pick(group.reports),
        advantages=pick(group.advantages),
    )


def _rewards(metrics: Metrics, family: str, rewards: Sequence[Rewards]) -> None:
    metrics.mean("reward/total", (reward.total for reward in rewards))
    metrics.mean("reward/accuracy", (reward.accuracy for reward in rewards))
    metrics.mean("reward/correct", (reward.correct for reward in rewards))
    metrics.mean(f"accuracy/{family}", (reward.accuracy for reward in rewards))
    for name in sorted({name for reward in rewards for name in reward.parts} - {"accuracy"}):
        metrics.mean(f"reward/{name}", _known(reward.parts.get(name) for reward in rewards))


def _reports(metrics: Metrics, reports: Sequence[JudgeReport], rewards: Sequence[Rewards]) -> None:
    if not reports:
        return
    for dimension in DIMENSIONS:
        metrics.mean(f"judge/{dimension}", _known(r.score(dimension) for r in reports if r.usable))
    metrics.mean("judge/usable", (report.usable for report in reports))
    compared = (report.contradicts(of) for report, of in zip(reports, rewards, strict=False))
    metrics.mean("judge/disagreement", _known(compared))
    for status, count in Counter(report.status for report in reports).items():
        metrics.sum(f"judge/status_{status}", count)


def _advantages(metrics: Metrics, group: RolloutGroup) -> None:
    metrics.mean("advantage/mean", group.advantages)
    metrics.mean("advantage/abs_mean", map(abs, group.advantages))
    metrics.add("advantage/std", Std.of(group.advantages))
    metrics.max("advantage/abs_max", *map(abs, group.advantages))
    metrics.mean("group/no_variance_share", [all(advantage == 0 for advantage in group.advantages)])
    correct = [reward.correct for reward in group.rewards]
    metrics.mean("group/all_right_share", [all(correct)])
    metrics.mean("group/all_wrong_share", [not any(correct)])
    metrics.mean("group/pass_at_n", [any(correct)])


def _rollouts(metrics: Metrics, rollouts: Sequence[Rollout]) -> None:
    if not rollouts:
        return
    lengths = [rollout.length for rollout in rollouts]
    metrics.mean("rollout/length_mean", lengths)
    metrics.max("rollout/length_max", *lengths)
    metrics.mean("rollout/truncated", (rollout.stop_reason == "length" for rollout in rollouts))
    metrics.mean("rollout/deliberation", (deliberation_markers(rollout.own_text) for rollout in rollouts))
    metrics.mean("leak/mention_rate", (mentions_privileged(rollout.own_text) for rollout in rollouts))
    metrics.sum("rollout/count", len(rollouts))
    metrics.sum("rollout/tokens", *lengths)
    if any(rollout.calls for rollout in rollouts):
        metrics.mean("rollout/calls", (len(rollout.calls) for rollout in rollouts))
        metrics.mean("rollout/failed_call_share", (call != "ok" for rollout in rollouts for call in rollout.calls))


def token_metrics(
    batch: TokenBatch, credit: TokenCredit, student: TokenScores, teacher: TokenScores | None = None, fresh: bool = True
) -> Metrics:
    """What the policy, the teacher and the method say of the response tokens of one micro-batch.

    `gap/`, `teacher/` and `weight/clip_share` cover the rows that the teacher scored, `weight/mean` all rows. Where the
    rows were sampled by older weights, not `fresh`, the distance to the sampling log-probabilities is `stale/`, not `engine/`.
    """
    metrics = Metrics()
    mask = batch.mask.bool()
    if not bool(mask.any()):
        return metrics
    metrics.mean("weight/mean", _flat(credit.weights, mask))
    metrics.mean("advantage/token_abs_mean", _flat(credit.advantages.abs(), mask))
    metrics.mean("advantage/token_zero_share", _flat((credit.advantages == 0).float(), mask))
    metrics.mean("policy/logp_mean", _flat(student.logp, mask))
    if student.entropy is not None:
        metrics.mean("policy/entropy", _flat(student.entropy, mask))
        _quantiles(metrics, "policy/token_entropy", batch, student.entropy, mask)
    differences = (student.logp - batch.engine_logp).abs()
    mismatch = _flat(differences, mask)
    source = "engine" if fresh else "stale"
    metrics.mean(f"{source}/logp_diff_mean", mismatch)
    metrics.max(f"{source}/logp_diff_max", *mismatch)
    metrics.mean(f"{source}/logp_diff_first", _flat(differences[:, 0], mask[:, 0]))  # right after the prompt
    scored = batch.taught
    metrics.mean("weight/teacher_share", _flat(scored.float(), mask))
    if bool(scored.any()):
        _teacher(metrics, batch, credit, scored)
        ratio = credit.log_ratio if teacher is None else teacher.logp - student.logp
        _gaps(metrics, batch, ratio if credit.log_ratio is None else credit.log_ratio, scored)
        if teacher is not None and teacher.entropy is not None:
            metrics.mean("teacher/entropy", _flat(teacher.entropy, scored))
            _quantiles(metrics, "teacher/token_entropy", batch, teacher.entropy, scored)
    return metrics


def _quantiles(metrics: Metrics, name: str, batch: TokenBatch, values: Tensor, mask: Tensor) -> None:
    for row, (group, index) in enumerate(zip(batch.groups, batch.indices, strict=True)):
        flat = _flat(values[row], mask[row])
        metrics.add(name, Quantiles.of(_keys(group, index, len(flat)), np.asarray(flat)))


def _keys(group: RolloutGroup, index: int, count: int) -> np.ndarray:
    """A uniform number a token that depends on its rollout alone."""
    return generator("quantiles", group.sample.id, group.rollouts[index].seed).random(count)


def _teacher(metrics: Metrics, batch: TokenBatch, credit: TokenCredit, scored: Tensor) -> None:
    weights = _flat(credit.weights, scored)
    metrics.max("weight/max", *weights)
    metrics.add("weight/std", Std.of(weights))
    if credit.clipped is not None:
        metrics.mean("weight/clip_share", _flat(credit.clipped.float(), scored))
    for index, dimension in enumerate(DIMENSIONS):
        metrics.mean(f"weight/{dimension}_mean", _flat(credit.weights, scored & (batch.dimensions == index)))


def _gaps(metrics: Metrics, batch: TokenBatch, ratio: Tensor | None, scored: Tensor) -> None:
    if ratio is None:
        return
    for row, (group, index) in enumerate(zip(batch.groups, batch.indices, strict=True)):
        gaps = _flat(ratio[row], scored[row])
        side = "right" if group.rewards[index].correct else "wrong"
        metrics.mean(f"gap/{side}_mean", gaps)
        metrics.mean(f"gap/{side}_abs_mean", map(abs, gaps))
        metrics.add(f"gap/{side}", Quantiles.of(_keys(group, index, len(gaps)), np.asarray(gaps)))


def drop_metrics(drops: Mapping[str, int]) -> Metrics:
    """`drops/<reason>` and `drops/total`, counted over ranks."""
    metrics = Metrics()
    metrics.sum("drops/total", *drops.values())
    for reason, count in drops.items():
        metrics.sum(f"drops/{reason}", count)
    return metrics


def reduction_metrics(reductions: Mapping[str, int]) -> Metrics:
    """`prompts/reduced_<rule>` and `prompts/reduced`: samples with fewer frames or pixels, counted over ranks."""
    metrics = Metrics()
    metrics.sum("prompts/reduced", *reductions.values())
    for rule, count in reductions.items():
        metrics.sum(f"prompts/reduced_{rule}", count)
    return metrics


def key_frame_metrics(samples: Sequence[Sample]) -> Metrics:
    """`prompts/key_frames`: evidence shown to the student in a step, and the number of prompts that show any."""
    metrics, shown = Metrics(), [sum(len(item.also) for item in sample.media) for sample in samples]
    metrics.sum("prompts/key_frames", *shown)
    metrics.sum("prompts/with_key_frames", sum(map(bool, shown)))
    return metrics


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _flat(values: Tensor, mask: Tensor) -> list[float]:
    return values.detach()[mask].double().cpu().tolist()
