"""RESD: Reflection-Enhanced Self-Distillation (arXiv 2605.12741).

    q~_t(v) = clip(q_t(v) / p_t(v), ratio_min, ratio_max) p_t(v)       q = pi_T(. | x, playbook, trial, feedback, reflection, solution)
    L       = mean of w_i min(p(y_t) / p_old(y_t), is_clip) JSD_alpha(p_t, q~_t)    over tokens of rollouts that have a context
    w_i     = (1 - s)^a if right, else s^b, over the batch's mean      s: the step's success rate, in [1/B, 1 - 1/B]

Learns from one rollout a prompt (config `resd` sets `rollout.n=1`; more are allowed) by distillation alone: no advantage
enters. p and q are read at the student's top K ids and a bucket for all others. The teacher is an EMA of the policy.

A step: the playbook is cleaned if that is due; the policy reflects on each failed rollout, seeing question, rollout,
feedback and playbook; tags count which entries helped or harmed; a right rollout becomes its prompt's solution, shown to
the teacher at this and later visits; a curator (the policy) adds lessons from the reflections. The playbook is part of
checkpoints and is written to `playbook.json` in the run's folder. A rollout without solution, feedback and reflection is no
target: it adds neither loss nor tokens.

Two recipes were published, by task: JSD 0.5, no `ratio_max`, `staleness`, 120 entries and reweighting (the defaults), and
reverse KL with `ratio_max=5`, `prioritized`, 150 or 200 entries, no reweighting; both with learning rate 1e-6 and EMA 1e-4.
Paper and code differ or are silent, decided here: tokens are averaged over the whole step, where the code averages within
micro-batches (`objective.aggregation=token`); success is accuracy from `success_threshold` (0.5 as in the code's default,
1.0 in one script); a trial, its feedback and reflection are shown for failures only; entries over the limit are dropped
again after curation, but the cleaning by age waits for the next step, so that a new lesson is seen once; the student's
prompt holds no playbook; the layout is SDPO's (`teacher.layout`). Deviations: one update a batch, where four were published;
feedback comes from the judge; with one update the code's two importance ratios are one (`is_clip`). `writer=rules` replaces
the model's prose by fixed sentences from the judge's scores, for models too small to write JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from visd.config import ConfigError, RunConfig
from visd.methods.base import Method, Scores, Services, StepView, without_reward
from visd.methods.checks import check_choice, check_context, check_range
from visd.methods.resd_writer import Attempt, Key, ModelWriter, RuleWriter, Writer
from visd.objective.divergence import (
    generalised_jsd,
    ratio_clamped,
    renormalised,
    sampled_reverse_kl,
    support_needs,
    with_tail,
)
from visd.objective.loss import truncated_ratio
from visd.observe.accumulate import Metrics, reduce
from visd.seeding import generator
from visd.teacher.playbook import RULES, Playbook
from visd.teacher.reflect import Reflection, Tag
from visd.teacher.siblings import solution_text, succeeded
from visd.types import (
    PrivilegedContext,
    RolloutGroup,
    Sample,
    ScoreNeeds,
    Term,
    TokenBatch,
    TokenCredit,
    TokenScores,
    VisdError,
)

SUPPORTS = ("student", "teacher", "full", "sampled")


def success_weights(right: Sequence[bool], success_power: float, failure_power: float) -> list[float]:
    """w_i over a step, mean 1: what is rare counts more. A step of one rollout is not weighted."""
    count = len(right)
    if count < 2:
        return [1.0] * count
    rate = min(max(sum(right) / count, 1 / count), 1 - 1 / count)
    raw = [(1 - rate) ** success_power if one else rate**failure_power for one in right]
    return [value / fmean(raw) for value in raw]


@dataclass
class RESD(Method):
    """Settings of RESD."""

    uses_teacher: ClassVar[bool] = True
    learns_without_advantage: ClassVar[bool] = True

    alpha: float = 0.5  # divergence: 0 forward KL, 1 reverse KL, between them generalised JSD
    support: str = "student"  # student or teacher (whose top_k ids), full, or sampled (the sampled token, alpha 1)
    top_k: int = 100  # ids of the support
    tail: bool = True  # a bucket for all ids outside the support; false renormalises
    ratio_min: float = 0.2  # least ratio of teacher and student, at each id; 0 bounds nothing
    ratio_max: float = 0.0  # greatest ratio; 0 bounds nothing
    is_clip: float = 2.0  # cap of the importance ratio between student and engine; 0 leaves it out
    success_power: float = 1.0  # weight of a right rollout is (1 - success rate) to this power; 0 weighs all alike
    failure_power: float = 1.0  # weight of a wrong one is the success rate to this power
    success_threshold: float = 0.5  # accuracy from which a rollout is right
    strip_think: bool = True  # keep and show a solution without its reasoning
    trial_tokens: int = 0  # most tokens of a rollout that writer and teacher are shown; 0 shows all
    feedback: bool = True  # show the judge's feedback on a failed rollout
    reflections: bool = True  # have failed rollouts reflected on
    solutions: bool = True  # show a prompt's last right rollout
    playbook: bool = True  # keep and show the playbook
    writer: str = "model"  # who reflects and curates: model (the policy), or rules (fixed sentences, for tiny models)
    writer_tokens: int = 1024  # most tokens of a reflection, of tags and of a curation
    clean_rule: str = "staleness"  # staleness, prioritized or reset
    clean_every: int = 4  # steps between cleanings of the playbook; 0 cleans only above most_entries
    most_entries: int = 120  # entries above which the playbook is cut

    _playbook: Playbook = field(default_factory=Playbook, init=False, repr=False)  # the same on every rank
    _solutions: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # by sample id
    _reflections: dict[Key, Reflection] = field(default_factory=dict, init=False, repr=False)  # of this rank's step
    _weights: dict[Key, float] = field(default_factory=dict, init=False, repr=False)  # of this step's rollouts
    _scale: float = field(default=1.0, init=False, repr=False)  # all tokens of the step over those that have a teacher
    _counts: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # of this step, to be logged

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0, 1)
        check_choice("support", self.support, SUPPORTS)
        check_choice("writer", self.writer, ("model", "rules"))
        check_choice("clean_rule", self.clean_rule, RULES)
        check_range("ratio_min", self.ratio_min, 0, 1)
        if self.ratio_max:
            check_range("ratio_max", self.ratio_max, 1, float("inf"))
        if self.support == "sampled":
            check_range("alpha (with method.support=sampled)", self.alpha, 1, 1)
        if self.playbook and not self.reflections:
            raise ConfigError(
                "method.playbook: lessons come from reflections; set method.reflections=true, or both false."
            )

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        used = {"feedback": self.feedback, "reflection": self.reflections, "peers": self.solutions}
        for block, is_used in (used | {"playbook": self.playbook}).items():
            if is_used:
                check_context(config, block, "which resd fills; switch it off in the method's settings otherwise")
        if config.objective.aggregation != "token":
            raise ConfigError(
                "objective.aggregation: resd averages over the tokens of rollouts with a context; take token."
            )
        if config.objective.mini_batches > 1:
            raise ConfigError("objective.mini_batches: resd averages over the whole step; take 1.")
        if self.feedback and not config.judge.get("_target_"):
            raise ConfigError("judge: resd shows the judge's feedback; choose a judge, or set method.feedback=false.")

    def active(self, step: int) -> bool:
        return True

    def wants_judge(self, step: int) -> bool:
        return self.feedback

    def needs(self, step: int) -> ScoreNeeds | None:
        return support_needs(self.support, self.top_k)

    # ------------------------------------------------------------------------------------------- writing

    def prepare(self, groups: Sequence[RolloutGroup], services: Services) -> Sequence[RolloutGroup]:
        """Reflect on this step's rollouts, then bring solutions and playbook up to date, the same on every rank."""
        numbers = generator("playbook", services.seed("clean"))
        dropped = 0
        if self.playbook and self._playbook.due(self.clean_every, self.most_entries):
            dropped += self._playbook.clean(self.clean_rule, self.most_entries, numbers)
        writer: Writer = ModelWriter(services, self.writer_tokens) if self.writer == "model" else RuleWriter(services)
        attempts = [
            Attempt(group, i, solution_text(rollout, max_tokens=self.trial_tokens))
            for group in groups
            for i, rollout in enumerate(group.rollouts)
        ]
        failed = [a for a in attempts if not self._right(a.group, a.index)]
        right = [a for a in attempts if self._right(a.group, a.index)]
        tags = self._reflect(failed, right, writer)
        reflections = self._share(failed, right, tags, services)
        if self.playbook:
            lessons = writer.lessons(reflections, self._playbook)
            added = [self._playbook.add(lesson.section, lesson.text) for lesson in lessons]
            self._counts["playbook_added"] = float(sum(entry is not None for entry in added))
            if len(self._playbook) > self.most_entries:
                dropped += self._playbook.clean(self.clean_rule, self.most_entries, numbers)
            if services.is_main:
                self._write(services.folder / "playbook.json")
        asked, unreadable = zip(*services.gather((writer.asked, writer.unreadable)), strict=True)
        self._counts |= {"playbook_dropped": dropped, "texts_written": sum(asked), "texts_unreadable": sum(unreadable)}
        return groups

    def _right(self, group: RolloutGroup, index: int) -> bool:
        return succeeded(group, index, self.success_threshold)

    def _reflect(self, failed: Sequence[Attempt], right: Sequence[Attempt], writer: Writer) -> list[tuple[Key, Tag]]:
        """Fill this rank's reflections against the playbook as it was, and return this rank's tags."""
        self._reflections = {}
        if not self.reflections:
            return []
        written = writer.reflections(failed, self._playbook)
        self._reflections = {a.key: found for a, found in zip(failed, written, strict=True) if found is not None}
        tags = [(key, tag) for key, reflection in self._reflections.items() for tag in reflection.tags]
        if self.playbook:
            praised = writer.tags(right, self._playbook)
            tags += [(a.key, tag) for a, found in zip(right, praised, strict=True) for tag in found or ()]
        return tags

    def _share(
        self, failed: Sequence[Attempt], right: Sequence[Attempt], tags: Sequence[tuple[Key, Tag]], services: Services
    ) -> dict[str, Reflection]:
        """Put in place what all ranks found, in an order that does not depend on them: tags, solutions, weights.

        Returns:
            All ranks' reflections by example.
        """
        outcomes = [(a.key, False, "") for a in failed]
        outcomes += [
            (a.key, True, solution_text(a.group.rollouts[a.index], self.strip_think, self.trial_tokens)) for a in right
        ]
        parts = services.gather((outcomes, list(tags), self._reflections))
        self._playbook.updates += 1
        for _, tag in sorted((pair for _, found, _ in parts for pair in found), key=lambda pair: (pair[0], pair[1].id)):
            self._playbook.tag(tag.id, tag.helpful)
        everyone = sorted(outcome for found, _, _ in parts for outcome in found)
        if self.solutions:
            self._solutions |= {key[0]: text for key, is_right, text in everyone if is_right and text}
        weights = success_weights([is_right for _, is_right, _ in everyone], self.success_power, self.failure_power)
        self._weights = {key: weight for (key, _, _), weight in zip(everyone, weights, strict=True)}
        written = {key: reflection for _, _, found in parts for key, reflection in found.items()}
        self._counts = {
            "success_share": fmean([is_right for _, is_right, _ in everyone]) if everyone else 0.0,
            "reflected": float(len(written)),
            "weight_max": max(weights, default=1.0),
            "weight_min": min(weights, default=1.0),
        }
        return {f"{key[0]}/{key[1]}": written[key] for key in sorted(written)}

    def _write(self, path: Path) -> None:
        """The playbook as people read it, whole or not at all."""
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._playbook.to_dict(), indent=2, ensure_ascii=False), encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise VisdError(f"the playbook could not be written to {path} ({error}); free space and resume.") from error

    # ------------------------------------------------------------------------------------------ learning

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        right = self._right(group, index)
        report = group.reports[index] if group.reports else None
        told = self.feedback and not right and report is not None and report.usable
        solution = self._solutions.get(group.sample.id)
        reflection = self._reflections.get((group.sample.id, index))
        feedback = report.feedback if told and report is not None else ""
        if not (solution or feedback or reflection):
            return None
        return PrivilegedContext(
            playbook=self._playbook.text() or None,
            trial=None if right else solution_text(group.rollouts[index], max_tokens=self.trial_tokens) or None,
            feedback=feedback or None,
            reflection=reflection.text() if reflection else None,
            peers=(solution,) if solution else (),
        )

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """The denominator: tokens of the rollouts that have a teacher, over all ranks."""
        metrics = Metrics()
        lengths = [rollout.length for group in seen.groups for rollout in group.rollouts]
        metrics.sum("all_tokens", *lengths)
        metrics.sum("taught_tokens", *(len(scores.logp) for scores in seen.teacher.values()))
        for group in seen.groups:
            metrics.mean("context_share", ((group.sample.id, i) in seen.teacher for i in range(len(group.rollouts))))
        found = reduce(metrics, seen.gather)
        every, taught = found.pop("all_tokens", 0.0), found.pop("taught_tokens", 0.0)
        self._scale = every / taught if taught else 1.0
        playbook = {f"playbook_{name}": float(value) for name, value in self._playbook.counts().items()}
        return found | self._counts | playbook | {"solutions": float(len(self._solutions))}

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        return without_reward(scores)

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        if scores.teacher is None:
            return {}
        value, clamped = self.divergence(scores.student, scores.teacher)
        importance = truncated_ratio(scores.student.logp, batch.engine_logp, self.is_clip)
        keys = [(group.sample.id, i) for group, i in zip(batch.groups, batch.indices, strict=True)]
        weights = value.new_tensor([self._weights.get(key, 1.0) for key in keys])[:, None] * self._scale
        clipped = torch.maximum(clamped, importance.clipped.to(clamped))
        return {"distillation": Term(value * importance.value * weights, batch.taught, 1.0, clipped)}

    def divergence(self, student: TokenScores, teacher: TokenScores) -> tuple[Tensor, Tensor]:
        """JSD_alpha(p, q~) and the student's mass at which the ratio was clamped, both [B, T]."""
        p, q = self._closed(student), self._closed(teacher)
        q, clamped = ratio_clamped(p, q, self.ratio_min, self.ratio_max)
        if self.support == "sampled":
            return sampled_reverse_kl(p, q)[..., 0], clamped
        return generalised_jsd(p, q, self.alpha), clamped

    def _closed(self, scores: TokenScores) -> Tensor:
        """The log-probabilities that are compared, [B, T, entries]."""
        if self.support == "sampled":
            return scores.logp[..., None]
        if self.support == "full":
            assert scores.full_logp is not None
            return scores.full_logp
        assert scores.support_logp is not None
        return (with_tail if self.tail else renormalised)(scores.support_logp)

    def state_dict(self) -> dict[str, Any]:
        return {"playbook": self._playbook.to_dict(), "solutions": dict(self._solutions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._playbook, self._solutions = Playbook.from_dict(state["playbook"]), dict(state["solutions"])
