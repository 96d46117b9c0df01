"""OPD: on-policy distillation from another model, as in «Rethinking On-Policy Distillation» (arXiv 2604.13016).

    reward      A_t(v) = -w_v (log p_v - log q_v)  for v in S_t           gradient: sum_v sg[w_v (log p_v - log q_v)] grad log p_v
    divergence  KL(p || q), both renormalised on S_t                      (eq. 5)
    sampled     A_t = log q(y_t) - log p(y_t)

p is the student, q an external, frozen teacher (`teacher.weights=external`) that is shown nothing more than the student. S_t is
`support`: the K most probable ids of the student (published default, K = 16), of the teacher, of both (`union`,
`intersection`, or `difference`, the ids that only one of them has), or `full`. `estimator` takes the released code's
per-candidate reward, with true log-probabilities and weights w that sum to 1 over S_t, or the paper's divergence; they
agree in gradient where S_t is the whole vocabulary. For `difference` the code weighs by p as it is. `grpo_weight`
adds the reward's advantage (0: none; the code's combined estimator has 1). Published: temperature 1, 4 rollouts, learning
rate 1e-6, mean over tokens, no KL to a reference.

Deviations: with one update a rollout every importance ratio is 1, so the code's clip of each candidate's ratio is not
there; the term's value is logged as sum_v w_v (log p_v - log q_v). Silent in the paper and decided here: the weights of
`weighting=uniform` are 1 / |S_t|; a token whose intersection is empty gives nothing and counts in the mean.
`teacher.overlap_k` logs the paper's diagnostics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visd.config import RunConfig
from visd.methods.base import Method, Scores
from visd.methods.checks import check_choice, check_external, check_range
from visd.objective.credit import added_advantages, sampled_log_ratio
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, Term, TokenBatch, TokenCredit, TokenScores

SUPPORTS = ("sampled", "student", "teacher", "union", "intersection", "difference", "full")
BOTH = ("union", "intersection", "difference")


@dataclass
class OPD(Method):
    """Settings of OPD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    support: str = (
        "student"  # ids compared: sampled, student, teacher, union, intersection, difference (of their top_k) or full
    )
    top_k: int = 16  # most probable ids of each model
    estimator: str = (
        "reward"  # reward (the released code's, true log-probabilities) or divergence (renormalised, eq. 5)
    )
    weighting: str = "student"  # weights of the estimator reward: probabilities of student or teacher, or uniform
    weight: float = 1.0  # of the distillation; 0 asks no teacher
    grpo_weight: float = 0.0  # of the reward's advantage beside it

    def __post_init__(self) -> None:
        check_choice("support", self.support, SUPPORTS)
        check_choice("estimator", self.estimator, ("reward", "divergence"))
        check_choice("weighting", self.weighting, ("student", "teacher", "uniform"))
        check_range("top_k", self.top_k, 1, float("inf"))
        check_range("weight", self.weight, 0, float("inf"))
        check_range("grpo_weight", self.grpo_weight, 0, float("inf"))

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_external(config, "opd")

    def active(self, step: int) -> bool:
        return self.weight > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        if not self.active(step):
            return None
        if self.support in ("sampled", "full"):
            return ScoreNeeds(full=self.support == "full")
        return ScoreNeeds(top_k=self.top_k, support="both" if self.support in BOTH else self.support)  # type: ignore[arg-type]

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext()

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        addition = torch.zeros_like(scores.student.logp)
        ratio = None
        if scores.teacher is not None:
            ratio = torch.where(batch.taught, sampled_log_ratio(scores.teacher, scores.student), 0.0)
            if self.support == "sampled":
                addition = self.weight * ratio
        total, weights = added_advantages(batch.advantages * self.grpo_weight, addition)
        return TokenCredit(total, weights * self.grpo_weight if self.support != "sampled" else weights, ratio)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None or self.support == "sampled":
            return {}
        p, q, valid = self.candidates(scores.student, scores.teacher.detach())
        value = self.estimate(p, q, valid)
        return {"distillation": Term(value, batch.taught, self.weight)}

    def candidates(self, student: TokenScores, teacher: TokenScores) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of both models at the ids compared, and which entries count, each [B, T, C]."""
        if self.support == "full":
            assert student.full_logp is not None and teacher.full_logp is not None
            p, q = student.full_logp, teacher.full_logp
            return p, q, p.isfinite() & q.isfinite()
        assert student.support_logp is not None and teacher.support_logp is not None
        p, q = student.support_logp, teacher.support_logp
        valid = p.isfinite() & q.isfinite()
        return (p, q, valid & self._members(teacher)) if self.support in BOTH else (p, q, valid)

    def _members(self, teacher: TokenScores) -> Tensor:
        """[B, T, 2K] bool: which of the student's K ids and then the teacher's K belong to the set; each id once."""
        assert teacher.support_ids is not None
        first, second = teacher.support_ids.chunk(2, dim=-1)
        same = first[..., :, None] == second[..., None, :]
        common, seen = same.any(-1), same.any(-2)
        if self.support == "intersection":
            return torch.cat([common, torch.zeros_like(seen)], dim=-1)
        mine = ~common if self.support == "difference" else torch.ones_like(common)
        return torch.cat([mine, ~seen], dim=-1)

    def estimate(self, p: Tensor, q: Tensor, valid: Tensor) -> Tensor:
        """The loss of each token, [B, T], from log-probabilities at its candidates."""
        p, q = (torch.where(valid, x, 0.0) for x in (p, q))
        if self.estimator == "divergence":
            log_p, log_q = (_restricted(x, valid) for x in (p, q))
            return torch.where(valid, log_p.exp() * (log_p - log_q), 0.0).sum(-1)
        rewards = (self._weights(p, q, valid) * (p - q)).detach()
        surrogate = (rewards * p).sum(-1)
        return (
            surrogate - surrogate.detach() + rewards.sum(-1)
        )  # the value of the divergence, the gradient of the reward

    def _weights(self, p: Tensor, q: Tensor, valid: Tensor) -> Tensor:
        if self.support == "difference":
            return p.exp() * valid
        if self.weighting == "uniform":
            return valid / valid.sum(-1, keepdim=True).clamp(min=1)
        return _restricted(p if self.weighting == "student" else q, valid).exp() * valid


def _restricted(logp: Tensor, valid: Tensor) -> Tensor:
    """The distribution over the valid entries; 0 at the others, and everywhere where there are none."""
    some = valid.any(-1, keepdim=True)
    inside = torch.where(valid | ~some, logp, -torch.inf)
    return torch.where(valid, logp - torch.logsumexp(inside, -1, keepdim=True), 0.0)
