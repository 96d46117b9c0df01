"""An engine that says what it was told to, and prompts that nobody looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from visd.rollout.base import RolloutEngine, Sampling
from visd.types import DroppedSample, Prompt, Question, Rollout, VisionInputs


class Builder:
    """Builds prompts without tensors, which nothing here looks at; refuses the question named bad."""

    def build(self, question: Question) -> Prompt:
        if question.id == "bad":
            raise DroppedSample(question.id, "decode", "video a.mp4 is truncated")
        nothing: Any = None
        return Prompt(question.id, "p", nothing, nothing, nothing, VisionInputs(), (), 2)

    def prefetch(self, questions: Iterable[Question]) -> None:
        pass


@dataclass
class Parrot(RolloutEngine):
    """Says what `answers` holds for the question, one after the other; what has no closed answer tag was cut off."""

    answers: dict[str, list[str]]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        return [
            tuple(
                Rollout((1, 2), (0.0, 0.0), text, (text, ""), "eos" if "</answer>" in text else "length", seed, 0)
                for text, seed in zip(self.answers[prompt.sample_id], row)
            )
            for prompt, row in zip(prompts, seeds, strict=True)
        ]
