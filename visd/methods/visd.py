"""VISD: direction from rewards, magnitude from teacher and judge (design after arXiv 2605.06094 and 2604.03128).

    D_t = (1 - gamma) D_t^topK + gamma D_t^sampled
    e_t = clip(exp(sign(A) D_t), 1 - eps, 1 + eps)
    g_t = weight of the token's dimension by the judge's scores, mean 1 over the rollout
    A_t = A [(1 - lam) + lam clip(e_t g_t, 1 - eps, 1 + eps)]

The teacher (an EMA of the policy) sees the verified answer, window, key-frame times and the judge's feedback. D^topK
is restricted to the teacher's `top_k` most probable ids and the sampled one; `top_k=0` uses the full vocabulary.

Where the paper is silent: how judge scores become token weights. Here g_t = 1 + dimension_strength (m - mean m), m the
score of the token's dimension for a rewarded rollout and 1 - score for a punished one; `dimension_strength=0` with the
settings of `visd_release` is the published code. A judgement that failed leaves the teacher without feedback and g = 1.

The defaults lam 1 and eps 0.8 were found on the small world (docs/results.md), whose warm start teaches to read privileged
text. A teacher that cannot use it weighs tokens by what it happens to prefer, which at lam 1 can drown the reward: start
from the published lam 0.5 and eps 0.2 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visd.config import ConfigError
from visd.methods.base import Method, Scores, Services
from visd.methods.controls import CONTROLS, Feedback, random_weights, shuffled_feedback
from visd.objective.credit import (
    annealed,
    dimension_weight,
    evidence_weight,
    mixed_advantages,
    restricted_log_ratio,
    sampled_log_ratio,
)
from visd.teacher.view import verified
from visd.types import PrivilegedContext, RolloutGroup, ScoreNeeds, TokenBatch, TokenCredit


@dataclass
class VISD(Method):
    """Settings of VISD."""

    uses_teacher: ClassVar[bool] = True

    lam: float = 1.0  # mixing weight of the evidence at step 1
    lam_steps: int = 600  # steps until it is 0; 0 keeps it
    lam_schedule: str = "linear"  # linear, cosine, constant
    eps: float = 0.8  # bound of a token's weight around 1
    top_k: int = 16  # teacher's most probable ids the ratio is restricted to; 0: full vocabulary
    gamma: float = 0.0  # share of the full-vocabulary ratio beside the restricted one
    dimension_strength: float = 1.0  # difference of the weights of judge scores 1 and 0; 0 switches g off
    feedback: bool = True  # ask the judge and show its feedback to the teacher
    control: str = "none"  # to compare with: none, shuffled_feedback (the teacher reads another sample's), random_weights (a rollout's weights on other tokens of it)

    def __post_init__(self) -> None:
        self._shuffled: Feedback = {}
        if self.control not in CONTROLS:
            raise ConfigError(f"method.control: {self.control!r} is not one of {', '.join(CONTROLS)}.")
        if not 0 <= self.eps < 1:
            raise ConfigError(f"method.eps: {self.eps} must lie in [0, 1), or a weight could lose its sign.")
        if not 0 <= self.lam <= 1:
            raise ConfigError(f"method.lam: {self.lam} must lie in [0, 1].")

    def lam_at(self, step: int) -> float:
        return annealed(self.lam, step, self.lam_steps, self.lam_schedule)

    def active(self, step: int) -> bool:
        return self.lam_at(step) > 0

    def wants_judge(self, step: int) -> bool:
        return self.active(step) and (self.feedback or self.dimension_strength > 0)

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds(sampled=True, top_k=self.top_k) if self.active(step) else None

    def prepare(self, groups: Sequence[RolloutGroup], services: Services) -> Sequence[RolloutGroup]:
        self._shuffled = shuffled_feedback(groups) if self.control == "shuffled_feedback" else {}
        return groups

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        report = group.reports[index] if group.reports else None
        feedback = report.feedback if report is not None and report.usable and self.feedback else None
        if self.control == "shuffled_feedback" and self.feedback:
            feedback = self._shuffled.get((group.sample.id, index))
        return verified(group.sample, feedback)

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        if not self.active(step):
            return super().advantages(batch, scores, step)
        log_ratio = self._log_ratio(batch, scores)
        evidence = evidence_weight(log_ratio, batch.advantages, self.eps)
        weight = evidence.value
        if self.dimension_strength > 0:
            weight = weight * dimension_weight(
                batch.dimension_scores, batch.dimensions, batch.mask, batch.advantages, self.dimension_strength
            )
        if self.control == "random_weights":
            weight = random_weights(weight, batch)
        bounded = weight.clamp(1 - self.eps, 1 + self.eps)
        advantages, multiplier = mixed_advantages(batch.advantages, bounded, self.lam_at(step))
        return TokenCredit(advantages, multiplier, log_ratio, evidence.clipped | (bounded != weight))

    def _log_ratio(self, batch: TokenBatch, scores: Scores) -> Tensor:
        if scores.teacher is None:
            return torch.zeros_like(scores.student.logp)
        if self.top_k == 0 or self.gamma == 1:
            ratio = sampled_log_ratio(scores.teacher, scores.student)
        else:
            ratio = restricted_log_ratio(scores.teacher, scores.student, batch.token_ids)
            if self.gamma > 0:
                ratio = (1 - self.gamma) * ratio + self.gamma * sampled_log_ratio(scores.teacher, scores.student)
        return torch.where(batch.taught, ratio, 0.0)
