"""What a method may have done for it before a step's contexts exist: text written by the student or the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

from visd.config import ConfigError
from visd.methods.base import Services
from visd.policy.oom import memory_of
from visd.rollout.sampling import finished_rollout
from visd.rollout.transformers_engine import TransformersEngine
from visd.seeding import derive_seed
from visd.teacher.scorer import ScoreJob, score_rows
from visd.teacher.view import render, teacher_prompt
from visd.train.plan import plan_rows
from visd.train.run import Run
from visd.types import Message, PrivilegedContext, Prompt, Rollout, ScoreNeeds


class StepServices(Services):
    """The services of one step of a run."""

    def __init__(self, run: Run):
        self._run = run
        self.step = run.step
        self.folder = run.dir
        self.is_main = run.backend.is_main

    def write(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        max_new_tokens: int,
        weights: Literal["student", "teacher"] = "student",
    ) -> list[Rollout]:
        run = self._run
        sampling = replace(run.sampling, n=1, max_new_tokens=max_new_tokens)
        size = run.config.rollout.batch_prompts * run.config.rollout.n or max(len(prompts), 1)
        texts: list[Rollout] = []
        with self._weights(weights), run.backend.whole_weights():
            for start in range(0, len(prompts), size):
                part = prompts[start : start + size]
                with memory_of("rollout", (prompt.sample_id for prompt in part)):
                    written = run.engine.generate(
                        part, sampling, [[seed] for seed in seeds[start : start + size]], run.policy_version
                    )
                texts += [only for (only,) in written]
        return texts

    def score(self, prompts: Sequence[Prompt], texts: Sequence[Rollout]) -> list[list[float]]:
        run = self._run
        features = run.policy.encode(prompts)
        rows = [run.policy.row(*one) for one in zip(prompts, texts, features, strict=True)]
        plan = plan_rows(
            rows,
            run.config.train.micro_batch_tokens,
            lambda i: f"a text after the prompt of sample {prompts[i].sample_id!r}",
            run.policy.shares_prefixes,
        )
        with run.backend.whole_weights():
            scores = score_rows(run.policy, ScoreJob(rows, plan.batches, run.config.rollout.temperature, ScoreNeeds()))
        return [score.logp.double().tolist() for score in scores]

    def answers(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Rollout]:
        run, tokenizer = self._run, self._run.processor.tokenizer
        ends, version = run.policy.eos_ids, run.policy_version
        given = []
        for text in texts:
            ids = [*tokenizer.encode(text, add_special_tokens=False), ends[0]]
            given.append(finished_rollout(ids, [0.0] * len(ids), ends, tokenizer, 0, version))
        scores = self.score(prompts, given)
        return [replace(one, logp=tuple(logp), source="data") for one, logp in zip(given, scores, strict=True)]

    @contextmanager
    def _weights(self, weights: str) -> Iterator[None]:
        """The writer's weights in place.

        Raises:
            ConfigError: nobody can write with the teacher's weights.
        """
        if weights == "student":
            yield
            return
        run = self._run
        if run.teacher is None or run.teacher.section.weights == "trust_region":
            raise ConfigError(
                f"teacher.weights: {run.config.teacher.weights} gives no weights to write text with; "
                "take ema, live, frozen or snapshot."
            )
        if not isinstance(run.engine, TransformersEngine):
            raise ConfigError(
                "rollout.engine: text by the teacher is written with the policy's own module; "
                "take visd.rollout.transformers_engine.TransformersEngine."
            )
        with run.teacher.applied(run.backend):
            yield

    def chat(self, name: str, text: str) -> Prompt:
        return self._run.processor.process(name, (Message("user", text),), ())

    def insert(self, prompt: Prompt, text: str) -> Prompt:
        return self._run.processor.insert_text(prompt, text)

    def teacher_view(self, prompt: Prompt, context: PrivilegedContext) -> Prompt:
        section = self._run.config.teacher
        text = render(context, section.context, section.max_feedback_chars, section.layout)
        return teacher_prompt(self._run.processor, prompt, text) if text else prompt

    def seed(self, *parts: int | str) -> int:
        return derive_seed("method", self._run.config.run.seed, self.step, *parts)

    def gather(self, value: Any) -> list[Any]:
        return self._run.backend.all_gather_object(value)
