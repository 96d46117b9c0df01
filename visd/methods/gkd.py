"""GKD: Generalized Knowledge Distillation (arXiv 2306.13649).

    L = (1 - r) sum_t w_t JSD_beta(q_t, p_t) - r E[reward]        JSD_beta = beta KL(q || m) + (1 - beta) KL(p || m)

p is the student on its own rollouts, q an external, frozen teacher (`teacher.weights=external`), m = beta q + (1 - beta) p; beta 0
is the forward KL and beta 1 the reverse KL, as in TRL (where the loss jumps, by 1 / beta and 1 / (1 - beta)). w_t is the token's
share of `objective.aggregation`. `reward_share` is r, the paper's mix with a reward; it advises reverse KL or beta 0.9 then.
Full vocabularies of both are held in memory, the teacher's for a step; `support=teacher` or `student` reads `top_k` ids.

The paper's lambda is `on_policy`: a step is on the student's own rollouts iff u < lambda, u uniform in [0, 1] and a function of
the run's seed and the step. Otherwise nothing is sampled, and the loss is taken on the data's own answer to each prompt (verified
reasoning and answer), which no reward concerns. Such a step has no metrics of rollouts.

Deviations: the paper starts from a student after supervised training (`stage=sft`), and so should a run here. TRL's defaults are
lambda 0.5, beta 0.5 and temperature 0.9; the temperature is `rollout.temperature` and divides the logits of both models here, in
TRL's loss it is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from visd.config import ConfigError, RewardSection, RunConfig
from visd.data.targets import sft_target
from visd.methods.base import Method, Scores, Services, with_answers
from visd.methods.checks import check_choice, check_external, check_range
from visd.objective.credit import sampled_log_ratio
from visd.objective.divergence import distillation, support_needs
from visd.reward.combine import score
from visd.seeding import generator
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
    on_policy: float = 1.0  # share of steps on the student's own rollouts; the others are on the data's answers

    _seed: int = field(default=0, init=False, repr=False)  # of the run
    _reward: RewardSection = field(default_factory=RewardSection, init=False, repr=False)

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0, 1)
        check_range("reward_share", self.reward_share, 0, 1)
        check_choice("support", self.support, ("full", "student", "teacher", "sampled"))
        if self.support == "sampled":
            check_range("beta (with method.support=sampled)", self.beta, 1, 1)
        check_range("on_policy", self.on_policy, 0, 1)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_external(config, "gkd")
        self._seed, self._reward = config.run.seed, config.reward
        if self.on_policy < 1:
            for sample in samples:
                sft_target(sample, verified=True)
            if config.objective.dynamic_sampling != "off":
                raise ConfigError(
                    "objective.dynamic_sampling: a step on the data's answers (method.on_policy < 1) has no rollouts to "
                    "compare; take off."
                )

    def wants_rollouts(self, step: int) -> bool:
        return generator("on_policy", self._seed, step).random() < self.on_policy

    def prepare(self, groups: Sequence[RolloutGroup], services: Services) -> Sequence[RolloutGroup]:
        """The data's answers, where the step is not on the policy's own."""
        if self.wants_rollouts(services.step):
            return groups
        texts = [sft_target(group.sample, verified=True) for group in groups]
        given = services.answers([group.prompt for group in groups], texts)
        return [
            with_answers(group, [(answer, score(group.sample, answer.text, self._reward, 0.0))])
            for group, answer in zip(groups, given, strict=True)
        ]

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
