"""Solutions that a teacher may be shown: of the same group, or of the data."""

from __future__ import annotations

import re
from collections.abc import Sequence

from visd.data.targets import answer_text, sft_target
from visd.types import Rollout, RolloutGroup, Sample, VisdError

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


def succeeded(group: RolloutGroup, index: int, threshold: float) -> bool:
    """Whether a rollout's accuracy (0-1) reaches the threshold; a bonus for its form does not count."""
    return group.rewards[index].accuracy >= threshold


def successful(group: RolloutGroup, threshold: float, without: int | None = None) -> list[int]:
    """Indices of the successful rollouts, in order of generation.

    Args:
        without: a rollout that is not counted.
    """
    return [i for i in range(len(group.rollouts)) if i != without and succeeded(group, i, threshold)]


def solution_text(rollout: Rollout, strip_think: bool = False, max_tokens: int = 0) -> str:
    """A rollout as it is shown to a teacher: its first `max_tokens` tokens (0: all), without reasoning if so wished."""
    pieces = rollout.pieces[:max_tokens] if max_tokens else rollout.pieces
    text = "".join(pieces)
    return (_THINKING.sub("", text) if strip_think else text).strip()


REFERENCES = ("rationale", "answer", "none")


def reference_solution(sample: Sample, kind: str) -> str | None:
    """The data's own solution: `rationale` (verified reasoning and answer), `answer` (the verified answer), or `none`.

    Raises:
        VisdError: names the sample that has no such reasoning.
    """
    if kind == "none":
        return None
    return sft_target(sample, verified=True) if kind == "rationale" else answer_text(sample.answer)


def check_references(samples: Sequence[Sample], kind: str, field: str) -> None:
    """Refuse data whose samples lack the reference solution that `field` asks for.

    Raises:
        VisdError: names the first sample, its field, and how many there are.
    """
    first: VisdError | None = None
    missing = 0
    for sample in samples:
        try:
            reference_solution(sample, kind)
        except VisdError as error:
            first, missing = first or error, missing + 1
    if first is not None:
        raise VisdError(
            f"{first} ({missing} of {len(samples)} samples lack it): {field}={kind} shows the teacher a sample's own "
            f"solution; add the field, or set {field}=answer to show the verified answer."
        )
