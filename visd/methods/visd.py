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

Options besides: the mean weight of a rollout made 1 again (`mean_one`), weights at tokens the student is unsure of
(`entropy_share`) or in a part of the rollout (`position_from`, `position_until`) alone, and lam that follows the distance of
teacher and student (`lam_schedule=gap`): lam times the step's mean |log teacher - log policy| of the sampled tokens over
that of the first step, so that a teacher which has nothing left to say is not listened to. None of these is in the paper.

The defaults lam 1 and eps 0.8 were found on the small world (docs/results.md), whose warm start teaches to read privileged
text. A teacher that cannot use it weighs tokens by what it happens to prefer, which at lam 1 can drown the reward: start
from the published lam 0.5 and eps 0.2 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visd.config import ConfigError
from visd.methods.base import Method, Scores, Services, StepView
from visd.methods.checks import check_choice, check_range
from visd.methods.controls import CONTROLS, Feedback, random_weights, shuffled_feedback
from visd.objective.credit import (
    annealed,
    dimension_weight,
    evidence_weight,
    mean_one,
    mixed_advantages,
    restricted_log_ratio,
    sampled_log_ratio,
    tokens_between,
    uncertain_tokens,
)
from visd.teacher.view import verified
from visd.types import PrivilegedContext, RolloutGroup, ScoreNeeds, TokenBatch, TokenCredit


@dataclass
class VISD(Method):
    """Settings of VISD."""

    uses_teacher: ClassVar[bool] = True

    lam: float = 1.0  # mixing weight of the evidence at step 1
    lam_steps: int = 600  # steps until it is 0; 0 keeps it
    lam_schedule: str = "linear"  # linear, cosine, constant, or gap: with the distance of teacher and policy over the first step's, until lam_steps
    eps: float = 0.8  # bound of a token's weight around 1
    top_k: int = 16  # teacher's most probable ids the ratio is restricted to; 0: full vocabulary
    gamma: float = 0.0  # share of the full-vocabulary ratio beside the restricted one
    dimension_strength: float = 1.0  # difference of the weights of judge scores 1 and 0; 0 switches g off
    mean_one: bool = False  # divide the weights of a rollout by their mean, within the same bound
    entropy_share: float = (
        1.0  # share of a rollout's tokens, those the student is least sure of, that get a weight; others keep 1
    )
    position_from: float = 0.0  # share of a rollout's length at which tokens begin to get a weight; those before keep 1
    position_until: float = 1.0  # share of its length from which they keep 1 again
    feedback: bool = True  # ask the judge and show its feedback to the teacher
    control: str = "none"  # to compare with: none, shuffled_feedback (the teacher reads another sample's), random_weights (a rollout's weights on other tokens of it)

    def __post_init__(self) -> None:
        self._shuffled: Feedback = {}
        self._first_gap, self._gap_share = 0.0, 1.0
        check_choice("lam_schedule", self.lam_schedule, ("linear", "cosine", "constant", "gap"))
        check_range("entropy_share", self.entropy_share, 0, 1)
        if not 0 <= self.position_from < self.position_until <= 1:
            raise ConfigError(
                f"method.position_from: {self.position_from} must lie below position_until, {self.position_until}, both in [0, 1]."
            )
        if self.control not in CONTROLS:
            raise ConfigError(f"method.control: {self.control!r} is not one of {', '.join(CONTROLS)}.")
        if not 0 <= self.eps < 1:
            raise ConfigError(f"method.eps: {self.eps} must lie in [0, 1), or a weight could lose its sign.")
        if not 0 <= self.lam <= 1:
            raise ConfigError(f"method.lam: {self.lam} must lie in [0, 1].")

    def lam_at(self, step: int) -> float:
        return self._scheduled(step) * self._gap_share

    def _scheduled(self, step: int) -> float:
        schedule = "constant" if self.lam_schedule == "gap" else self.lam_schedule
        return annealed(self.lam, step, self.lam_steps, schedule)

    def active(self, step: int) -> bool:
        return self._scheduled(step) > 0  # whatever the gap was, or it would never be seen to grow again

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

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        if self.lam_schedule != "gap" or not self.active(step):
            return {}
        total, count = 0.0, 0
        for group in seen.groups:
            for index, rollout in enumerate(group.rollouts):
                if (scores := seen.teacher.get((group.sample.id, index))) is not None:
                    own = torch.tensor(rollout.of_own(rollout.logp), device=scores.logp.device)
                    total, count = total + float((scores.logp - own).abs().sum()), count + len(own)
        totals, counts = zip(*seen.gather((total, count)), strict=True)
        gap = sum(totals) / max(sum(counts), 1)
        self._first_gap = self._first_gap or gap
        self._gap_share = min(1.0, gap / self._first_gap) if self._first_gap else 1.0
        return {"gap": gap, "lam": self.lam_at(step)}

    def state_dict(self) -> dict[str, Any]:
        return {"first_gap": self._first_gap} if self.lam_schedule == "gap" else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first_gap = state.get("first_gap", 0.0)

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
        bounded = self._gated(weight.clamp(1 - self.eps, 1 + self.eps), batch, scores)
        advantages, multiplier = mixed_advantages(batch.advantages, bounded, self.lam_at(step))
        return TokenCredit(advantages, multiplier, log_ratio, evidence.clipped | (bounded != weight))

    def _gated(self, weight: Tensor, batch: TokenBatch, scores: Scores) -> Tensor:
        """`mean_one`, and 1 at the tokens that are to keep it."""
        gate = batch.mask
        if self.entropy_share < 1:
            assert scores.student.entropy is not None
            gate = gate & uncertain_tokens(scores.student.entropy, batch.mask, self.entropy_share)
        if (self.position_from, self.position_until) != (0.0, 1.0):
            gate = gate & tokens_between(batch.mask, self.position_from, self.position_until)
        if self.mean_one:
            weight = mean_one(weight, gate, self.eps)
        return weight if gate is batch.mask else torch.where(gate, weight, 1.0)

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
