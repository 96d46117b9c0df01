"""TRACE: Token-Routed Alignment for Critical rEasoning (arXiv 2605.10194).

    S_y    = tokens of key spans if y is right and `key` is not none, of error spans if it is wrong and `error` is not none
    d_t    = sum_v min(k_t(v), clip)        k = q log(q / p) (fkl) or p log(p / q) (rkl)
    A_t    = A (1 - lam_k / weight) on S_y, A elsewhere
    L      = GRPO + lam_k (1 / |y|) sum over S_y of d_t
    lam_k  = weight for `hold_steps` steps, then linearly to 0 over `decay_steps`; from then on this is GRPO without a teacher

An annotator marks what decided a rollout; there, and only there, the teacher's whole distribution takes the reward's place.
Spans are the judge's (`annotator=judge`: those of the run's judge, by evidence or by a language model) or those that the
evidence alone gives (`annotator=evidence`, as `judge=rule` finds them, whatever the run's judge is). The teacher, a
copy of the policy renewed every 10 steps (`teacher.weights`), is told the types of what was marked and neither its
words nor its place. 1 / |y| is the share of `objective.aggregation=sequence`.

Published: `key=fkl` for strong models (the defaults), `error=rkl` with `key=none` for weak ones; both may be set at once.
Neither full text nor code was public; the equations are those of one third-party description. Open there and decided here:
the clip bounds each entry from above (`clip_mode=symmetric`: from below too); then an entry that is clipped has no gradient,
the others still push their own mass up, and a token that the teacher wants more of can be pushed down: `term/key_clip_share` is the
mass of clipped entries, `term/key_clip_cosine` the cosine of the gradients at the logits with the clip and without it,
`term/key_clip_turned` the share of tokens where it is negative (`term/error_...` likewise). Sums are over the whole
vocabulary (`support`). Of spans that together exceed the `cap` the last ones are kept (`keep`), cut where the cap is reached.
Answers are not marked (`dimensions`). Types are told once a rollout, as the feedback block. Rollouts without an advantage
still have the divergence. GRPO's normalisation is that of `objective`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from visd.config import ConfigError, RunConfig
from visd.judge.rule import RuleJudge
from visd.methods.base import Method, Scores, StepView
from visd.methods.checks import check_choice, check_context, check_range
from visd.objective.credit import annealed
from visd.objective.dimensions import token_middles
from visd.objective.divergence import support_needs, with_tail
from visd.observe.accumulate import Metrics, reduce
from visd.policy.head import LOWEST
from visd.types import (
    DIMENSIONS,
    PrivilegedContext,
    RolloutGroup,
    Sample,
    ScoreNeeds,
    Span,
    Term,
    TokenBatch,
    TokenCredit,
    TokenScores,
)

ACTIONS = ("fkl", "rkl", "none")
TYPES = {
    "answer": "the answer itself",
    "logic": "a conclusion",
    "temporal": "when it happens",
    "spatial": "where it is",
}
"""What the teacher is told of a marked span, by its dimension."""


@dataclass(frozen=True)
class ClippedDivergence:
    """A divergence of N tokens and what its clip does to the gradient."""

    value: Tensor  # [N]
    share: Tensor  # [N], mass (the teacher's for fkl, the student's for rkl) of the entries that the clip decided
    cosine: (
        Tensor  # [N], of the gradients at the student's logits with the clip and without; 1 where it decided nothing
    )


def clipped_divergence(student: Tensor, teacher: Tensor, action: str, clip: float, mode: str) -> ClippedDivergence:
    """sum_v clip(k(v)) with k = q log(q / p) (fkl) or p log(p / q) (rkl), from log-probabilities [N, V].

    Args:
        clip: bound of each entry; 0 clips nothing.
        mode: upper bounds entries from above, symmetric from below too.
    """
    p, q = student.clamp(min=LOWEST), teacher.detach().clamp(min=LOWEST)
    owner = q if action == "fkl" else p
    entries = owner.exp() * (q - p if action == "fkl" else p - q)
    bound = clip or math.inf
    low = -bound if mode == "symmetric" else -math.inf
    decided = (entries > bound) | (entries < low)
    with torch.no_grad():
        slope = -q.exp() if action == "fkl" else p.exp() * (p - q + 1)  # of an entry, along log p of its own id
        free, held = (s - p.exp() * s.sum(-1, keepdim=True) for s in (slope, slope.masked_fill(decided, 0.0)))
        cosine = torch.cosine_similarity(free, held, dim=-1)
        share = (owner.exp() * decided).sum(-1)
    return ClippedDivergence(entries.clamp(low, bound).sum(-1), share, torch.where(decided.any(-1), cosine, 1.0))


@dataclass
class TRACE(Method):
    """Settings of TRACE."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    key: str = "fkl"  # divergence on key spans of right rollouts: fkl, rkl or none
    error: str = "none"  # divergence on error spans of wrong rollouts: fkl, rkl or none
    weight: float = 0.5  # lam at the first step; 0 is GRPO
    hold_steps: int = 10  # steps before lam falls
    decay_steps: int = 30  # steps over which it falls to 0
    clip: float = 0.05  # bound of each vocabulary entry's contribution; 0 clips nothing
    clip_mode: str = "upper"  # entries are bounded from above (upper) or on both sides (symmetric)
    cap: float = 0.25  # largest share of a rollout's tokens that may be marked
    keep: str = "last"  # spans that are kept where the cap is exceeded: first or last
    annotator: str = "judge"  # whose spans: judge (the run's), or evidence (the rule judge's, without asking any other)
    dimensions: list[str] = field(
        default_factory=lambda: ["logic", "temporal", "spatial"]
    )  # spans that are marked: answer, logic, temporal, spatial
    support: str = "full"  # ids of the sums: full, or teacher (its top_k and a bucket for all others)
    top_k: int = 100  # ids of the support `teacher`

    _rules: RuleJudge = field(default_factory=RuleJudge, init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("key", self.key, ACTIONS)
        check_choice("error", self.error, ACTIONS)
        if self.key == self.error == "none":
            raise ConfigError("method.key: with method.error=none too nothing is left of trace; take method=grpo.")
        for name in ("weight", "hold_steps", "decay_steps", "clip"):
            check_range(name, getattr(self, name), 0, math.inf)
        check_range("cap", self.cap, 0, 1)
        check_choice("clip_mode", self.clip_mode, ("upper", "symmetric"))
        check_choice("keep", self.keep, ("first", "last"))
        check_choice("annotator", self.annotator, ("judge", "evidence"))
        check_choice("support", self.support, ("full", "teacher"))
        for dimension in self.dimensions:
            check_choice("dimensions", dimension, DIMENSIONS)

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        check_context(config, "feedback", "which trace fills with the types of what was marked")
        if self.annotator == "judge" and not config.judge.get("_target_"):
            raise ConfigError(
                "judge: trace marks the spans that a judge gives; choose one, or method.annotator=evidence."
            )
        self._rules = RuleJudge(config.reward.number_tolerance, config.reward.gate_seconds)

    def lam_at(self, step: int) -> float:
        if step < self.hold_steps:
            return self.weight
        return annealed(self.weight, step - self.hold_steps, self.decay_steps, "linear") if self.decay_steps else 0.0

    def active(self, step: int) -> bool:
        return self.lam_at(step) > 0

    def wants_judge(self, step: int) -> bool:
        return self.annotator == "judge" and self.active(step)

    def needs(self, step: int) -> ScoreNeeds | None:
        return support_needs(self.support, self.top_k) if self.active(step) else None

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        """The types of what was marked; a rollout without action or marked tokens is no target."""
        found = set(self.marked(group, index))
        types = [TYPES[dimension] for dimension in DIMENSIONS if dimension in found]
        if self.action(group, index) == "none" or not types:
            return None
        said = "What decides it" if group.rewards[index].correct else "What goes wrong"
        return PrivilegedContext(feedback=f"{said}: {', '.join(types)}.")

    def action(self, group: RolloutGroup, index: int) -> str:
        return self.key if group.rewards[index].correct else self.error

    def spans(self, group: RolloutGroup, index: int) -> list[Span]:
        """Key spans of a right rollout, error spans of a wrong one; none where the judgement failed."""
        if self.annotator == "evidence":
            report = self._rules.report(group.sample, group.rollouts[index])
        elif group.reports and group.reports[index].usable:
            report = group.reports[index]
        else:
            return []
        verdict = "right" if group.rewards[index].correct else "wrong"
        return [span for span in report.spans if span.verdict == verdict and span.dimension in self.dimensions]

    def marked(self, group: RolloutGroup, index: int) -> list[str | None]:
        """The dimension of the span that marks each token, [T]; at most `cap` of the policy's own tokens have one."""
        rollout = group.rollouts[index]
        middles = token_middles(rollout)
        own = rollout.of_own(range(len(middles)))
        found: dict[int, str] = {}
        for span in sorted(self.spans(group, index), key=lambda span: span.start, reverse=self.keep == "last"):
            for t in own:
                middle = middles[t]
                if middle is not None and span.start <= middle < span.end:
                    found.setdefault(t, span.dimension)
        kept = dict(list(found.items())[: int(self.cap * rollout.length)])
        return [kept.get(t) for t in range(len(middles))]

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """How much is marked, over the whole step, whether or not a divergence acts there."""
        metrics = Metrics()
        metrics.mean("lam", [self.lam_at(step)])
        if self.active(step):
            for group in seen.groups:
                for i, rollout in enumerate(group.rollouts):
                    count = sum(dimension is not None for dimension in self.marked(group, i))
                    metrics.mean("coverage", [count / max(rollout.length, 1)])
                    metrics.mean("right_with_key" if group.rewards[i].correct else "wrong_with_error", [count > 0])
        return reduce(metrics, seen.gather)

    def span_mask(self, batch: TokenBatch, action: str = "") -> Tensor:
        """Tokens of S_y that the teacher scored, [B, T]; with an action only those where it acts."""
        mask = torch.zeros_like(batch.mask)
        for row, (group, index) in enumerate(zip(batch.groups, batch.indices, strict=True)):
            if self.action(group, index) != "none" and action in ("", _side(group, index)):
                marked = [dimension is not None for dimension in self.marked(group, index)]
                mask[row, : len(marked)] = torch.tensor(marked, dtype=torch.bool)
        return mask & batch.taught

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        plain = super().advantages(batch, scores, step)
        lam = self.lam_at(step)
        if scores.teacher is None or lam == 0:
            return plain
        weights = torch.where(self.span_mask(batch), 1 - lam / self.weight, plain.weights)
        return TokenCredit(plain.advantages * weights, weights)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None or not self.active(step):
            return {}
        terms = {}
        for name, action in (("key", self.key), ("error", self.error)):
            mask = self.span_mask(batch, name)
            if action != "none" and mask.any():
                terms[name] = self.term(scores.student, scores.teacher, mask, action, self.lam_at(step))
        return terms

    def term(self, student: TokenScores, teacher: TokenScores, mask: Tensor, action: str, lam: float) -> Term:
        """The divergence at the tokens of a mask, which alone are computed."""
        p, q = (self._closed(scores.where(mask)) for scores in (student, teacher))
        found = clipped_divergence(p, q, action, self.clip, self.clip_mode)

        def spread(values: Tensor) -> Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        turned = (found.cosine < 0).to(found.cosine)
        measures = {"clip_cosine": spread(found.cosine), "clip_turned": spread(turned)}
        return Term(spread(found.value), mask, lam, spread(found.share), measures)

    def _closed(self, scores: TokenScores) -> Tensor:
        if self.support == "full":
            assert scores.full_logp is not None
            return scores.full_logp
        assert scores.support_logp is not None
        return with_tail(scores.support_logp)


def _side(group: RolloutGroup, index: int) -> str:
    return "key" if group.rewards[index].correct else "error"
