"""DASD: Direction-Adaptive Self-Distillation (arXiv 2605.22263).

    delta_t = sg(log pi_T(y_t | x, privileged, y_<t) - log pi(y_t | x, y_<t)), divided by its size over the rollout
    w_t     = tanh((tau - H_t) / sigma) sigmoid(|delta_t| - 1)
    A_t     = A + beta w_t delta_t

H is the student's token entropy, tau its `quantile` over the rollout and sigma its mean absolute deviation there: tokens
the student is sure of move toward the teacher, uncertain ones away from it.

Neither full text nor code was public; the equations are those of one third-party description. Open there and decided here:
whether rho = 0.20 is a lower quantile or the upper fifth: the upper (`quantile=0.8`), since at 0.2 almost nothing would move
toward the teacher; beta (`beta`); how delta is scaled (`normaliser`); mean or median in sigma (`deviation_about`); the
entropy is of the full vocabulary at the sampling temperature; the teacher has the current weights (`teacher.weights`) and
sees the verified answer (`reference`, `rationale` for reasoning); the correction also reaches rollouts with advantage 0
(`zero_advantage`). `router=attract` and `repel` are the uniform baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visd.config import RunConfig
from visd.methods.base import Method, Scores
from visd.methods.checks import check_choice, check_context, check_range
from visd.objective.credit import added_advantages, sampled_log_ratio
from visd.teacher.siblings import REFERENCES, check_references, reference_solution
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, TokenBatch, TokenCredit

TINY = 1e-6
"""A spread below this is rounding and counts as none."""


@dataclass
class DASD(Method):
    """Settings of DASD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    beta: float = 0.1  # weight of the correction
    quantile: float = 0.8  # quantile of the student's entropy, by rollout, between attraction and repulsion
    normaliser: str = "rms"  # what divides the log ratio, by rollout: rms, std (the mean is kept) or none
    deviation_about: str = "mean"  # the mean absolute deviation of the entropy is about its mean or median
    router: str = "entropy"  # entropy; attract or repel move every token toward or away from the teacher
    reliability: bool = True  # weigh by sigmoid(|delta| - 1)
    zero_advantage: bool = True  # correct rollouts without an advantage as well
    reference: str = "answer"  # what the teacher sees: rationale (verified reasoning and answer) or answer

    def __post_init__(self) -> None:
        check_range("quantile", self.quantile, 0, 1)
        check_choice("normaliser", self.normaliser, ("rms", "std", "none"))
        check_choice("deviation_about", self.deviation_about, ("mean", "median"))
        check_choice("router", self.router, ("entropy", "attract", "repel"))
        check_choice("reference", self.reference, REFERENCES[:2])

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "reference", "which dasd fills with the reference solution")
        check_references(samples, self.reference, "method.reference")

    def active(self, step: int) -> bool:
        return self.beta > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds() if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext(reference=reference_solution(group.sample, self.reference))

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        entropy = scores.student.entropy
        if scores.teacher is None or entropy is None:
            return super().advantages(batch, scores, step)
        scored = batch.taught
        log_ratio = torch.where(scored, sampled_log_ratio(scores.teacher, scores.student), 0.0)
        delta = self.normalised(log_ratio, batch.mask)
        addition = self.beta * self.weight(entropy, delta, batch.mask) * delta
        if not self.zero_advantage:
            scored = scored & (batch.advantages != 0)[:, None]
        advantages, weights = added_advantages(batch.advantages, torch.where(scored, addition, 0.0))
        return TokenCredit(advantages, weights, log_ratio)

    def weight(self, entropy: Tensor, delta: Tensor, mask: Tensor) -> Tensor:
        """w_t, [B, T]."""
        route = {"attract": torch.ones_like, "repel": lambda h: -torch.ones_like(h)}.get(self.router)
        direction = route(entropy) if route else self.routed(entropy, mask)
        return direction * torch.sigmoid(delta.abs() - 1) if self.reliability else direction

    def routed(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """tanh((tau - H) / sigma), [B, T]; 0 on padding and where a rollout's entropy does not vary."""
        known = torch.where(mask, entropy, torch.nan)
        tau = known.nanquantile(self.quantile, dim=-1, keepdim=True)
        middle = known.nanmean if self.deviation_about == "mean" else lambda **k: known.nanquantile(0.5, **k)
        deviation = (known - middle(dim=-1, keepdim=True)).abs().nanmean(dim=-1, keepdim=True)
        value = torch.tanh((tau - known) / deviation.clamp(min=TINY))
        return torch.where(mask & (deviation > TINY), value, 0.0)

    def normalised(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """delta_t, [B, T]: the sign is kept; 0 where there is no ratio at all."""
        if self.normaliser == "none":
            return log_ratio
        count = mask.sum(-1, keepdim=True).clamp(min=1)
        kept = log_ratio * mask
        mean = kept.sum(-1, keepdim=True) / count if self.normaliser == "std" else 0.0
        size = (torch.where(mask, log_ratio - mean, 0.0) ** 2).sum(-1, keepdim=True).div(count).sqrt()
        return torch.where(size > TINY, kept / size.clamp(min=TINY), 0.0)
