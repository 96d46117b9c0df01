"""Divergences of teacher and student at each position, their supports, and their clamps.

p is the student, q the teacher; both are log-probabilities over the last dimension. Full vocabulary: [B, T, V], with -inf
for ids that cannot be sampled. Restricted support: [B, T, K] true log-probabilities of K ids (their sum is at most 1),
closed to a distribution by `with_tail` or `renormalised`. All functions are plain formulas in the dtype of their inputs
and return one value a position; gradients flow through p only where the caller detaches q.

    forward KL   KL(q || p) = sum_v q log(q / p)
    reverse KL   KL(p || q) = sum_v p log(p / q)
    JSD_a        (1 - a) KL(p || m) + a KL(q || m),  m = (1 - a) p + a q

Sources: generalised JSD of GKD (arXiv 2306.13649, eq. 1, where a is beta), SDPO (arXiv 2601.20802, eq. 11), the clipped
forward KL of OPSD (arXiv 2601.18734).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visd.policy.head import LOWEST
from visd.types import ScoreNeeds, TokenScores

FULL_MASS = -1e-7
"""Largest log-mass of a support that still leaves a tail (SDPO's code and TRL clamp there)."""


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q || p) = sum_v q log(q / p), [..., V] to [...]."""
    return _kl(_finite(teacher), _finite(student))


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p || q) = sum_v p log(p / q), [..., V] to [...]."""
    return _kl(_finite(student), _finite(teacher))


def generalised_jsd(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """JSD_a between the ends, forward KL at a = 0 and reverse KL at a = 1, [..., V] to [...].

    JSD_a / (a (1 - a)) tends to forward KL for a to 0 and to reverse KL for a to 1, so JSD_a itself tends to 0 there: at
    the ends the loss jumps, by 1 / (a (1 - a)). The gradient flows through the mixture m as well.
    """
    if alpha == 0:
        return forward_kl(student, teacher)
    if alpha == 1:
        return reverse_kl(student, teacher)
    p, q = _finite(student), _finite(teacher)
    mixture = torch.logaddexp(p + math.log1p(-alpha), q + math.log(alpha))
    return (1 - alpha) * _kl(p, mixture) + alpha * _kl(q, mixture)


def sampled_reverse_kl(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """sg[log p(y) - log q(y)] log p(y) of the sampled token, [...].

    Its value is no divergence and may be negative; over y ~ p its gradient is that of the reverse KL.
    """
    return (student_logp - teacher_logp).detach() * student_logp


def clipped_forward_kl(student: Tensor, teacher: Tensor, clip: float, generator: str) -> tuple[Tensor, Tensor]:
    """sum_v min(l_v, clip), [...], and the share of the teacher's mass whose entries the clip decided, [...].

    Args:
        clip: bound of each entry's contribution; 0 clips nothing.
        generator: signed, l = q log(q / p): a clipped entry has no gradient and the others still push their own mass up,
            so that the teacher's favourite can be pushed down; nonnegative, l = q log(q / p) - q + p, has the same sum
            and no entry below 0 (f(r) = r - 1 - log r, r = p / q).
    """
    p, q = _finite(student), _finite(teacher)
    entries = q.exp() * (q - p)
    if generator == "nonnegative":
        entries = entries - q.exp() + p.exp()
    elif generator != "signed":
        raise ValueError(f"generator {generator!r} is not one of signed, nonnegative")
    if clip == 0:
        return entries.sum(-1), torch.zeros_like(entries[..., 0]).detach()
    share = (q.exp() * (entries > clip)).sum(-1).detach()
    return entries.clamp(max=clip).sum(-1), share


def ratio_clamped(student: Tensor, teacher: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """log q with every ratio q / p inside [low, high], not renormalised, [..., V], and the student's mass clamped, [...].

    Both are detached: the clamp stands where the student is now, and its gradient does not move it (arXiv 2605.12741).

    Args:
        low, high: bounds of the ratio; 0 leaves one out.
    """
    p, q = _finite(student.detach()), _finite(teacher.detach())
    clamped = q if low == 0 else torch.maximum(q, p + math.log(low))
    clamped = clamped if high == 0 else torch.minimum(clamped, p + math.log(high))
    return clamped, (p.exp() * (clamped != q)).sum(-1)


def with_tail(logp: Tensor) -> Tensor:
    """K true log-probabilities and that of all other ids together, [..., K] to [..., K + 1].

    No divergence with a tail exceeds the one over the whole vocabulary; with K = V it is the same.
    """
    mass = torch.logsumexp(_finite(logp), dim=-1, keepdim=True).clamp(max=FULL_MASS)
    return torch.cat([logp, torch.log(-torch.expm1(mass))], dim=-1)


def renormalised(logp: Tensor) -> Tensor:
    """The distribution over the K ids alone, [..., K] to [..., K]."""
    return logp - torch.logsumexp(_finite(logp), dim=-1, keepdim=True)


def entropy(logp: Tensor) -> Tensor:
    """-sum_v p log p in nats, [..., V] to [...]."""
    return -(logp.exp() * _finite(logp)).sum(-1)


def distillation(student: TokenScores, teacher: TokenScores, support: str, alpha: float, tail: bool = True) -> Tensor:
    """The generalised JSD a token on the chosen support, [B, T]; the teacher is detached.

    Args:
        support: full; sampled (reverse KL only, see `sampled_reverse_kl`); student or teacher: the K ids that were read,
            with a bucket for all others if `tail`, else renormalised.
    """
    teacher = teacher.detach()
    if support == "sampled":
        return sampled_reverse_kl(student.logp, teacher.logp)
    if support == "full":
        assert student.full_logp is not None and teacher.full_logp is not None
        return generalised_jsd(student.full_logp, teacher.full_logp, alpha)
    assert student.support_logp is not None and teacher.support_logp is not None
    close = with_tail if tail else renormalised
    return generalised_jsd(close(student.support_logp), close(teacher.support_logp), alpha)


def support_needs(support: str, top_k: int, entropy: bool = False) -> ScoreNeeds:
    """What both models are asked for on a support of `distillation`."""
    if support in ("student", "teacher"):
        return ScoreNeeds(top_k=top_k, support="student" if support == "student" else "teacher", entropy=entropy)
    return ScoreNeeds(full=support == "full", entropy=entropy)


def _kl(a: Tensor, b: Tensor) -> Tensor:
    return (a.exp() * (a - b)).sum(-1)


def _finite(logp: Tensor) -> Tensor:
    """An id that neither model can sample then adds exactly 0, value and gradient."""
    return logp.clamp(min=LOWEST)
