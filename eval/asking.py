"""Questions to prompts to answers, a batch at a time. What cannot be asked is said and stays among the replies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from visd.rollout.base import RolloutEngine, Sampling
from visd.types import DroppedSample, Prompt, Question, Rollout


class Builder(Protocol):
    """`visd.data.prompts.PromptBuilder`."""

    def build(self, question: Question) -> Prompt: ...

    def prefetch(self, questions: Iterable[Question]) -> None: ...


@dataclass(frozen=True)
class Reply:
    """What came of a question: its answers, or why it could not be asked."""

    rollouts: tuple[Rollout, ...] = ()
    frame_size: tuple[int, int] | None = None  # width and height of its first medium's frames, as the model saw them
    drop: DroppedSample | None = None


def build_all(
    builder: Builder, questions: Sequence[Question]
) -> tuple[dict[str, Prompt], dict[str, DroppedSample]]:  # fmt: skip
    """Prompts by the questions' ids, and why others have none."""
    prompts: dict[str, Prompt] = {}
    drops: dict[str, DroppedSample] = {}
    for question in questions:
        try:
            prompts[question.id] = builder.build(question)
        except DroppedSample as drop:
            drops[question.id] = drop
    return prompts, drops


def replies(
    engine: RolloutEngine,
    builder: Builder,
    questions: Sequence[Question],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]],
    pixel_factor: int = 28,
) -> list[Reply]:
    """One reply a question.

    Args:
        seeds: `sampling.n` a question.
        pixel_factor: pixels of a frame's side in one visual token, of the model's family.
    """
    prompts, drops = build_all(builder, questions)
    rows = [row for question, row in zip(questions, seeds, strict=True) if question.id in prompts]
    answers = engine.generate(list(prompts.values()), sampling, rows, policy_version=0) if prompts else []
    rollouts = dict(zip(prompts, answers, strict=True))
    return [
        Reply(drop=drops[question.id])
        if question.id in drops
        else Reply(rollouts[question.id], frame_size(prompts[question.id], pixel_factor))
        for question in questions
    ]


def frame_size(prompt: Prompt, pixel_factor: int) -> tuple[int, int] | None:
    """Width and height of the first medium's frames, as the model saw them; None without media."""
    grid = prompt.vision.video_grid_thw if prompt.vision.video_grid_thw is not None else prompt.vision.image_grid_thw
    if grid is None:
        return None
    _, rows, columns = grid[0].tolist()
    return int(columns) * pixel_factor // 2, int(rows) * pixel_factor // 2
