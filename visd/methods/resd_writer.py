"""Who writes RESD's reflections, tags and lessons: the policy itself, or fixed rules for models that cannot write prose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from visd.methods.base import Services
from visd.teacher import reflect
from visd.teacher.playbook import Playbook
from visd.teacher.reflect import Lesson, Reflection, Tag
from visd.types import JudgeReport, RolloutGroup

Key = tuple[str, int]
"""Sample id and rollout index."""


@dataclass(frozen=True)
class Attempt:
    """A rollout that is written about."""

    group: RolloutGroup
    index: int
    text: str  # as it is shown to writer and teacher

    @property
    def key(self) -> Key:
        return self.group.sample.id, self.index

    @property
    def report(self) -> JudgeReport | None:
        return self.group.reports[self.index] if self.group.reports else None

    @property
    def assessment(self) -> str:
        """The judge's feedback; without any, that the answer is wrong."""
        feedback = self.report.feedback if self.report is not None and self.report.usable else ""
        return feedback or "The answer is wrong."


@dataclass
class Writer(ABC):
    """Answers None where nothing usable was written; `asked` and `unreadable` count."""

    services: Services
    asked: int = field(default=0, init=False)
    unreadable: int = field(default=0, init=False)

    @abstractmethod
    def reflections(self, failed: Sequence[Attempt], playbook: Playbook) -> list[Reflection | None]:
        """One a failed attempt of this rank. Collective."""

    @abstractmethod
    def tags(self, succeeded: Sequence[Attempt], playbook: Playbook) -> list[tuple[Tag, ...] | None]:
        """One a successful attempt of this rank. Collective."""

    @abstractmethod
    def lessons(self, reflections: Mapping[str, Reflection], playbook: Playbook) -> list[Lesson]:
        """From all ranks' reflections, the same on every rank. Collective."""


@dataclass
class ModelWriter(Writer):
    """The policy as it is, sampled at the rollouts' temperature; reflector and curator see no verified answer."""

    max_new_tokens: int

    def reflections(self, failed: Sequence[Attempt], playbook: Playbook) -> list[Reflection | None]:
        known = playbook.text()
        requests = [reflect.reflection_request(a.text, a.assessment, known) for a in failed]
        texts = self._ask("reflection", failed, requests)
        answers = [reflect.read_reflection(text, playbook) for text in texts]
        self._count(answers)
        return answers

    def tags(self, succeeded: Sequence[Attempt], playbook: Playbook) -> list[tuple[Tag, ...] | None]:
        if not playbook.entries:  # of all ranks alike
            return [()] * len(succeeded)
        known = playbook.text()
        texts = self._ask("tags", succeeded, [reflect.tagging_request(a.text, known) for a in succeeded])
        answers = [reflect.read_tags(text, playbook) for text in texts]
        self._count(answers)
        return answers

    def lessons(self, reflections: Mapping[str, Reflection], playbook: Playbook) -> list[Lesson]:
        if not reflections:  # of all ranks alike
            return []
        services, texts = self.services, []
        if services.is_main:
            prompt = services.chat("curation", reflect.CURATION)
            prompt = services.insert(prompt, reflect.curation_request(reflections, playbook.text()))
            texts = services.write([prompt], [services.seed("curation")], self.max_new_tokens)
        else:
            services.write([], [], self.max_new_tokens)
        answers = [reflect.read_lessons(text.text, list(reflections)) for text in texts]
        self._count(answers)
        return next(lessons or [] for found in services.gather(answers) for lessons in found)  # the main rank's

    def _ask(self, purpose: str, attempts: Sequence[Attempt], requests: Sequence[str]) -> list[str]:
        """The question again, media included, with the request at the end of the user's turn."""
        services = self.services
        prompts = [services.insert(a.group.prompt, text) for a, text in zip(attempts, requests, strict=True)]
        seeds = [services.seed(purpose, *a.key) for a in attempts]
        return [rollout.text for rollout in services.write(prompts, seeds, self.max_new_tokens)]

    def _count(self, answers: Sequence[object]) -> None:
        self.asked += len(answers)
        self.unreadable += sum(answer is None for answer in answers)


@dataclass
class RuleWriter(Writer):
    """Fixed sentences from the judge's scores; asks no model."""

    def reflections(self, failed: Sequence[Attempt], playbook: Playbook) -> list[Reflection | None]:
        return [reflect.ruled_reflection(attempt.report, playbook) for attempt in failed]

    def tags(self, succeeded: Sequence[Attempt], playbook: Playbook) -> list[tuple[Tag, ...] | None]:
        return [()] * len(succeeded)

    def lessons(self, reflections: Mapping[str, Reflection], playbook: Playbook) -> list[Lesson]:
        return [reflect.ruled_lesson(example, reflection) for example, reflection in reflections.items()]
