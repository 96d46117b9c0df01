"""Divergences over aligned units of two tokenizers.

Rows are log-probabilities at the first token of each unit, [N, V] of the student and [N, V] or [N, V + more] of the teacher, in
the student's order: -inf where one of the two does not know the id. Sources: SimCT (arXiv 2605.07711), TRL's GOLD and its
universal logit distillation (ULD).
"""

from __future__ import annotations

import torch
from torch import Tensor

from visd.objective.divergence import generalised_jsd, reverse_kl


def first_tokens(units: Tensor) -> Tensor:
    """[B, T] bool: the tokens that begin a unit; `units` numbers them from 1, 0 for none."""
    before = torch.nn.functional.pad(units[:, :-1], (1, 0))
    return (units != 0) & (units != before)


def sum_over_units(values: Tensor, units: Tensor) -> Tensor:
    """[B, T]: at each token of a unit, the sum of `values` over all of them; 0 where there is no unit."""
    number = units.abs()
    sums = values.new_zeros(values.shape[0], values.shape[1] + 1).scatter_add(1, number, values)
    return torch.where(number > 0, sums.gather(1, number), 0.0)


def unit_divergence(student: Tensor, teacher: Tensor, scores: tuple[Tensor, Tensor], several: Tensor) -> Tensor:
    """KL(q_S || q_T) of each row, [N], both softmaxes over the shared ids and, where `several`, the observed unit (eq. 8 and 9).

    Args:
        student, teacher: [N, V].
        scores: the unit's score by student and teacher, [N] each, beside log-probabilities of the same row.
        several: [N] bool, the unit is more than one shared token.
    """
    shared = student.isfinite() & teacher.isfinite()
    p, q = (
        torch.cat([row.masked_fill(~shared, -torch.inf), score.masked_fill(~several, -torch.inf)[:, None]], dim=-1)
        for row, score in zip((student, teacher), scores, strict=True)
    )
    return reverse_kl(p.log_softmax(-1), q.log_softmax(-1))


def sorted_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """sum_i |p_(i) - q_(i)| over probabilities in descending order, the shorter filled up with 0, [N] (ULD)."""
    width = max(student.shape[-1], teacher.shape[-1])
    p, q = (
        torch.nn.functional.pad(rows.exp().sort(dim=-1, descending=True).values, (0, width - rows.shape[-1]))
        for rows in (student, teacher)
    )
    return (p - q).abs().sum(-1)


def matched_and_sorted(student: Tensor, teacher: Tensor, beta: float, matched: float) -> Tensor:
    """GOLD's hybrid, [N]: generalised JSD on shared ids, sorted difference on the others.

    Args:
        beta: of the divergence, which takes the shared ids' probabilities as they are.
        matched: weight of the divergence, the difference has the rest; negative: the share of the teacher's ids that are
            shared.
    """
    known = student.shape[-1]
    shared = student.isfinite() & teacher[:, :known].isfinite()
    if matched < 0:
        share = shared.sum(-1) / teacher.isfinite().sum(-1)
    else:
        share = torch.full_like(student[:, 0], matched)
    p, q = (rows.masked_fill(~shared, -torch.inf) for rows in (student, teacher[:, :known]))
    rest = torch.cat([teacher[:, :known].masked_fill(shared, -torch.inf), teacher[:, known:]], dim=-1)
    difference = sorted_difference(student.masked_fill(shared, -torch.inf), rest)
    return share * generalised_jsd(p, q, beta) + (1 - share) * difference
