"""AntiSD as its code was released (FloyedShen/AntiSD; paper: arXiv 2605.11609). It differs from `antisd` in all but phi.

    perp_i = exp(-mean_t log pi(y_t | x, c, y_<t))
    lam_i  = clamp(lam_scale log(clamp(perp_i / (gate_off perp_warm), 0.5, 3)), 0, lam) if perp_i <= perp_limit, else 0
    A_t    = A + g lam_i clip(standardised(-phi(u_t)), -5, 5)

u is 0 where |u| > outlier sigma_warm and is clamped to +-5; the standardisation is over each rollout (mean 0, population
variance 1), which removes the sign structure of -phi. g is a trigger on the mean perplexity of the step's rollouts with
perp <= perp_limit, off below 0.93 and on from 1.07 times the median of the warm-up (at least `perp_floor`). The teacher is
shown right rollouts of the group only (at most 3072 tokens), and the assessment alone where there is none.

Not described publicly and decided here: sigma_warm is the median over the warm-up's steps of the deviation of u; u is taken
there against the engine's log-probabilities. The cut of a solution at its answer is not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visd.methods.antisd import AntiSD, phi
from visd.methods.base import Scores, StepView
from visd.observe.accumulate import Metrics, Std, reduce
from visd.types import ScoreNeeds, TokenBatch


@dataclass
class AntiSDCode(AntiSD):
    """Settings of AntiSD's code."""

    gate_on: float = 1.07  # on again from this share of the median
    reference: str = "none"  # shown where no rollout is right: rationale (verified reasoning), answer or none
    solution_tokens: int = 3072  # most tokens of a rollout that are shown; 0 shows all
    lam_scale: float = 0.2  # of the logarithm of a rollout's perplexity over the threshold
    perp_limit: float = 3.0  # a rollout of a higher teacher perplexity gets no signal
    perp_floor: float = 1.01  # least median of the warm-up
    outlier: float = 2.0  # ratios beyond so many deviations of the warm-up count as 0
    limit: float = 5.0  # bound of a log ratio, and of the standardised signal
    max_length: int = 0  # rollouts of so many tokens get no signal; 0 sets no limit

    _sigmas: list[float] = field(default_factory=list, init=False, repr=False)  # of u, by warm-up step

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds() if self.active(step) else None

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """The gate's decision from the mean perplexity of the step."""
        metrics = Metrics()
        engine = {(g.sample.id, i): r.logp for g in seen.groups for i, r in enumerate(g.rollouts)}
        for key, scores in seen.teacher.items():
            logp = scores.logp.double().cpu()
            metrics.mean("perplexity", [v for v in [math.exp(-logp.mean().item())] if v <= self.perp_limit])
            metrics.add("sigma", Std.of((logp - torch.tensor(engine[key], dtype=torch.float64)).tolist()))
        found = reduce(metrics, seen.gather)
        if "perplexity" not in found:
            self._lam = 0.0
            return found | {"lam_max": 0.0}
        if not self._gate.warm:
            self._sigmas.append(found["sigma"])
        is_on = self._gate.feed(max(found["perplexity"], self.perp_floor)) or not self.gate
        self._lam = self.lam if is_on and self._gate.warm else 0.0
        return found | {"lam_max": self._lam, "gate": float(is_on)}

    def lam_of(self, perplexity: Tensor) -> Tensor:
        """The weight of each rollout's signal, [B]."""
        relative = (perplexity / (self.gate_off * self._gate.median)).clamp(0.5, 3.0)
        lam = (self.lam_scale * relative.log()).clamp(0.0, self._lam)
        return torch.where(perplexity <= self.perp_limit, lam, 0.0)

    def signal(self, batch: TokenBatch, scores: Scores, log_ratio: Tensor) -> tuple[Tensor, Tensor | None]:
        assert scores.teacher is not None
        if self._lam == 0:
            return torch.zeros_like(log_ratio), None
        mask = batch.mask
        count = mask.sum(-1)
        perplexity = (-(scores.teacher.logp * mask).sum(-1) / count.clamp(min=1)).exp()
        lam = self.lam_of(perplexity)
        if self.max_length:
            lam = torch.where(count < self.max_length, lam, 0.0)
        sigma = float(np.median(self._sigmas))
        kept = torch.where(log_ratio.abs() > self.outlier * sigma, 0.0, log_ratio).clamp(-self.limit, self.limit)
        signal = standardised(self.sign * phi(kept), mask)
        return lam[:, None] * signal.clamp(-self.limit, self.limit), (kept != log_ratio) | (signal.abs() > self.limit)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"sigmas": list(self._sigmas)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sigmas = list(state["sigmas"])


def standardised(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and population variance 1 over each row's tokens, [B, T]; 0 where a row does not vary."""
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    centred = torch.where(mask, values - (values * mask).sum(-1, keepdim=True) / count, 0.0)
    deviation = ((centred**2).sum(-1, keepdim=True) / count).sqrt()
    # Below the rounding of the values themselves a deviation is noise, which a division would blow up.
    return torch.where(deviation > 1e-6, centred / deviation.clamp(min=1e-6), 0.0)
