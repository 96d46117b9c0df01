"""Which dimension (answer, logic, temporal, spatial) each token of a rollout belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from visd.reward.parse import tag_spans
from visd.types import DIMENSIONS, Rollout, Span

LOGIC = DIMENSIONS.index("logic")


def token_dimensions(rollout: Rollout, spans: Sequence[Span] = ()) -> list[int]:
    """Index into DIMENSIONS a token, by the tag it stands in; the judge's own spans come first.

    A token belongs where its middle character lies; a token without text (a special token) to `logic`.
    """
    by_character = [LOGIC] * len(rollout.text)
    for start, end, dimension in tag_spans(rollout.text):
        by_character[start:end] = [DIMENSIONS.index(dimension)] * (end - start)
    for span in spans:
        by_character[span.start : span.end] = [DIMENSIONS.index(span.dimension)] * (span.end - span.start)
    return [LOGIC if middle is None else by_character[middle] for middle in token_middles(rollout)]


def token_middles(rollout: Rollout) -> list[int | None]:
    """The middle character of each token, as an offset in `Rollout.text`; None for a token without text."""
    middles: list[int | None] = []
    position = 0
    for piece in rollout.pieces:
        middles.append(position + len(piece) // 2 if piece else None)
        position += len(piece)
    return middles
