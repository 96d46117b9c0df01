"""GKD: Generalized Knowledge Distillation (arXiv 2306.13649).

    L = (1 - r) sum_t w_t JSD_beta(q_t, p_t) - r E[reward]        JSD_beta = beta KL(q || m) + (1 - beta) KL(p || m)

p is the student on its own rollouts, q an external, frozen teacher (`teacher.weights=external`), m = beta q + (1 - beta) p; beta 0
is the forward KL and beta 1 the reverse KL, as in TRL (where the loss jumps, by 1 / beta and 1 / (1 - beta)). w_t is the token's
share of `objective.aggregation`. `reward_share` is r, the paper's mix with a reward; it advises reverse KL or beta 0.9 then.
Full vocabularies of both are held in memory, the teacher's for a step; `support=teacher` or `student` reads `top_k` ids.

Deviations: the paper starts from a student after supervised training (`stage=sft`). Its share of training on the data's own
answers (lambda below 1) is not there: `on_policy` must be 1. TRL's defaults are beta 0.5 and temperature 0.9; the temperature
is `rollout.temperature` and divides the logits of both models here, in TRL's loss it is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from visd.config import ConfigError, RunConfig
from visd.methods.base import Method, Scores
from visd.methods.checks import check_choice, check_external, check_range
from visd.objective.credit import sampled_log_ratio
from visd.objective.divergence import distillation, support_needs
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, Term, TokenBatch, TokenCredit


@dataclass
class GKD(Method):
    """Settings of GKD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    beta: float = 0.5  # divergence: 0 forward KL, 1 reverse KL, between them generalised JSD
    support: str = "full"  # full; student or teacher (whose top_k ids); sampled (reverse KL of the sampled token)
    top_k: int = 100  # ids of the supports student and teacher
    tail: bool = True  # a bucket for all ids outside these; false renormalises
    reward_share: float = 0.0  # weight of the reward's advantage; the divergence gets the rest, and 1 is GRPO
    on_policy: float = 1.0  # share of steps on the student's own rollouts; only 1 is possible

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1)
        check_range("reward_share", self.reward_share, 0, 1)
        check_choice("support", self.support, ("full", "student", "teacher", "sampled"))
        if self.support == "sampled":
            check_range("beta (with method.support=sampled)", self.beta, 1, 1)
        if self.on_policy != 1:
            raise ConfigError(
                f"method.on_policy: {self.on_policy} must be 1, since every answer of a step is sampled from the student; "
                "for training on the data's answers run stage=sft first."
            )

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_external(config, "gkd")

    def active(self, step: int) -> bool:
        return self.reward_share < 1

    def needs(self, step: int) -> ScoreNeeds | None:
        return support_needs(self.support, self.top_k) if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext()

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        share = torch.full_like(scores.student.logp, self.reward_share)
        ratio = None if scores.teacher is None else sampled_log_ratio(scores.teacher, scores.student)
        return TokenCredit(batch.advantages[:, None] * share, share, ratio)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None:
            return {}
        value = distillation(scores.student, scores.teacher, self.support, self.beta, self.tail)
        return {"distillation": Term(value, batch.taught, 1 - self.reward_share)}
