"""The largest step that the limits admit, before the first one: a run that lacks memory ends after a minute, not after a night.

A rehearsal runs the teacher, forward, backward and the optimiser's step on the longest prompt that the data and the limits
admit (`longest_bound`), with black frames and answers of `rollout.max_new_tokens`. All that a step holds at once is there:
features of all of a rank's prompts, scores of all of its rollouts, the optimiser's state, which a first step makes and a
second one finds. Of the micro-batches the largest are run, one of few long rows and one filled with more, shorter ones.

It changes nothing: the loss is multiplied by 0, the learning rate is 0, the optimiser's state is thrown away, random numbers
are put back. Where a checkpoint is loaded, it is loaded afterwards. The method's credit is replaced by a sum and, where it
compares whole distributions, by a divergence of them; its own `prepare`, sampling and the judge are not rehearsed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visd.config import RunConfig
from visd.data.targets import sft_target
from visd.objective.divergence import reverse_kl
from visd.objective.overlap import overlap_k, with_overlap
from visd.observe.memory import PeakMeter
from visd.policy.batch import Row, VisionFeatures
from visd.policy.oom import OutOfMemory, memory_of
from visd.policy.policy import Policy
from visd.rollout.sampling import finished_rollout
from visd.teacher.external import ExternalTeacher
from visd.teacher.view import render, teacher_prompt, verified
from visd.train.batches import join_scores
from visd.train.check import forecast
from visd.train.forecast import GIB, Decoder, activations_of
from visd.train.longest import Bound, Candidate, candidates, longest_bound, prompt_of, resized
from visd.train.plan import Plan, plan_rows
from visd.train.run import Rehearsal, Run
from visd.types import Prompt, Rollout, Sample, ScoreNeeds, TokenScores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """A kind of micro-batch: a prompt and how many rows after it go together."""

    bound: Bound
    prompt: Prompt
    text: str  # privileged, for the teacher or for supervised training; "" for none
    rows: int
    tokens: int  # through the student, padding included


def due(config: RunConfig, device: torch.device) -> bool:
    """Whether this start rehearses."""
    return config.train.rehearse == "always" or (config.train.rehearse == "auto" and device.type == "cuda")


def rehearse(run: Run) -> Rehearsal | None:
    """Run the largest step; None where no prompt fits into the limits at all. All ranks call it, before `resume`.

    Raises:
        OutOfMemory: names the phase, the sample and what to change.
    """
    with run.backend.together():
        script = Script(run)
        shapes = script.shapes()
    if not shapes:
        log.warning("train.rehearse: no prompt of the data fits into prompt.max_tokens and train.micro_batch_tokens")
        return None
    longest, device = shapes[0], run.backend.device
    most = max(shape.tokens for shape in shapes)
    done = Rehearsal(longest.bound.sample.id, longest.bound.tokens, most, script.forecast(most))
    calls = run.policy.tower_calls
    run.engine.rest()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            script.act(sorted(shapes, key=lambda shape: shape.tokens), done)
        except OutOfMemory as error:
            raise OutOfMemory(
                f"before the first step: {error} This was the largest step that prompt.max_tokens, prompt.video, "
                f"rollout and train.micro_batch_tokens admit ({done.prompt} tokens a prompt, {most} a micro-batch); if no "
                "sample is as long, lower these to what is, or set train.rehearse=never."
            ) from error
    run.policy.forget_features()
    run.policy.tower_calls = calls
    if device.type == "cuda":
        torch.cuda.empty_cache()
    peaks = run.backend.all_reduce(torch.tensor(list(done.peaks.values()), dtype=torch.float64), "max").tolist()
    done.peaks = {phase: int(peak) for phase, peak in zip(done.peaks, peaks, strict=True)}
    if run.backend.is_main:
        print_rehearsal(run, script, done)
    return done


class Script:
    """The parts of a run's rehearsal."""

    def __init__(self, run: Run):
        self.run = run
        config = run.config
        self.supervised = config.stage == "sft"
        self.groups = config.train.prompts_per_step // run.backend.world_size  # of a rank's step
        self.answers = 1 if self.supervised else config.rollout.n  # to a prompt
        self.temperature = 1.0 if self.supervised else config.rollout.temperature
        self.needs = None if self.supervised else teacher_needs(run)
        self.filler = filler(run.processor.tokenizer, config.teacher.max_feedback_chars)
        self.answer = self._answer()

    # ------------------------------------------------------------------------------------------- what is run

    def shapes(self) -> list[Shape]:
        """The longest rows, and where these leave room in a micro-batch, one row more of a length that fills it."""
        run = self.run
        known = candidates(run.builder, run.sampler.samples)
        longest = self._shape(known, 1)
        if longest is None:
            return []
        budget = run.config.train.micro_batch_tokens
        shapes, more = [longest], longest.rows + 1
        if not run.policy.shares_prefixes and longest.tokens < budget and more <= self.groups * self.answers:
            filling = self._shape(known, more)
            if filling is not None and filling.tokens > longest.tokens:
                shapes.append(filling)
        return shapes

    def _shape(self, known: Sequence[Candidate], together: int) -> Shape | None:
        """The longest prompt of which so many rows go into one micro-batch; the teacher's rows only have to fit alone."""
        run, told = self.run, 0
        budget, answer = run.config.train.micro_batch_tokens, len(self.answer.token_ids)
        for _ in range(len(known) + 1):
            room = budget // together - answer - (told if together == 1 or self.supervised else 0)
            bound = longest_bound(run.builder, known, min(run.config.prompt.max_tokens, room))
            if bound is None:
                return None
            text = self._text(bound.sample)
            tokens = len(run.processor.tokenizer.encode(text, add_special_tokens=False))
            if tokens <= told or together > 1:
                break
            told = tokens
        else:
            return None
        prompt = prompt_of(run.builder, bound)
        if self.supervised and text:
            prompt = teacher_prompt(run.processor, prompt, text)
        rows, through = self._together(self._rows(prompt, None), run.policy.shares_prefixes)
        return Shape(bound, prompt, text, len(rows), through)

    def _rows(self, prompt: Prompt, features: Sequence[VisionFeatures | None] | None) -> list[Row]:
        """Every row of a rank's step."""
        copies = [replace(prompt, sample_id=f"{prompt.sample_id} ({k + 1})") for k in range(self.groups)]
        held = features or [None] * self.groups
        return [
            Row(copy, self.answer.token_ids, feature)
            for copy, feature in zip(copies, held, strict=True)
            for _ in range(self.answers)
        ]

    def _together(self, rows: Sequence[Row], shared: bool) -> tuple[list[Row], int]:
        """The micro-batch of these with the most tokens, and how many."""
        budget = self.run.config.train.micro_batch_tokens

        def plan(part: Sequence[Row]) -> Plan:
            return plan_rows(part, budget, lambda i: f"a rehearsed row of sample {part[i].prompt.sample_id!r}", shared)

        batches = [[rows[i] for i in batch] for batch in plan(rows).batches]
        sizes = [plan(batch).tokens for batch in batches]
        largest = max(range(len(batches)), key=sizes.__getitem__)
        return batches[largest], sizes[largest]

    def _answer(self) -> Rollout:
        """The longest answer: of `rollout.max_new_tokens`, or the longest target of supervised training."""
        run, tokenizer = self.run, self.run.processor.tokenizer
        if self.supervised:
            traced = [sample for sample in run.sampler.samples if sample.rationale is not None]
            texts = [sft_target(sample, verified=which) for sample in traced for which in (False, True)]
            longest = max(texts, key=len, default="")
            ids = tokenizer.encode(longest, add_special_tokens=False) + [run.policy.eos_ids[0]]
        else:
            most = run.config.rollout.max_new_tokens
            ids = (tokenizer.encode(self.filler, add_special_tokens=False) * most)[:most]
        return finished_rollout(ids, [0.0] * len(ids), run.policy.eos_ids, tokenizer, 0, 0)

    def _text(self, sample: Sample) -> str:
        """The longest privileged text that a teacher may be told of a sample, as far as the configuration says."""
        config = self.run.config
        told = verified(sample, self.filler)
        if self.supervised:
            return render(told, config.sft.context, config.teacher.max_feedback_chars)
        if self.needs is None or (self.run.teacher is None and self.run.external is None):
            return ""
        answer = self.answer.text
        told = replace(
            told, reference=sample.rationale or told.answer, peers=(answer,), trial=answer, reflection=answer
        )
        section = config.teacher
        return render(told, section.context, section.max_feedback_chars, section.layout)

    # ------------------------------------------------------------------------------------------ how it is run

    def act(self, shapes: Sequence[Shape], done: Rehearsal) -> None:
        """Two steps in small: the optimiser's state is there from the second one on."""
        backend, policy = self.run.backend, self.run.policy
        meter = PeakMeter(backend.device)
        longest = max(shapes, key=lambda shape: len(shape.prompt))

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            meter.start()
            yield
            done.peaks[name] = max(done.peaks.get(name, 0), meter.peak())

        with phase("encode"):
            features = [self._features(shape, shape is longest) for shape in shapes]
        rows = [self._student(shape, held) for shape, held in zip(shapes, features, strict=True)]
        with phase("update"):
            self._backward(shapes[0], rows[0], None, last=True)
        with phase("optimizer"):
            self._step()
        with phase("teacher"):
            scores = self._teacher(longest, features[shapes.index(longest)])
        taught = scores[0] if scores else None
        with phase("update"):
            for shape, batch in zip(shapes, rows, strict=True):
                self._backward(shape, batch, taught, last=shape is shapes[-1])
        with phase("optimizer"):
            self._step()
        backend.forget_steps()
        policy.set_training(False)

    def _features(self, shape: Shape, every: bool) -> list[VisionFeatures | None]:
        """Of each prompt of a rank's step; with `every` each has its own, since a step holds them all until its end."""
        (one,) = self.run.policy.encode([shape.prompt])
        self.run.policy.forget_features()
        if one is None or not every:
            return [one] * self.groups
        more = self.groups - 1
        return [
            one,
            *(VisionFeatures(one.embeds.clone(), tuple(d.clone() for d in one.deepstack)) for _ in range(more)),
        ]

    def _student(self, shape: Shape, features: Sequence[VisionFeatures | None]) -> list[Row]:
        rows, _ = self._together(self._rows(shape.prompt, features), self.run.policy.shares_prefixes)
        return rows

    def _teacher(self, shape: Shape, features: Sequence[VisionFeatures | None]) -> list[TokenScores]:
        """The teacher's or the reference's pass; as many scores as a rank's step holds."""
        run = self.run
        if run.external is not None and self.needs is not None:
            policy, rows = run.external.policy, self._external_rows(run.external, shape)
        else:
            view = teacher_prompt(run.processor, shape.prompt, shape.text) if shape.text else shape.prompt
            policy, rows = run.policy, self._rows(view, features)
        weights = run.teacher or run.reference
        needs = self.needs if run.teacher is not None or run.external is not None else None
        if self.supervised or (weights is None and run.external is None):
            return []
        rows, _ = self._together(rows, policy.shares_prefixes)
        with torch.no_grad(), memory_of("teacher", [shape.prompt.sample_id]):
            if policy is run.policy:
                assert weights is not None
                with weights.applied(run.backend), run.backend.whole_weights():
                    scores = self._scored(policy, rows, needs or ScoreNeeds())
            else:
                scores = self._scored(policy, rows, needs or ScoreNeeds())
                policy.forget_features()
            one = scores.row(0, len(rows[0].response_ids))
            every = torch.ones_like(one.logp, dtype=torch.bool)
            return [one, *(one.where(every) for _ in range(self.groups * self.answers - 1))]

    def _external_rows(self, teacher: ExternalTeacher, shape: Shape) -> list[Row]:
        bound = replace(shape.bound, sizes=resized(teacher.processor, shape.bound.sizes))
        row = teacher.row(prompt_of(teacher.builder, bound), shape.text, self.answer)
        return [row] * self.answers

    def _scored(self, policy: Policy, rows: Sequence[Row], needs: ScoreNeeds) -> TokenScores:
        support = None
        if needs.top_k and needs.support != "teacher":
            shape = (len(rows), len(rows[0].response_ids), needs.top_k)
            support = torch.arange(needs.top_k, device=policy.device).expand(shape)
        return policy.score(rows, temperature=self.temperature, needs=needs, support_ids=support)

    def _backward(self, shape: Shape, rows: Sequence[Row], taught: TokenScores | None, *, last: bool) -> None:
        """Forward and backward of one micro-batch whose loss is 0."""
        run, needs = self.run, self.needs
        length = len(self.answer.token_ids)
        same = taught if taught is not None and len(taught.logp) == length else None  # in the student's tokens
        teacher = join_scores([same] * len(rows), length)
        run.policy.set_training(True)
        with memory_of("update", [shape.prompt.sample_id]):
            student = run.policy.score(
                rows,
                temperature=self.temperature,
                needs=ScoreNeeds(
                    entropy=not self.supervised,
                    full=bool(needs and needs.full),
                    log_z=bool(needs and needs.log_z),
                    overlap_k=overlap_k(needs, run.config.teacher.overlap_k) if teacher is not None else 0,
                ),
                support_ids=teacher.support_ids if teacher is not None else None,
                forward=run.backend.forward,
            )
            run.backend.backward(stand_in(student, teacher) * 0.0, last=last)
        run.policy.set_training(False)

    def _step(self) -> None:
        with memory_of("optimizer"):
            self.run.backend.step(0.0)

    def forecast(self, tokens: int) -> int:
        """Bytes of the whole process on a GPU; on a CPU those that come on top of what stands before the first step."""
        run, config = self.run, self.run.config
        static = forecast(run)
        text = run.policy.model.hf.config.get_text_config()
        mlp = text.intermediate_size
        if getattr(text, "num_experts_per_tok", None):
            mlp = text.moe_intermediate_size * text.num_experts_per_tok
        decoder = Decoder(text.num_hidden_layers, text.hidden_size, mlp)
        needs, length = self.needs or ScoreNeeds(), len(self.answer.token_ids)
        rows = self.groups * self.answers
        kept = 4.0 * rows * length * (2 + 3 * needs.top_k + needs.full * run.policy.model.vocab_size)
        if needs.full:  # of the student: log-probabilities, and two of their size in the divergence and its gradient
            kept += 3 * 4.0 * min(rows, tokens // length) * length * run.policy.model.vocab_size
        width = run.policy.compute_dtype.itemsize
        above = static.gradients + static.optimizer + kept
        above += activations_of(decoder, tokens, config.model.gradient_checkpointing, width)
        return int(above + (static.weights + static.teacher + static.tower if run.backend.device.type == "cuda" else 0))


def teacher_needs(run: Run) -> ScoreNeeds | None:
    """The most that the method asks of a teacher at any step; None where there is no teacher."""
    if run.teacher is None and run.external is None:
        return None
    asked = (run.method.needs(step) for step in range(run.config.train.steps))
    needs = next((found for found in asked if found is not None), None)
    if needs is None:
        return None
    if run.teacher is not None and run.teacher.section.weights == "trust_region":
        needs = replace(needs, full=True)
    needs = with_overlap(needs, run.config.teacher.overlap_k)
    return replace(needs, entropy=True) if needs.units is None else needs


def filler(tokenizer: Any, chars: int) -> str:
    """Plain words, so many characters."""
    return ("and then the man looks at it again " * (chars // 35 + 1))[: max(chars, 1)]


def stand_in(student: TokenScores, teacher: TokenScores | None) -> Tensor:
    """A number that all scores with a gradient enter, by as large tensors as a method's loss makes."""
    total = student.logp.sum()
    for part in (student.support_logp, student.log_z):
        if part is not None:
            total = total + part.sum()
    if student.full_logp is not None:
        other = teacher.full_logp if teacher is not None and teacher.full_logp is not None else student.full_logp
        total = total + reverse_kl(student.full_logp, other[..., : student.full_logp.shape[-1]].detach()).sum()
    return total


def print_rehearsal(run: Run, script: Script, done: Rehearsal) -> None:
    """Forecast against peak."""
    cuda = run.backend.device.type == "cuda"
    what = "of the GPU" if cuda else "that the process grew by"
    table = Table(
        title=f"rehearsal of the largest step: sample {done.sample_id}, {done.prompt:,} tokens, {script.groups} prompts a "
        f"process, {script.answers} answers of {len(script.answer.token_ids):,} tokens each; memory {what}"
    )
    table.add_column("phase")
    table.add_column("GiB", justify="right")
    for phase, peak in done.peaks.items():
        table.add_row(phase, f"{peak / GIB:.3f}")
    table.add_row("peak", f"{done.peak / GIB:.3f}")
    table.add_row("forecast", f"{done.forecast / GIB:.3f}")
    Console(file=sys.stderr).print(table)
