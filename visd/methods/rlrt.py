"""RLRT: Rebellious Student, the reversed teacher (arXiv 2605.10781).

    D_t = sg(log pi(y_t | x, y_<t) - log pi(y_t | x, right rollout, y_<t))
    w_t = exp(sign(A) D_t)
    A_t = A [(1 - lam) + lam clip(w_t, 1 - eps, 1 + eps)]  for a right rollout, else A

RLSD (arXiv 2604.03128) with the ratio turned round and a gate on the reward: tokens of a right rollout that the policy
chose although a teacher who knows a solution would not have. Teacher and student have the same, current weights. Published
eps: 1.0 for base models (config `rlrt`), 0.5 for instruct models, 0.2 for thinking ones.

Full text and code were not public; equations agree across independent descriptions of the paper. Silent and decided here:
which right rollout is shown: the first other one, else the rollout itself (`own_success`); the wording: SDPO's
(`teacher.layout`); no schedule of lam (`lam_steps`, `lam_schedule`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from visd.config import RunConfig
from visd.methods.base import Method, Scores
from visd.methods.checks import check_context, check_range
from visd.objective.credit import annealed, evidence_weight, mixed_advantages, sampled_log_ratio
from visd.teacher.siblings import solution_text, succeeded, successful
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, TokenBatch, TokenCredit


@dataclass
class RLRT(Method):
    """Settings of RLRT."""

    uses_teacher: ClassVar[bool] = True

    lam: float = 0.5  # mixing weight of the reversed evidence at step 1
    lam_steps: int = 0  # steps until it is 0; 0 keeps it
    lam_schedule: str = "linear"  # linear, cosine, constant
    eps: float = 1.0  # bound of a token's weight around 1: 1.0 base, 0.5 instruct, 0.2 thinking models
    gate: bool = True  # weigh only right rollouts; without it training diverged in the paper
    own_success: bool = True  # show a rollout itself where no other is right
    success_threshold: float = 0.5  # accuracy from which a rollout is right
    strip_think: bool = False  # show a rollout without its reasoning

    def __post_init__(self) -> None:
        check_range("lam", self.lam, 0, 1)
        check_range("eps", self.eps, 0, 1)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "peers", "which rlrt fills with a right rollout")

    def lam_at(self, step: int) -> float:
        return annealed(self.lam, step, self.lam_steps, self.lam_schedule)

    def active(self, step: int) -> bool:
        return self.lam_at(step) > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds() if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        """A right rollout: another one, else itself; None where the gate leaves the advantage as it is."""
        right = succeeded(group, index, self.success_threshold)
        if self.gate and not right:
            return None
        shown = successful(group, self.success_threshold, without=index)
        if not shown and right and self.own_success:
            shown = [index]
        if not shown:
            return None
        return PrivilegedContext(peers=(solution_text(group.rollouts[shown[0]], self.strip_think),))

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        if not self.active(step) or scores.teacher is None:
            return super().advantages(batch, scores, step)
        scored = batch.has_teacher[:, None]
        log_ratio = sampled_log_ratio(scores.teacher, scores.student) * scored
        weight = evidence_weight(-log_ratio, batch.advantages, self.eps)
        advantages, multiplier = mixed_advantages(
            batch.advantages, torch.where(scored, weight.value, 1.0), self.lam_at(step)
        )
        return TokenCredit(advantages, multiplier, log_ratio, weight.clipped & scored)
