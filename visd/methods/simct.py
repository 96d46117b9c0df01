"""SimCT: on-policy distillation across tokenizers (arXiv 2605.07711).

    s_M(u) = mean over the unit's tokens of log p_M(v_j | x, y_<t, v_<j)                     (eq. 7)
    q_M    = softmax of s_M over U                                                     (eq. 6 and 8)
    L      = sum over units of w_t KL(q_S || q_T)                                            (eq. 9)

The teacher is another model (`teacher.weights=external`) with a tokenizer of its own: it scores the rollout's text as its
tokenizer writes it, after its own prompt. Text is cut into minimal units, the smallest stretches that both tokenizers cut
out whole; a unit counts once, at the student's first token, with that token's share w_t of `objective.aggregation`. U holds the
tokens that both know by the same string (and the two ends of a turn), and at a unit of several tokens that unit as well.

The released code differs in three ways. `alignment=following`: what does not match is merged with the next match, and what
follows the last match is dropped. `unit_score=logits`: the mean of raw logits, whose normalisers do not cancel. And a row's only
alternative of several tokens is the unit observed there; here this is so as well: to score another one a forward of both
models would be needed for each position and alternative. `several=false` leaves units of several tokens out (strict matching).

Comparison, from TRL: `loss=uld` (sorted probabilities over both whole vocabularies, absolute difference) and `loss=gold` (generalised
JSD on shared tokens, the former on the others). There a unit's row is the first token's distribution times the probability
of the later tokens, as in GOLD's `observed` merging, with each factor read at its own position. Published: learning rate 5e-7,
one rollout a prompt, temperature 0.6, after supervised training on the teacher's answers.

Silent and decided here: a text that the teacher's tokenizer does not give back as it is (`teacher_text`) is a counted drop; a token
that holds a part of a character belongs to the unit of the whole character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visd.config import RunConfig
from visd.methods.base import Method, Scores, StepView
from visd.methods.checks import check_choice, check_external, check_range
from visd.objective.units import (
    first_tokens,
    matched_and_sorted,
    sorted_difference,
    sum_over_units,
    unit_divergence,
)
from visd.observe.accumulate import Metrics, reduce
from visd.types import (
    PrivilegedContext,
    RolloutGroup,
    Sample,
    ScoreNeeds,
    Term,
    TokenBatch,
    TokenCredit,
    TokenScores,
    UnitNeeds,
)


@dataclass
class SimCT(Method):
    """Settings of SimCT."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True
    crosses_tokenizers: ClassVar[bool] = True

    loss: str = (
        "simct"  # simct; for comparison uld (sorted probabilities) or gold (shared tokens matched, the others sorted)
    )
    alignment: str = (
        "minimal"  # units: minimal (the paper), or following (the released code merges a mismatch with the next match)
    )
    unit_score: str = "logp"  # simct: mean of log-probabilities (the paper) or of raw logits (the released code)
    several: bool = True  # compare units of several tokens too; false compares shared tokens alone
    beta: float = 0.5  # gold: of the generalised JSD on shared tokens
    matched_weight: float = -1.0  # gold: weight of shared tokens; negative: their share of the teacher's vocabulary
    weight: float = 1.0  # of the distillation; 0 asks no teacher
    grpo_weight: float = 0.0  # of the reward's advantage beside it

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, ("simct", "uld", "gold"))
        check_choice("alignment", self.alignment, ("minimal", "following"))
        check_choice("unit_score", self.unit_score, ("logp", "logits"))
        check_range("beta", self.beta, 0, 1)
        check_range("matched_weight", self.matched_weight, -1, 1)
        check_range("weight", self.weight, 0, float("inf"))
        check_range("grpo_weight", self.grpo_weight, 0, float("inf"))

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_external(config, "simct")

    def active(self, step: int) -> bool:
        return self.weight > 0

    def needs(self, step: int) -> ScoreNeeds | None:
        if not self.active(step):
            return None
        units = UnitNeeds(self.alignment, beyond=self.loss != "simct")  # type: ignore[arg-type]
        return ScoreNeeds(full=True, log_z=self.loss == "simct" and self.unit_score == "logits", units=units)

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext()

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """Shares of the student's tokens that are matched one by one, and that belong to no unit; tokens of the other units."""
        metrics = Metrics()
        for scores in seen.teacher.values():
            assert scores.units is not None
            metrics.mean("align_ratio", (scores.units > 0).tolist())
            metrics.mean("unaligned_share", (scores.units == 0).tolist())
            lengths = (-scores.units.clamp(max=0)).bincount()[1:]
            metrics.mean("unit_tokens", lengths[lengths > 0].tolist())
        return reduce(metrics, seen.gather)

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        share = torch.full_like(scores.student.logp, self.grpo_weight)
        return TokenCredit(batch.advantages[:, None] * share, share)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None:
            return {}
        student, teacher = scores.student, scores.teacher.detach()
        assert teacher.units is not None
        at = first_tokens(teacher.units) & batch.taught
        if not self.several:
            at &= teacher.units > 0
        value = torch.zeros_like(student.logp)
        value[at] = self.divergence(student, teacher, at)
        return {"distillation": Term(value, at, self.weight)}

    def divergence(self, student: TokenScores, teacher: TokenScores, at: Tensor) -> Tensor:
        """The loss of each unit, [N]; `at` [B, T] marks their first tokens."""
        assert student.full_logp is not None and teacher.full_logp is not None
        assert teacher.units is not None and teacher.logp_rest is not None
        units = teacher.units
        p, q = student.full_logp[at], teacher.full_logp[at]
        if self.loss == "simct":
            tokens = sum_over_units(torch.ones_like(student.logp), units)
            values = student.logp if student.log_z is None else student.logp + student.log_z
            score = sum_over_units(values, units) / tokens.clamp(min=1)
            if student.log_z is not None:
                score = score - student.log_z
            return unit_divergence(p, q, (score[at], teacher.logp[at]), units[at] < 0)
        p = p + (sum_over_units(student.logp, units) - student.logp)[at][:, None]
        q = q + teacher.logp_rest[at][:, None]
        if self.loss == "uld":
            return sorted_difference(p, q)
        return matched_and_sorted(p, q, self.beta, self.matched_weight)
