"""The clipped policy loss with global denominators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visd.config import ObjectiveSection

LOG_RATIO_LIMIT = 20.0
"""Bound of the log importance ratio before the exponential; far beyond any clip."""


@dataclass(frozen=True)
class Denominators:
    """What the whole step is divided by, on every rank and in every micro-batch alike."""

    tokens: int  # response tokens of all rollouts of the step, over all ranks
    rollouts: int  # rollouts of the step, over all ranks
    longest: int  # most tokens of an answer, rollout.max_new_tokens


def token_weights(mask: Tensor, aggregation: str, denominators: Denominators) -> Tensor:
    """What each token counts in the loss, [B, T]; the sum over the whole step is 1 (constant: at most 1).

    token: 1 / tokens of the step (DAPO, arXiv 2503.14476); sequence: 1 / (length * rollouts), GRPO's original form;
    constant: 1 / (longest * rollouts), the same for every length (Dr. GRPO, arXiv 2503.20783).
    """
    if aggregation == "token":
        return mask / max(denominators.tokens, 1)
    if aggregation == "constant":
        return mask / (denominators.longest * max(denominators.rollouts, 1))
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
    clipped: Tensor  # [B, T] bool, the clip decided the token's loss or gradient


def policy_loss(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, weights: Tensor, section: ObjectiveSection
) -> PolicyLoss:
    """Sum over tokens of weight * l_t, with r_t the ratio by `ratio` and c_t = clip(r_t, 1 - eps_low, 1 + eps_high).

    clip: l_t = -min(r_t A_t, c_t A_t). cispo: l_t = -sg(c_t) A_t log p_t, whose value is no bound but whose gradient
    reaches every token, scaled by the bounded ratio (MiniMax-M1, arXiv 2506.13585).

    Args:
        logp: current log-probabilities with gradient, [B, T].
        old_logp: of the policy that sampled, [B, T], no gradient.
        advantages: [B, T], no gradient.
        weights: from `token_weights`, [B, T], 0 on padding.
    """
    log_ratio = logp - old_logp
    if section.ratio == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, weights > 0)
    ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped_ratio = ratio.clamp(1 - section.eps_low, 1 + section.eps_high)
    if section.surrogate == "cispo":
        loss = -(clipped_ratio.detach() * advantages * logp * weights).sum()
        clipped = clipped_ratio != ratio
    else:
        free, bound = ratio * advantages, clipped_ratio * advantages
        loss = -(torch.minimum(free, bound) * weights).sum()
        clipped = bound < free
    return PolicyLoss(loss, ratio.detach(), clipped.detach() & (weights > 0))


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """The mean log ratio of each answer at each of its tokens, [B, T], whose gradient there is the token's own.

    The token form of GSPO (arXiv 2507.18071, eq. 13-14). With one advantage an answer it has the loss and the gradient
    of the answer's ratio; with one a token, each token keeps its own credit, which the plain form would average away.
    """
    mean = (log_ratio * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return (mean - log_ratio).detach() + log_ratio


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
