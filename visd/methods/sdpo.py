"""SDPO: Reinforcement Learning via Self-Distillation (arXiv 2601.20802).

    L = sum_t w_t min(p(y_t) / p_old(y_t), is_clip) JSD_alpha(p_t, q_t)    over rollouts that have a context

q is the teacher (an average of the policy, or `teacher.weights=trust_region`) shown a successful rollout of the same group or the
feedback on this one; p is the student, on its own top K ids and a bucket for all others. The loss replaces the reward's
unless `grpo_share` mixes it in (eq. 3): advantages times grpo_share, this loss times 1 - grpo_share.

Two published settings: config `sdpo` (no feedback: K = 100, JSD 0.5, EMA 0.05) and `sdpo_feedback` (K = 20, reverse KL,
EMA 0.01, feedback where no rollout succeeded). Recommended by the paper: learning rate 1e-5 and 1e-6, warm-up of 10 steps.

Where paper, code and TRL disagree, the released code is followed: a rollout is never its own solution (`own_success`; the
paper's table allows it), reasoning is stripped from the solution (`strip_think`), feedback is shown only where there is no
solution (`feedback`), the first successful rollout is taken. The code's mean over micro-batches of one rollout is the mean
over all rollouts of token means, `objective.aggregation=sequence`; rollouts without context count as 0. Deviations: success
is measured by accuracy alone (`success_threshold`), since rewards here may hold bonuses for form; with one update a rollout
the code's two importance ratios are one, against the engine's probabilities (`is_clip`); feedback comes from the judge; the
clip of advantages of the paper's test-time section is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from visd.config import RunConfig
from visd.methods.base import Method, Scores, StepView
from visd.methods.checks import check_choice, check_context, check_range
from visd.objective.credit import sampled_log_ratio
from visd.objective.divergence import distillation, support_needs
from visd.objective.loss import truncated_ratio
from visd.observe.accumulate import Metrics, reduce
from visd.teacher.siblings import solution_text, successful
from visd.types import PrivilegedContext, RolloutGroup, Sample, ScoreNeeds, Term, TokenBatch, TokenCredit

FEEDBACK = ("never", "without_solution", "always")
SUPPORTS = ("student", "teacher", "full", "sampled")


@dataclass
class SDPO(Method):
    """Settings of SDPO."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    alpha: float = 0.5  # divergence: 0 forward KL, 1 reverse KL, between them generalised JSD, which is smaller
    support: str = "student"  # student or teacher (whose top_k ids), full, or sampled (the sampled token, alpha 1)
    top_k: int = 100  # ids of the support
    tail: bool = True  # a bucket for all ids outside the support; false renormalises
    grpo_share: float = 0.0  # weight of the reward's advantage beside the distillation; 1 is GRPO
    is_clip: float = 2.0  # cap of the importance ratio between student and engine; 0 leaves it out
    success_threshold: float = 0.5  # accuracy from which a rollout may be shown as a solution
    own_success: bool = False  # whether a rollout may be shown to its own teacher
    strip_think: bool = True  # show a solution without its reasoning
    feedback: str = "never"  # show the judge's feedback: never, without_solution, always

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        check_range("grpo_share", self.grpo_share, 0, 1)
        check_choice("support", self.support, SUPPORTS)
        check_choice("feedback", self.feedback, FEEDBACK)
        if self.support == "sampled":
            check_range("alpha (with method.support=sampled)", self.alpha, 1, 1)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "peers", "which this method fills with a successful rollout")
        if self.feedback != "never":
            check_context(config, "feedback", "which method.feedback asks for")

    def active(self, step: int) -> bool:
        return self.grpo_share < 1

    def wants_judge(self, step: int) -> bool:
        return self.active(step) and self.feedback != "never"

    def needs(self, step: int) -> ScoreNeeds | None:
        return support_needs(self.support, self.top_k) if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        solutions = successful(group, self.success_threshold, without=None if self.own_success else index)
        peers = tuple(solution_text(group.rollouts[i], self.strip_think) for i in solutions[:1])
        report = group.reports[index] if group.reports else None
        shown = self.feedback == "always" or (self.feedback == "without_solution" and not peers)
        feedback = report.feedback if shown and report is not None and report.usable else None
        context = PrivilegedContext(peers=peers, feedback=feedback or None)
        return None if context.empty else context

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """Shares of groups and rollouts with a success, and of rollouts with a context."""
        metrics = Metrics()
        for group in seen.groups:
            right = set(successful(group, self.success_threshold))
            metrics.mean("success_group_share", [bool(right)])
            metrics.mean("success_share", (i in right for i in range(len(group.rollouts))))
            metrics.mean("context_share", ((group.sample.id, i) in seen.teacher for i in range(len(group.rollouts))))
        return reduce(metrics, seen.gather)

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        share = torch.full_like(scores.student.logp, self.grpo_share)
        ratio = None if scores.teacher is None else sampled_log_ratio(scores.teacher, scores.student)
        return TokenCredit(batch.advantages[:, None] * share, share, ratio)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None:
            return {}
        value = distillation(scores.student, scores.teacher, self.support, self.alpha, self.tail)
        importance = truncated_ratio(scores.student.logp, batch.engine_logp, self.is_clip)
        return {"distillation": Term(value * importance.value, batch.taught, 1 - self.grpo_share, importance.clipped)}
