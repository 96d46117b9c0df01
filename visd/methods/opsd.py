"""OPSD: Self-Distilled Reasoner (arXiv 2601.18734).

    L = sum_t w_t sum_v min(q_v f(p_v / q_v), clip)      q = pi_T(. | x, reference, y_<t), p = pi(. | x, y_<t)

Forward KL over the full vocabulary from a frozen teacher that sees the sample's reference solution; no reward enters. w_t
is the token's share of `objective.aggregation`. Two recipes: version 3 of the paper (config `opsd`: forward KL with a
pointwise clip, mean over rollouts of token means) and the released code at 590ec26 (config `opsd_code`: JSD with weight
0.5, no clip, token mean).

Where paper and code disagree or are silent: the clip's value is not in the paper, 0.05 is TRL's (`clip`); which generator
is clipped is not said, TRL clips the signed one (`generator`; `signed` can push the teacher's favourite token down); frozen
teacher as in the paper, `teacher.weights` takes the others. The published runs sample one rollout a prompt
(`rollout.n=1`); any number works, since rollouts are not compared. Full vocabularies of teacher and student are held in
memory a micro-batch (student) and a step (teacher): with `support=teacher` and `top_k` they are not. Deviation: the teacher
sees the solution after the question (`teacher.layout=opsd`) and generates no analysis of it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from visd.config import RunConfig
from visd.methods.base import Method, Scores, without_reward
from visd.methods.checks import check_choice, check_context, check_range
from visd.objective.divergence import clipped_forward_kl, distillation, renormalised, support_needs
from visd.teacher.siblings import REFERENCES, check_references, reference_solution
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, Term, TokenBatch, TokenCredit


@dataclass
class OPSD(Method):
    """Settings of OPSD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    alpha: float = 0.0  # divergence: 0 forward KL, 1 reverse KL, between them generalised JSD
    clip: float = 0.05  # bound of each vocabulary entry's contribution to the forward KL; 0 clips nothing
    generator: str = "signed"  # contribution that is clipped: signed (q log q/p) or nonnegative (q log q/p - q + p)
    support: str = "full"  # full, teacher (its top_k, renormalised) or sampled (reverse KL of the sampled token)
    top_k: int = 100  # ids of the support `teacher`
    reference: str = "rationale"  # what the teacher sees: rationale (verified reasoning and answer) or answer

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        check_choice("generator", self.generator, ("signed", "nonnegative"))
        check_choice("support", self.support, ("full", "teacher", "sampled"))
        check_choice("reference", self.reference, REFERENCES[:2])
        if self.clip:
            check_range("clip", self.clip, 0, float("inf"))
            check_range("alpha (with method.clip > 0)", self.alpha, 0, 0)
        if self.support == "sampled":
            check_range("alpha (with method.support=sampled)", self.alpha, 1, 1)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "reference", "which opsd fills with the reference solution")
        check_references(samples, self.reference, "method.reference")

    def active(self, step: int) -> bool:
        return True

    def needs(self, step: int) -> ScoreNeeds | None:
        return support_needs(self.support, self.top_k)

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return PrivilegedContext(reference=reference_solution(group.sample, self.reference))

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        return without_reward(scores)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None:
            return {}
        student, teacher = scores.student, scores.teacher.detach()
        clipped = None
        if self.clip:
            p, q = student.full_logp, teacher.full_logp
            if self.support == "teacher":
                assert student.support_logp is not None and teacher.support_logp is not None
                p, q = renormalised(student.support_logp), renormalised(teacher.support_logp)
            assert p is not None and q is not None
            value, clipped = clipped_forward_kl(p, q, self.clip, self.generator)
        else:
            value = distillation(student, teacher, self.support, self.alpha, tail=False)
        return {"distillation": Term(value, batch.taught, 1.0, clipped)}
