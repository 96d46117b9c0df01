"""AntiSD: Anti-Self-Distillation by pointwise mutual information (arXiv 2605.11609), the paper's recipe.

    u_t    = sg(log pi(y_t | x, c, y_<t) - log pi(y_t | x, y_<t))          c: a verified solution and an assessment
    phi(u) = (softplus(u) - log 2) / 2
    A_t    = A - g lam phi(u_t)

The teacher has the current weights. The added term is the pointwise ascent direction of JSD(student, teacher): it rewards
tokens that the solution makes less likely, by at most log(2) / 2, and punishes those it gives away. It does not need an
advantage, so groups without variance learn too. g is a Schmitt trigger on the median H of the teacher's token entropies:
0 during `warmup_steps` steps, whose median is H_warm; then off below `gate_off` H_warm, on again from `gate_on` H_warm.

`direction=toward` adds + phi instead: the self-distillation baseline of the released code. The code's other recipe is
`antisd_code`; do not mix them. Silent in the paper and decided here: g starts on after the warm-up (`gate_starts_on`);
H_warm is the median of the warm-up steps' medians; a rollout is not its own solution (`own_success`); which right rollout
is shown: any, drawn from the rollout's seed; what stands for the data's solution where no rollout is right (`reference`):
the verified answer, as the paper's data holds no more. Published: learning rate 1e-6, clip 0.2, no KL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from visd.config import RunConfig
from visd.methods.base import Method, Scores, StepView
from visd.methods.checks import check_choice, check_context
from visd.objective.credit import added_advantages, sampled_log_ratio
from visd.seeding import generator
from visd.teacher.siblings import (
    REFERENCES,
    check_references,
    reference_solution,
    solution_text,
    succeeded,
    successful,
)
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, TokenBatch, TokenCredit


def phi(u: Tensor) -> Tensor:
    """(softplus(u) - log 2) / 2: -phi(log q - log p) = log(p / m) / 2 with m = (p + q) / 2."""
    return 0.5 * (softplus(u) - math.log(2))


@dataclass
class Gate:
    """A Schmitt trigger around the median of a warm-up."""

    off: float  # share of the median below which it goes off
    on: float  # share of the median at which it goes on again
    warmup: int  # values of the warm-up
    is_on: bool  # after the warm-up
    seen: list[float] = field(default_factory=list)  # values of the warm-up

    @property
    def warm(self) -> bool:
        return len(self.seen) >= self.warmup

    @property
    def median(self) -> float:
        return float(np.median(self.seen)) if self.seen else math.nan

    def feed(self, value: float) -> bool:
        """Take a step's value; whether the signal is on at this step."""
        if not self.warm:
            self.seen.append(value)
            return False
        if value < self.off * self.median:
            self.is_on = False
        elif value >= self.on * self.median:
            self.is_on = True
        return self.is_on


@dataclass
class AntiSD(Method):
    """Settings of AntiSD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    lam: float = 0.5  # weight of the added signal while the gate is on
    direction: str = "away"  # away from the teacher, or toward it (the self-distillation baseline)
    gate: bool = True  # switch the signal off while the teacher's entropy is low; without it training collapsed
    warmup_steps: int = 5  # steps without the signal, whose median is what the gate compares with; 0 with gate=false
    gate_off: float = 0.93  # off below this share of the median
    gate_on: float = 1.0  # on again from this share of the median
    gate_starts_on: bool = True  # whether the signal is on after the warm-up
    reference: str = "answer"  # shown where no rollout is right: rationale (verified reasoning), answer or none
    assessment: bool = True  # also tell the teacher whether this rollout is right
    own_success: bool = False  # whether a right rollout may be shown to its own teacher
    success_threshold: float = 0.5  # accuracy from which a rollout is right
    strip_think: bool = False  # show a rollout without its reasoning
    solution_tokens: int = 0  # most tokens of a rollout that are shown; 0 shows all

    _gate: Gate = field(init=False, repr=False)
    _lam: float = field(default=0.0, init=False, repr=False)  # of this step

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, ("away", "toward"))
        check_choice("reference", self.reference, REFERENCES)
        self._gate = Gate(self.gate_off, self.gate_on, self.warmup_steps, self.gate_starts_on)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "peers", "which this method fills with a right rollout")
        if self.reference != "none":
            check_context(config, "reference", "which method.reference asks for")
            check_references(samples, self.reference, "method.reference")
        if self.assessment:
            check_context(config, "feedback", "which method.assessment asks for")

    def active(self, step: int) -> bool:
        return self.lam > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds(entropy=True) if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        """A right rollout, else the data's solution, and whether this rollout is right."""
        right = successful(group, self.success_threshold, without=None if self.own_success else index)
        peers: tuple[str, ...] = ()
        if right:
            pick = generator("solution", group.sample.id, group.rollouts[index].seed).integers(len(right))
            peers = (solution_text(group.rollouts[right[pick]], self.strip_think, self.solution_tokens),)
        told = "correct" if succeeded(group, index, self.success_threshold) else "incorrect"
        context = PrivilegedContext(
            peers=peers,
            reference=None if peers else reference_solution(group.sample, self.reference),
            feedback=told if self.assessment else None,
        )
        return None if context.empty else context

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """The gate's decision from the median teacher entropy over all tokens of the step."""
        mine = [s.entropy.double().cpu().numpy() for s in seen.teacher.values() if s.entropy is not None]
        entropies = np.concatenate(seen.gather(np.concatenate(mine) if mine else np.empty(0)))
        if not entropies.size:
            self._lam = 0.0
            return {"lam": 0.0}
        median = float(np.median(entropies))
        is_on = self._gate.feed(median) if self.gate else True
        self._lam = self.lam if is_on else 0.0
        return {"lam": self._lam, "gate": float(is_on), "teacher_entropy_median": median}

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        if scores.teacher is None:
            return super().advantages(batch, scores, step)
        log_ratio = torch.where(batch.taught, sampled_log_ratio(scores.teacher, scores.student), 0.0)
        signal, clipped = self.signal(batch, scores, log_ratio)
        advantages, weights = added_advantages(batch.advantages, torch.where(batch.taught, signal, 0.0))
        return TokenCredit(advantages, weights, log_ratio, clipped)

    def signal(self, batch: TokenBatch, scores: Scores, log_ratio: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is added to the advantage, [B, T], and where a bound decided it."""
        return self._lam * self.sign * phi(log_ratio), None

    @property
    def sign(self) -> float:
        return -1.0 if self.direction == "away" else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self._gate.seen), "is_on": self._gate.is_on}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gate.seen, self._gate.is_on = list(state["seen"]), bool(state["is_on"])
