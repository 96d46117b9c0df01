"""RLSD: Self-Distilled RLVR (arXiv 2604.03128).

    D_t = sg(log pi_T(y_t | x, r, y_<t) - log pi(y_t | x, y_<t))        full vocabulary
    w_t = exp(sign(A) D_t)
    A_t = A [(1 - lam) + lam clip(w_t, 1 - eps, 1 + eps)]

The teacher sees the final answer only and is a snapshot of the policy, renewed every 10 steps (`teacher.weights`,
`teacher.snapshot_every`). lam falls linearly from 0.5 to 0 over 50 steps. Deviation: the weight is clamped in log
space before the exponential, which changes nothing but overflow. The paper's notes print a form with w_t in place of
the importance ratio; both public re-implementations use the advantage form, and so does this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from visd.methods.base import Method, Scores
from visd.objective.credit import annealed, evidence_weight, mixed_advantages, sampled_log_ratio
from visd.teacher.view import verified
from visd.types import PrivilegedContext, RolloutGroup, ScoreNeeds, TokenBatch, TokenCredit


@dataclass
class RLSD(Method):
    """Settings of RLSD."""

    uses_teacher: ClassVar[bool] = True

    lam: float = 0.5  # mixing weight of the teacher's evidence at step 1
    lam_steps: int = 50  # steps until it is 0; 0 keeps it
    lam_schedule: str = "linear"  # linear, cosine, constant
    eps: float = 0.2  # bound of a token's weight around 1

    def lam_at(self, step: int) -> float:
        return annealed(self.lam, step, self.lam_steps, self.lam_schedule)

    def active(self, step: int) -> bool:
        return self.lam_at(step) > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds(sampled=True) if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext(answer=verified(group.sample, None).answer)

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        if not self.active(step) or scores.teacher is None:
            return super().advantages(batch, scores, step)
        has_teacher = batch.has_teacher[:, None]
        log_ratio = sampled_log_ratio(scores.teacher, scores.student) * has_teacher
        weight = evidence_weight(log_ratio, batch.advantages, self.eps)
        advantages, multiplier = mixed_advantages(
            batch.advantages, torch.where(has_teacher, weight.value, 1.0), self.lam_at(step)
        )
        return TokenCredit(advantages, multiplier, log_ratio, weight.clipped & has_teacher)
