"""V-STaR (arXiv 2503.11495): what, when and where, in two chains.

Chain 1 asks what, when, where; chain 2 what, where, when. Each chain has an arithmetic mean and a logarithmic geometric
mean of answer accuracy, mean temporal IoU and mean visual IoU; mAM and mLGM are the means of the two chains.

Two ways of counting:

    compatible  as the released scorer: a row without an answer to "what" is left out of every mean except the accuracy,
                whose denominator is all rows; of several boxes in a second the best counts; a window is any two numbers.
    strict      every row is in every mean, the first box of a second counts, a window is one that can be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.grounding import read_window, to_seconds
from eval.metrics import arithmetic_mean, log_geometric_mean, window_iou
from visd.reward.rules import box_iou
from visd.types import XYXY, Window

Mode = Literal["compatible", "strict"]
_BARE_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")


@dataclass(frozen=True)
class Columns:
    """The numbers of a V-STaR table, each in 0-1."""

    what: float
    when_1: float
    when_2: float
    where_1: float
    where_2: float


@dataclass(frozen=True)
class Row:
    """One video's scores, before averaging."""

    answered: bool  # whether "what" got any answer
    right: bool
    when: tuple[float, float]  # temporal IoU, by chain
    where: tuple[float, float]  # visual IoU, by chain


def mean_am(columns: Columns) -> float:
    """mAM: the mean of both chains' arithmetic means."""
    one, two = _chains(columns)
    return (arithmetic_mean(*one) + arithmetic_mean(*two)) / 2


def mean_lgm(columns: Columns) -> float:
    """mLGM: the mean of both chains' logarithmic geometric means."""
    one, two = _chains(columns)
    return (log_geometric_mean(*one) + log_geometric_mean(*two)) / 2


def _chains(c: Columns) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    return (c.what, c.when_1, c.where_1), (c.what, c.when_2, c.where_2)


def columns_of(rows: Sequence[Row], mode: Mode) -> Columns:
    """Average rows.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("V-STaR's means need at least one row")
    kept = [row for row in rows if row.answered] if mode == "compatible" else list(rows)

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values) if values else 0.0

    return Columns(
        # The released scorer divides right answers by all rows, the IoUs by the answered ones.
        what=sum(row.right for row in kept) / len(rows),
        when_1=mean([row.when[0] for row in kept]),
        when_2=mean([row.when[1] for row in kept]),
        where_1=mean([row.where[0] for row in kept]),
        where_2=mean([row.where[1] for row in kept]),
    )


def when_iou(answer: str | None, truth: Window, mode: Mode) -> float:
    """Temporal IoU of an answer's text; None scores 0."""
    if answer is None:
        return 0.0
    if mode == "strict":
        return window_iou(read_window(answer), truth)
    numbers = [float(m[0]) for m in _BARE_NUMBER.finditer(to_seconds(answer))]
    if len(numbers) != 2:
        return 0.0
    start, end = numbers
    hull = max(truth[1], end) - min(truth[0], start)
    return max(0.0, min(truth[1], end) - max(truth[0], start)) / hull if hull > 0 else 0.0


def where_iou(
    answer: Mapping[float, Sequence[XYXY]] | None, truth: Mapping[float, XYXY], scale: tuple[float, float], mode: Mode
) -> float:
    """Visual IoU: mean over the annotated seconds of the IoU in that second, 0 where the answer has no box.

    Args:
        answer: boxes by time, in the model's unit.
        truth: the annotated box by time, in pixels of the video.
        scale: what one of the answer's units is in pixels of the video, across and down.
    """
    if not truth or answer is None:
        return 0.0
    total = 0.0
    for time, gold in truth.items():
        boxes = list(answer.get(float(time), ()))[: None if mode == "compatible" else 1]
        total += max((box_iou(_scaled(box, scale), gold) for box in boxes), default=0.0)
    return total / len(truth)


def _scaled(box: XYXY, scale: tuple[float, float]) -> XYXY:
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]
