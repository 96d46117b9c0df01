"""Group-relative advantages: the direction of the update."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from visd.config import ObjectiveSection
from visd.types import DIMENSIONS, JudgeReport, RolloutGroup


def group_advantages(returns: Sequence[float], section: ObjectiveSection) -> tuple[float, ...]:
    """(R_i - mean) / (std + eps) over one group, or R_i - mean without the division.

    Computed in float64. Equal returns give exactly 0, a group of one gives 0. DeepSeekMath (arXiv 2402.03300); without
    the division Dr. GRPO (arXiv 2503.20783).
    """
    values = torch.tensor(list(returns), dtype=torch.float64)
    if len(values) < 2 or bool((values == values[0]).all()):
        return (0.0,) * len(values)
    centred = values - values.mean()
    if section.advantage_std:
        centred = centred / (values.std(correction=section.advantage_std_ddof) + section.advantage_eps)
    return tuple(centred.tolist())


def judge_score(report: JudgeReport) -> float:
    """Mean of the scores that apply; 0 for a report without any."""
    scores = [s for s in (report.score(d) for d in DIMENSIONS) if s is not None]
    return fmean(scores) if scores else 0.0


def overlong(length: int, longest: int, share: float) -> float:
    """How far an answer is into the last `share` of the `longest` length, 0-1 (DAPO, arXiv 2503.14476, eq. 13).

    An answer of the longest length counts as 1 whether it was cut or not.
    """
    buffer = share * longest
    return min(max((length - (longest - buffer)) / buffer, 0.0), 1.0) if buffer > 0 else 0.0


def returns_of(group: RolloutGroup, section: ObjectiveSection, longest: int) -> list[float]:
    """What the group is compared by: rewards, less the penalty for length, plus the judge's mean score by its weight.

    A report that failed would pull its rollout down by its silence, so a group with one is compared by rewards alone.

    Args:
        longest: most tokens of an answer.
    """
    totals = [rewards.total for rewards in group.rewards]
    if section.overlong_share > 0:
        lengths = (rollout.length for rollout in group.rollouts)
        penalties = (section.overlong_penalty * overlong(n, longest, section.overlong_share) for n in lengths)
        totals = [total - penalty for total, penalty in zip(totals, penalties, strict=True)]
    judge_weight = section.judge_weight
    if judge_weight == 0 or not group.reports or not all(report.usable for report in group.reports):
        return totals
    return [total + judge_weight * judge_score(r) for total, r in zip(totals, group.reports, strict=True)]
