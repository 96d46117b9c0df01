"""The clipped policy loss with global denominators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Bound of the log importance ratio before the exponential; far beyond any clip."""


@dataclass(frozen=True)
class Denominators:
    """What the whole step is divided by, on every rank and in every micro-batch alike."""

    tokens: int  # response tokens of all rollouts of the step, over all ranks
    rollouts: int  # rollouts of the step, over all ranks


def token_weights(mask: Tensor, aggregation: str, denominators: Denominators) -> Tensor:
    """What each token counts in the loss, [B, T]; the sum over the whole step is 1.

    token: 1 / tokens of the step (DAPO, arXiv 2503.14476); sequence: 1 / (length * rollouts), GRPO's original form.
    """
    if aggregation == "token":
        return mask / max(denominators.tokens, 1)
    length = mask.sum(-1, keepdim=True).clamp(min=1)
    return mask / (length * max(denominators.rollouts, 1))


@dataclass(frozen=True)
class BoundedRatio:
    """An importance ratio and where its bound was hit."""

    value: Tensor  # [B, T]
    clipped: Tensor  # [B, T] bool


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of a micro-batch and what became of its ratios."""

    loss: Tensor  # scalar, this micro-batch's share of the step's loss
    ratio: Tensor  # [B, T], detached
    clipped: Tensor  # [B, T] bool, the clip decided the token's loss


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, weights: Tensor, eps_low: float, eps_high: float
) -> PolicyLoss:
    """Sum over tokens of weight * -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), r a token-level ratio.

    Args:
        logp: current log-probabilities with gradient, [B, T].
        old_logp: of the policy that sampled, [B, T], no gradient.
        advantages: [B, T], no gradient.
        weights: from `token_weights`, [B, T], 0 on padding.
    """
    ratio = (logp - old_logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped_ratio = ratio.clamp(1 - eps_low, 1 + eps_high)
    free, bound = ratio * advantages, clipped_ratio * advantages
    loss = -(torch.minimum(free, bound) * weights).sum()
    return PolicyLoss(loss, ratio.detach(), (bound < free).detach() & (weights > 0))


def truncated_ratio(logp: Tensor, old_logp: Tensor, cap: float) -> BoundedRatio:
    """min(exp(log p - log p_old), cap), detached; a cap of 0 gives 1 everywhere.

    Truncated importance sampling (TIS): with one update a rollout, p_old is the policy that sampled, as its engine saw it.
    """
    if cap == 0:
        return BoundedRatio(torch.ones_like(logp).detach(), torch.zeros_like(logp, dtype=torch.bool))
    ratio = (logp - old_logp).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return BoundedRatio(ratio.clamp(max=cap), ratio > cap)


def kl_to_reference(logp: Tensor, reference_logp: Tensor) -> Tensor:
    """The k3 estimator of KL(policy, reference) a token, [B, T], not negative (Schulman 2020)."""
    gap = (reference_logp - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return gap.exp() - gap - 1
