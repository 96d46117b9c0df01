"""What is logged of the teacher's part in a step, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from visd.observe.accumulate import Metrics, Ratio
from visd.observe.diagnostics import copied_share
from visd.train.run import Run
from visd.train.teach import RowScores, targets_of
from visd.types import RolloutGroup, Term, TokenBatch, TokenCredit


def context_metrics(run: Run, groups: Sequence[RolloutGroup], teacher: RowScores) -> Metrics:
    """`teacher/row_share`: rollouts that the teacher scored; `leak/copied_share`: what they share with what it was shown.

    A policy that answers in the words of the privileged text, which it has not seen, has learnt to guess that text.
    """
    metrics = Metrics()
    if not run.method.uses_teacher:
        return metrics
    scored = ((group.sample.id, i) in teacher for group in groups for i in range(len(group.rollouts)))
    metrics.mean("teacher/row_share", scored)
    if teacher:
        shown = [(target.item, target.text) for target in targets_of(run, groups) if target.item.key in teacher]
        shares = (copied_share(item.group.rollouts[item.index].own_text, text) for item, text in shown)
        metrics.mean("leak/copied_share", (share for share in shares if share is not None))
    return metrics


def magnitude_metrics(batch: TokenBatch, credit: TokenCredit, terms: Sequence[Term], weights: Tensor) -> Metrics:
    """`policy/teacher_to_reward`: how much the teacher changes the loss, over what the reward alone would put there.

    The numerator is |A_t - A| and the size of every further term, the denominator |A|, each by the token's share of the
    loss and summed over the step; nothing is reported where no rollout has an advantage.
    """
    metrics = Metrics()
    base = batch.advantages[:, None].expand_as(weights)
    changed = float(((credit.advantages - base).abs() * weights).sum())
    for term in terms:
        changed += float((term.weight * term.value.detach() * term.mask * weights).abs().sum())
    metrics.add("policy/teacher_to_reward", Ratio.of([changed], [float((base.abs() * weights).sum())]))
    return metrics
