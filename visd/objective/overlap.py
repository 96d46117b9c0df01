"""How far teacher and student agree on what comes next: the diagnostics of «Rethinking On-Policy Distillation».

    overlap ratio    |TopK(p) & TopK(q)| / K                                                   (arXiv 2604.13016, eq. 6)
    overlap mass     sum of p, and of q, over I = TopK(p) & TopK(q)                                     (eq. 9 and 10)
    advantage        mean over I of p_I (log q_I - log p_I), p_I and q_I renormalised on I                       (eq. 7)
    entropy gap      |H(q) - H(p)|                                                                               (eq. 8)

p is the student, q the teacher. A high advantage alone misleads: read it with the mass. verl logs another quantity under
the name of the advantage, weighted by q and not renormalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visd.objective.divergence import entropy
from visd.types import ScoreNeeds, TokenScores


@dataclass(frozen=True)
class Overlap:
    """One value a token, [B, T], detached."""

    ratio: Tensor  # 0-1
    student_mass: Tensor  # 0-1
    teacher_mass: Tensor  # 0-1
    advantage: Tensor  # nats, at most 0; NaN where no id is common
    entropy_gap: Tensor  # nats


def overlap_k(needs: ScoreNeeds | None, k: int) -> int:
    """The rank that both models report as `kth_logp`: `k`, or the method's own K where that is smaller."""
    if needs is None or needs.full:
        return 0
    return min(k, needs.top_k) if needs.top_k else k


def with_overlap(needs: ScoreNeeds, k: int) -> ScoreNeeds:
    """What the method asks of the teacher, and besides it what `overlap` reads; what the method gets stays as it is."""
    if k == 0 or needs.units is not None:
        return needs  # two tokenizers have no ids in common to count
    rank = overlap_k(needs, k)
    return replace(needs, entropy=True, overlap_k=rank, top_k=needs.top_k or rank)


def overlap(student: TokenScores, teacher: TokenScores, needs: ScoreNeeds, k: int) -> Overlap:
    """Agreement on the `k` most probable ids of each model.

    Args:
        needs: what the method asked for; the scores are of `with_overlap(needs, k)`.
    """
    p, q, common = _top(student.detach(), teacher.detach(), needs, k)
    mine, theirs = (x.masked_fill(~common, -torch.inf) for x in (p, q))
    count = common.sum(-1)
    log_p, log_q = (x - torch.logsumexp(x, -1, keepdim=True) for x in (mine, theirs))
    gains = torch.where(common, log_p.exp() * (log_q - log_p), 0.0).sum(-1)
    return Overlap(
        ratio=count / common.shape[-1],
        student_mass=mine.exp().sum(-1),
        teacher_mass=theirs.exp().sum(-1),
        advantage=torch.where(count > 0, gains / count, torch.nan),
        entropy_gap=(_entropy(teacher) - _entropy(student)).abs(),
    )


def _top(student: TokenScores, teacher: TokenScores, needs: ScoreNeeds, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both models' log-probabilities at one model's K most probable ids, and which of these the other has there too."""
    if student.full_logp is not None and teacher.full_logp is not None:
        k = min(k, student.full_logp.shape[-1])
        rank = student.full_logp.topk(k, dim=-1).values[..., -1:]
        q, ids = teacher.full_logp.topk(k, dim=-1)
        p = student.full_logp.gather(-1, ids)
        return p, q, p >= rank
    assert student.support_logp is not None and teacher.support_logp is not None
    assert student.kth_logp is not None and teacher.kth_logp is not None
    k = overlap_k(needs, k)
    p, q = student.support_logp[..., :k], teacher.support_logp[..., :k]  # the most probable ones come first
    if needs.top_k and needs.support != "teacher":
        return p, q, q >= teacher.kth_logp[..., None]
    return p, q, p >= student.kth_logp[..., None]


def _entropy(scores: TokenScores) -> Tensor:
    if scores.entropy is not None:
        return scores.entropy
    assert scores.full_logp is not None
    return entropy(scores.full_logp)
