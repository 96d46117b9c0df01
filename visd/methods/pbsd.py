"""PBSD: Preference-Based Self-Distillation (arXiv 2605.05040).

    y+ ~ pi_T(. | x, c), y- ~ pi(. | x), both new at every step
    m  = beta [(log pi(y+ | x) - log pi_T(y+ | x, c)) - (log pi(y- | x) - log pi_T(y- | x, c))]
    L  = -log sigmoid(m), mean over the pairs of the step

DPO whose reference is the teacher that is shown the context, and whose preferred answer that teacher writes; no reward
enters. It aims at pi_T(y | x) exp(r / beta) / Z for a latent reward r (eq. 4). Rollout k of a prompt is paired with the
k-th text of the teacher; the texts join the group as rollouts that no metric of the policy counts.

A pair may lie in two micro-batches: each of its answers carries half the loss and the whole gradient to itself, with the
other's log-probability as it was at the start of the step.

Neither full text nor code was public. Silent and decided here: beta (`beta`, DPO's usual 0.1); the teacher's weights are
current (`teacher.weights`); it sees the verified answer (`reference`, `rationale` for reasoning); its texts are not
filtered (`keep`); sums are not divided by length (`length_normalised`); no label smoothing (`label_smoothing`); a pair for
every rollout (`pairs`). pi_T has no gradient. Known hazards to watch: `method/chosen_logp` may fall while the margin grows,
texts of the teacher may speak of what it was shown (`method/chosen_mentions`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from visd.config import ConfigError, RewardSection, RunConfig
from visd.methods.base import Method, Scores, Services, StepView, with_answers, without_reward
from visd.methods.checks import check_choice, check_context, check_range
from visd.observe.accumulate import Metrics, reduce
from visd.observe.diagnostics import mentions_privileged
from visd.reward.combine import score
from visd.teacher.siblings import REFERENCES, check_references, reference_solution
from visd.types import (
    PrivilegedContext,
    Rewards,
    Rollout,
    RolloutGroup,
    Sample,
    ScoreNeeds,
    Term,
    TokenBatch,
    TokenCredit,
)

Key = tuple[str, int]
"""Sample id and rollout index."""


@dataclass
class PBSD(Method):
    """Settings of PBSD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    beta: float = 0.1  # temperature of the latent reward: scale of the margin
    pairs: int = 0  # pairs a prompt, made of its first rollouts; 0 takes all
    keep: str = "all"  # pairs that are trained on: all, right (the teacher's text is right) or contrast (and the rollout is wrong)
    length_normalised: bool = False  # means of log-probabilities over the tokens instead of sums
    label_smoothing: float = 0.0  # share of pairs taken to be the other way round
    reference: str = "answer"  # what the teacher sees: rationale (verified reasoning and answer) or answer

    _reward: RewardSection = field(default_factory=RewardSection, init=False, repr=False)  # how texts are scored
    _longest: int = field(default=0, init=False, repr=False)  # tokens of an answer
    _steps: int = field(default=1, init=False, repr=False)
    _student: dict[Key, float] = field(
        default_factory=dict, init=False, repr=False
    )  # log pi(y | x) at the step's start
    _partner: dict[Key, Key] = field(default_factory=dict, init=False, repr=False)  # both ways
    _chosen: set[Key] = field(default_factory=set, init=False, repr=False)  # texts of the teacher
    _gap: dict[Key, float] = field(default_factory=dict, init=False, repr=False)  # log pi - log pi_T, of whole pairs
    _scale: float = field(default=0.0, init=False, repr=False)  # all rollouts of the step over its pairs

    def __post_init__(self) -> None:
        check_choice("keep", self.keep, ("all", "right", "contrast"))
        check_choice("reference", self.reference, REFERENCES[:2])
        check_range("label_smoothing", self.label_smoothing, 0, 0.5)
        check_range("beta", self.beta, 1e-6, math.inf)
        check_range("pairs", self.pairs, 0, math.inf)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "reference", "which pbsd fills with the reference solution")
        check_references(samples, self.reference, "method.reference")
        if config.objective.aggregation != "sequence":
            raise ConfigError("objective.aggregation: pbsd compares whole answers; take sequence.")
        if config.teacher.weights in ("trust_region", "external"):
            raise ConfigError("teacher.weights: pbsd's teacher writes; take live, frozen, ema or snapshot.")
        self._reward, self._longest, self._steps = config.reward, config.rollout.max_new_tokens, config.train.steps

    def active(self, step: int) -> bool:
        return True

    def needs(self, step: int) -> ScoreNeeds | None:
        return ScoreNeeds()

    def shown(self, sample: Sample) -> PrivilegedContext:
        return PrivilegedContext(reference=reference_solution(sample, self.reference))

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        return self.shown(group.sample) if (group.sample.id, index) in self._partner else None

    def prepare(self, groups: Sequence[RolloutGroup], services: Services) -> Sequence[RolloutGroup]:
        """Have the teacher write the preferred answers, which join their groups, and pair them with the rollouts."""
        asked = [(g, k) for g in groups for k in range(min(self.pairs or len(g.rollouts), len(g.rollouts)))]
        prompts = [services.teacher_view(g.prompt, self.shown(g.sample)) for g, _ in asked]
        seeds = [services.seed("preferred", g.sample.id, k) for g, k in asked]
        written = services.write(prompts, seeds, self._longest, "teacher")
        plain = [g.prompt for g, _ in asked]
        chosen_logp = services.score(plain, written)
        rejected_logp = services.score(plain, [g.rollouts[k] for g, k in asked])
        self._student, self._partner, self._chosen = {}, {}, set()
        progress = services.step / self._steps
        added: dict[str, list[tuple[Rollout, Rewards]]] = {}
        for (group, k), text, own, other in zip(asked, written, chosen_logp, rejected_logp, strict=True):
            texts = added.setdefault(group.sample.id, [])
            chosen, rejected = (group.sample.id, len(group.rollouts) + len(texts)), (group.sample.id, k)
            # Its log-probabilities are the student's, as are those of every other rollout.
            rewards = score(group.sample, text.own_text, self._reward, progress)
            texts.append((replace(text, logp=tuple(own), source="teacher"), rewards))
            self._student[chosen] = self._sum(text.of_own(own))
            self._student[rejected] = self._sum(group.rollouts[k].of_own(other))
            if self._kept(rewards, group.rewards[k]):
                self._partner[chosen], self._partner[rejected] = rejected, chosen
                self._chosen.add(chosen)
        return [with_answers(group, added.get(group.sample.id, [])) for group in groups]

    def _kept(self, chosen: Rewards, rejected: Rewards) -> bool:
        if self.keep == "all":
            return True
        return chosen.correct and (self.keep == "right" or not rejected.correct)

    def _sum(self, logp: Sequence[float]) -> float:
        return math.fsum(logp) / (len(logp) if self.length_normalised else 1)

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """The teacher's log-probabilities of whole pairs, and what pairs look like before the update."""
        metrics = Metrics()
        self._gap = {}
        groups = {group.sample.id: group for group in seen.groups}
        for chosen in sorted(self._chosen):
            rejected = self._partner[chosen]
            if chosen not in seen.teacher or rejected not in seen.teacher:
                continue
            for key, name in ((chosen, "chosen"), (rejected, "rejected")):
                self._gap[key] = self._student[key] - self._sum(seen.teacher[key].logp.double().tolist())
                rollout = groups[key[0]].rollouts[key[1]]
                metrics.mean(f"{name}_logp", [self._student[key]])
                metrics.mean(f"{name}_length", [rollout.length])
                metrics.mean(f"{name}_correct", [groups[key[0]].rewards[key[1]].correct])
                metrics.mean(f"{name}_over_teacher", [self._gap[key]])
                metrics.mean(f"{name}_mentions", [mentions_privileged(rollout.own_text)])
            margin = self.beta * (self._gap[chosen] - self._gap[rejected])
            metrics.mean("margin", [margin])
            metrics.mean("margin_right_share", [margin > 0])
        metrics.sum("pairs", len(self._gap) // 2)
        metrics.sum("rollouts", sum(len(group.rollouts) for group in seen.groups))
        found = reduce(metrics, seen.gather)
        rollouts = found.pop("rollouts")
        self._scale = rollouts / found["pairs"] if found["pairs"] else 0.0
        return found

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        return without_reward(scores)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None:
            return {}
        keys = [(group.sample.id, i) for group, i in zip(batch.groups, batch.indices, strict=True)]
        paired = torch.tensor([key in self._gap for key in keys], device=batch.mask.device)
        own = ((scores.student.logp - scores.teacher.logp.detach()) * batch.mask).sum(-1)
        if self.length_normalised:
            own = own / batch.mask.sum(-1).clamp(min=1)
        sign = own.new_tensor([1.0 if key in self._chosen else -1.0 for key in keys])
        other = own.new_tensor([self._gap[self._partner[key]] if key in self._gap else 0.0 for key in keys])
        loss = preference_loss(self.beta * sign * (own - other), self.label_smoothing)
        # Both answers of a pair carry its loss; together they must have it once, and each its own gradient whole.
        halved = loss - 0.5 * loss.detach()
        value = (self._scale * halved)[:, None].expand(batch.mask.shape)
        return {"preference": Term(value, batch.taught & paired[:, None], 1.0)}


def preference_loss(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(m), with a share of the labels turned round (DPO, arXiv 2305.18290), [...]."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
