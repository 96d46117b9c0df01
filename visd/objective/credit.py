"""Direction and magnitude: bounded positive weights a token, from teacher and judge.

    D_t = sg(log teacher(y_t | privileged) - log student(y_t))
    e_t = clip(exp(sign(A) D_t), 1 - eps, 1 + eps)
    g_t = weight of the dimension of token t, mean 1 over the rollout
    A_t = A [(1 - lam) + lam clip(e_t g_t, 1 - eps, 1 + eps)]

RLSD (arXiv 2604.03128) with g = 1 and the full vocabulary; VISD (arXiv 2605.06094) with the teacher's top-K support.
All functions work on [B, T] tensors and detach what they are given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from visd.types import TokenScores


def sampled_log_ratio(teacher: TokenScores, student: TokenScores) -> Tensor:
    """D_t over the full vocabulary, [B, T]."""
    return (teacher.logp - student.logp).detach()


def restricted_log_ratio(teacher: TokenScores, student: TokenScores, token_ids: Tensor) -> Tensor:
    """D_t over the teacher's top-K ids and the sampled token, [B, T].

    Log-probabilities over the full vocabulary stand in for logits: the normaliser cancels in the restricted softmax.
    """
    if teacher.support_ids is None or teacher.support_logp is None or student.support_logp is None:
        raise ValueError("a restricted ratio needs the teacher's top-K ids and both models' scores there")
    sampled_inside = (teacher.support_ids == token_ids[..., None]).any(-1)
    log_teacher = _restricted(teacher.logp, teacher.support_logp, sampled_inside)
    log_student = _restricted(student.logp, student.support_logp, sampled_inside)
    return (log_teacher - log_student).detach()


def _restricted(logp: Tensor, support_logp: Tensor, sampled_inside: Tensor) -> Tensor:
    outside = logp.masked_fill(sampled_inside, -math.inf)[..., None]
    return logp - torch.logsumexp(torch.cat([support_logp, outside], dim=-1), dim=-1)


@dataclass(frozen=True)
class BoundedWeight:
    """Weights inside [1 - eps, 1 + eps] and where the bound was hit."""

    value: Tensor  # [B, T]
    clipped: Tensor  # [B, T] bool


def evidence_weight(log_ratio: Tensor, advantages: Tensor, eps: float) -> BoundedWeight:
    """e_t. Clamped before the exponential, so that no ratio overflows.

    Args:
        log_ratio: D_t, [B, T].
        advantages: A, [B]; only the sign counts, and sign 0 gives weight 1.
        eps: at most 1.
    """
    exponent = torch.sign(advantages)[:, None] * log_ratio
    low, high = math.log1p(-eps) if eps < 1 else -math.inf, math.log1p(eps)
    return BoundedWeight(exponent.clamp(low, high).exp(), (exponent < low) | (exponent > high))


def dimension_weight(scores: Tensor, dimensions: Tensor, mask: Tensor, advantages: Tensor, strength: float) -> Tensor:
    """g_t, [B, T], mean 1 over each rollout.

    A rollout with a positive advantage gets more credit on the dimensions that scored high, one with a negative
    advantage more blame on those that scored low; a dimension without a score is neutral.

    Args:
        scores: judge scores, [B, dimensions], NaN where a dimension was not scored.
        dimensions: index of each token's dimension, [B, T].
        strength: difference of the weights of score 1 and score 0.
    """
    merit = torch.where(advantages[:, None] >= 0, scores, 1 - scores)
    known = ~merit.isnan()
    neutral = merit.nan_to_num(0.0).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    merit = torch.where(known, merit, neutral)
    per_token = merit.gather(1, dimensions)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = (per_token * mask).sum(-1, keepdim=True) / count
    return torch.where(mask, 1 + strength * (per_token - mean), torch.ones_like(per_token))


def uncertain_tokens(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """[B, T] bool: of each rollout the `share` of its tokens that the student is least sure of, at least one; ties are in.

    Args:
        entropy: of the student, nats, [B, T].
    """
    known = torch.where(mask, entropy, -math.inf)
    count = (mask.sum(-1, keepdim=True) * share).ceil().long().clamp(min=1)
    least = known.sort(-1, descending=True).values.gather(-1, count - 1)
    return mask & (known >= least)


def tokens_between(mask: Tensor, begin: float, end: float) -> Tensor:
    """[B, T] bool: each rollout's tokens from the share `begin` of its length on and before the share `end`."""
    place = (mask.cumsum(-1) - 1) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mask & (place >= begin) & (place < end)


def mean_one(weight: Tensor, where: Tensor, eps: float) -> Tensor:
    """Weights [B, T] over their mean in `where`, by rollout; kept inside [1 - eps, 1 + eps], which may move the mean again."""
    mean = (weight * where).sum(-1, keepdim=True) / where.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mean > 0, weight / mean, weight).clamp(1 - eps, 1 + eps)


def mixed_advantages(advantages: Tensor, weight: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """A_t and its multiplier (1 - lam) + lam w, both [B, T]; lam = 0 gives A exactly."""
    multiplier = (1 - lam) + lam * weight
    return (advantages[:, None] * multiplier).detach(), multiplier.detach()


def added_advantages(advantages: Tensor, addition: Tensor) -> tuple[Tensor, Tensor]:
    """A + addition and its ratio to A (1 where A is 0), both [B, T] and detached; an addition of 0 gives A exactly."""
    total = (advantages[:, None] + addition).detach()
    base = advantages[:, None].expand_as(total)
    return total, torch.where(base == 0, 1.0, total / torch.where(base == 0, 1.0, base))


def annealed(start: float, step: int, steps: int, schedule: str) -> float:
    """lam at a 0-based step.

    linear: start (steps - step) / steps, then 0 (VISD and RLSD's schedule, whose first step has the full value);
    cosine: half a cosine to 0; constant: start until `steps`, then 0. `steps` = 0 never ends.
    """
    if steps == 0 or start == 0:
        return start
    if step >= steps:
        return 0.0
    share = step / steps
    if schedule == "linear":
        return start * (steps - step) / steps
    if schedule == "cosine":
        return start * 0.5 * (1 + math.cos(math.pi * share))
    if schedule == "constant":
        return start
    raise ValueError(f"schedule {schedule!r} is not one of linear, cosine, constant")
