"""SOD: Step-wise On-policy Distillation for agents with tools (arXiv 2605.07725).

    d_k = mean over step k of |log pi_old(y_t) - log pi_T(y_t)|
    w_k = min((d_1 + eps) / (d_k + eps), 1 + delta)
    A_t = A + opd_weight w_k(t) (log pi_T(y_t) - log pi_old(y_t))

A step is one contiguous run of tokens that the policy wrote; between steps a tool speaks, whose tokens count nowhere. A bad
call leads the policy where the teacher never was, so that its later verdicts are worth less: w falls as d rises. The
running product of the paper's eq. 7 telescopes to w as it stands here. Rollouts with tools come from
`rollout.engine=visd.rollout.turns.TurnsEngine`, whose tools are a calculator and, for video, `zoom`, which shows frames of
a window (`rollout.engine.tools=[calculator,zoom]`, and `prompt.system` must say how they are called). With another engine a
rollout is one step and this is GRPO with uniform distillation. Published: learning rate 1e-6, 16 rollouts, 16 turns, clip 0.2 and 0.28, no KL, token mean, delta 0.2.

The published teacher is another, larger model without privileged context (config `sod`: `teacher.weights=external`,
`reference=none`). With the teachers made of the policy itself it must see something that the policy does not: the verified
answer (`reference=answer`, as in the paper's comparison with OPSD; config `sod_self`) or reasoning (`rationale`).

Paper and code disagree or are silent, decided here: the added term is detached and part of the advantage, as in the code
(through eq. 8 as printed, no gradient would hold the teacher); with one update a rollout pi_old is the current policy; d_1
near 0 makes all later weights near 0, as in the code, unless `floor` bounds d_1 and d_k below. The gated mode of the code
is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visd.config import ConfigError, RunConfig
from visd.methods.base import Method, Scores, StepView
from visd.methods.checks import check_choice, check_context, check_range
from visd.objective.credit import added_advantages, sampled_log_ratio
from visd.observe.accumulate import Metrics, reduce
from visd.teacher.siblings import REFERENCES, check_references, reference_solution
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, TokenBatch, TokenCredit

EPS = 1e-6
"""Added to both means of a weight's ratio."""


def step_ids(mask: Tensor) -> Tensor:
    """The number of each token's step, from 1; 0 outside the mask, [B, T] long."""
    before = torch.nn.functional.pad(mask[:, :-1], (1, 0), value=False)
    return (mask & ~before).long().cumsum(-1) * mask


def step_means(values: Tensor, steps: Tensor) -> Tensor:
    """The mean of each step's values, [B, S]; 0 for a step that a row does not have."""
    count = max(int(steps.max()), 1) if steps.numel() else 1
    sums = values.new_zeros(len(values), count + 1).scatter_add(1, steps, values)
    counts = values.new_zeros(len(values), count + 1).scatter_add(1, steps, torch.ones_like(values))
    return (sums / counts.clamp(min=1))[:, 1:]


def step_weights(gaps: Tensor, delta: float, floor: float = 0.0) -> Tensor:
    """w_k from d_k, both [B, S]; the first is 1."""
    bounded = gaps.clamp(min=floor)
    weights = ((bounded[:, :1] + EPS) / (bounded + EPS)).clamp(max=1 + delta)
    return torch.cat([torch.ones_like(weights[:, :1]), weights[:, 1:]], dim=1)


@dataclass
class SOD(Method):
    """Settings of SOD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    opd_weight: float = 1.0  # weight of the distillation; 0 is GRPO
    delta: float = 0.2  # a step's weight is at most 1 + delta
    floor: float = 0.0  # least mean gap of a step, nats, in its weight; 0 as published
    reference: str = (
        "answer"  # what a teacher made of the policy sees: answer, rationale; none with an external teacher
    )

    def __post_init__(self) -> None:
        check_range("opd_weight", self.opd_weight, 0, float("inf"))
        check_range("delta", self.delta, 0, float("inf"))
        check_range("floor", self.floor, 0, float("inf"))
        check_choice("reference", self.reference, REFERENCES)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        if self.reference == "none":
            if config.teacher.weights != "external":
                raise ConfigError(
                    f"method.reference: none leaves a teacher with teacher.weights={config.teacher.weights} nothing to "
                    "tell the policy; take answer or rationale, or an external teacher."
                )
            return
        check_context(config, "reference", "which sod fills with the reference solution")
        check_references(samples, self.reference, "method.reference")

    def active(self, step: int) -> bool:
        return self.opd_weight > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds() if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext(reference=reference_solution(group.sample, self.reference))

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """Steps of a rollout, over the whole step."""
        metrics = Metrics()
        for group in seen.groups:
            for rollout in group.rollouts:
                own = torch.tensor([rollout.own or (True,) * len(rollout.token_ids)], dtype=torch.bool)
                metrics.mean("steps", [int(step_ids(own).max()) if own.numel() else 0])
        return reduce(metrics, seen.gather)

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        if scores.teacher is None:
            return super().advantages(batch, scores, step)
        log_ratio = torch.where(batch.taught, sampled_log_ratio(scores.teacher, scores.student), 0.0)
        weight, clipped = self.weight(log_ratio, batch.taught)
        advantages, weights = added_advantages(batch.advantages, self.opd_weight * weight * log_ratio)
        return TokenCredit(torch.where(batch.mask, advantages, 0.0), weights, log_ratio, clipped)

    def weight(self, log_ratio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """w_k(t), 0 outside the mask, and where it is at its upper bound, both [B, T]."""
        steps = step_ids(mask)
        by_step = step_weights(step_means(log_ratio.abs() * mask, steps), self.delta, self.floor)
        weight = torch.nn.functional.pad(by_step, (1, 0)).gather(1, steps)
        return weight, weight >= 1 + self.delta
