"""SRPO: Sample-Routed Policy Optimization (arXiv 2604.02288).

    z_i = 1 if rollout i is wrong and another rollout of its group is right, else 0
    w_t = exp(-beta H(q_t)) / mean of exp(-beta H(q)) over all tokens with z = 1
    L   = [sum_{z = 0} GRPO_t + sum_{z = 1} w_t SDPO_t] / all response tokens of the step

GRPO for right rollouts and for those without a right sibling, SDPO's loss (`SDPO`, same support, divergence and context) for
the others. Advantages are of the whole group. Both branches share one denominator, `objective.aggregation=token`.
Recommended by the paper: learning rate 5e-6, warm-up of 10 steps.

Where the paper is silent: the tokens over which w has mean 1 are those of the whole step, over all ranks; the entropy is of
the full vocabulary; which right sibling is shown: the first, as in SDPO's code. The paper divides by the group's deviation
in one place and not in another: `objective.advantage_std`, off as in SDPO's code. The lower clip is not given: 0.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from visd.methods.base import Scores, StepView
from visd.methods.checks import check_range
from visd.methods.sdpo import SDPO
from visd.objective.divergence import support_needs
from visd.objective.loss import truncated_ratio
from visd.observe.accumulate import Metrics, reduce
from visd.teacher.siblings import succeeded
from visd.types import PrivilegedContext, RolloutGroup, ScoreNeeds, Term, TokenBatch, TokenCredit


@dataclass
class SRPO(SDPO):
    """Settings of SRPO."""

    beta: float = 1.0  # how much less a token counts where the teacher is uncertain; 0 weighs all alike
    grpo_share: float = field(default=0.0, init=False)  # routing takes its place
    feedback: str = field(default="never", init=False)  # a route needs a right sibling
    own_success: bool = field(default=False, init=False)

    _mean_weight: float = field(default=1.0, init=False, repr=False)  # of exp(-beta H) over this step's routed tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("beta", self.beta, 0, float("inf"))

    def needs(self, step: int) -> ScoreNeeds | None:
        return support_needs(self.support, self.top_k, entropy=True)

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return None if succeeded(group, index, self.success_threshold) else super().context(group, index)

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """Shares as of SDPO, where `context_share` is the share routed to distillation, and the mean of exp(-beta H)."""
        metrics = Metrics()
        for scores in seen.teacher.values():
            assert scores.entropy is not None
            metrics.mean("entropy_weight", (-self.beta * scores.entropy.double()).exp().tolist())
            metrics.mean("teacher_entropy", scores.entropy.tolist())
        found = reduce(metrics, seen.gather)
        self._mean_weight = found.get("entropy_weight", 1.0)
        return super().observe(seen, step) | found

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        importance = truncated_ratio(scores.student.logp, batch.engine_logp, self.is_clip)
        weights = torch.where(batch.has_teacher[:, None], 0.0, importance.value)
        ratio = super().advantages(batch, scores, step).log_ratio
        return TokenCredit(batch.advantages[:, None] * weights, weights, ratio, importance.clipped)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        terms = super().terms(batch, scores, step)
        for term in terms.values():
            assert scores.teacher is not None and scores.teacher.entropy is not None
            term.value = term.value * (-self.beta * scores.teacher.entropy).exp() / self._mean_weight
        return terms
