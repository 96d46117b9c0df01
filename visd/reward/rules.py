"""Reward functions, one a part. Each is pure and returns a value in 0-1.

The parts are those of Open-o3-Video (arXiv 2510.20579, `marinero4972/Open-o3-Video`) with the spatial options of
VisionCoach (arXiv 2603.14659, `daeunni/VisionCoach`). Two things differ from the published code on purpose: the time
gate is symmetric in every setting, and an answer that holds several boxes or windows is not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, cast

from visd.reward.parse import Claim, Parsed, normalise, parse_box, parse_letter, parse_number, parse_window
from visd.types import XYXY, Answer, Box, Window

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

GRADED_CORRECT = 0.5
"""Least value at which an answer with a graded score (window, box, text) counts as correct."""
LONGEST_TEXT = 20_000
"""Characters; a longer free-text answer scores 0, since matching it would take minutes and yield about 0 anyway."""

_RUN = re.compile(r"[\x00-\x7f]+|[^\W\x00-\x7f]")


# ---------------------------------------------------------------------------------------------------- answer


def accuracy(answer: Answer, text: str | None, number_tolerance: float = 0.0) -> float:
    """How right an answer is, by its type: 0 or 1 for word, number and letter; ROUGE for text; IoU for window and box.

    Args:
        text: the inside of the answer tag; None where there is none, which scores 0.
        number_tolerance: absolute, for a number whose sample has no tolerance of its own.
    """
    if text is None:
        return 0.0
    if answer.type == "word":
        return float(normalise(text) == normalise(cast(str, answer.value)))
    if answer.type == "number":
        return number_accuracy(text, cast(float, answer.value), answer.tolerance or number_tolerance)
    if answer.type == "letter":
        return float(parse_letter(text, answer.options) == cast(str, answer.value))
    if answer.type == "window":
        window = parse_window(text)
        return temporal_iou(window, cast(Window, answer.value)) if window else 0.0
    if answer.type == "box":
        box = parse_box(text)
        return box_iou(box, cast(XYXY, answer.value)) if box else 0.0
    return rouge(text, cast(str, answer.value))


def is_correct(answer: Answer, value: float) -> bool:
    """Whether an accuracy counts as right: 1 for word, number and letter, at least 0.5 for window, box and text."""
    return value >= (GRADED_CORRECT if answer.type in ("window", "box", "text") else 1.0)


def readable(answer: Answer, text: str | None) -> bool:
    """Whether an answer can be read as its type at all."""
    if text is None:
        return False
    if answer.type == "number":
        return parse_number(text) is not None
    if answer.type == "letter":
        return parse_letter(text, answer.options) is not None
    if answer.type == "window":
        return parse_window(text) is not None
    if answer.type == "box":
        return parse_box(text) is not None
    return bool(normalise(text))


def number_accuracy(text: str, gold: float, tolerance: float) -> float:
    """1 if the answer's one number lies within `tolerance` of the gold number (rounding of floats forgiven)."""
    value = parse_number(text)
    if value is None:
        return 0.0
    return float(abs(value - gold) <= tolerance + 1e-9 * max(1.0, abs(gold)))


def rouge(text: str, gold: str) -> float:
    """Mean of the ROUGE-1, ROUGE-2 and ROUGE-L F-measures with Porter stemming.

    English is tokenised as `rouge_score` does; each letter outside a-z is a token of its own, so that answers in
    other scripts can match at all.
    """
    if len(text) > LONGEST_TEXT:
        return 0.0
    scores = _rouge_scorer().score(gold, text)
    return math.fsum(float(score.fmeasure) for score in scores.values()) / len(scores)


@cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    english = DefaultTokenizer(use_stemmer=True)

    class Words:
        def tokenize(self, text: str) -> list[str]:
            runs = _RUN.findall(text.lower())
            return [token for run in runs for token in (english.tokenize(run) if run.isascii() else [run])]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())


# ---------------------------------------------------------------------------------------------------- format


def format_score(parsed: Parsed, answer: Answer, grounded: bool) -> float:
    """Form of the response, whether or not it is right.

    0 unless it is one think block, then one answer that is not empty, nothing outside them and every tag paired. Then
    1 if the answer can be read as its type and the reasoning cites what the type calls for, else 0.5:
        window: two times or more;  box: an object with a readable box;
        text, where the evidence has boxes (`grounded`): an object with a readable box and a time;
        word, number, letter and other texts: nothing.
    """
    if not parsed.well_formed:
        return 0.0
    cites = True
    if answer.type == "window":
        cites = len(parsed.times) >= 2
    elif answer.type == "box":
        cites = any(claim.name and claim.boxes for claim in parsed.claims)
    elif answer.type == "text" and grounded:
        cites = any(claim.name and claim.boxes and claim.t is not None for claim in parsed.claims)
    return 1.0 if cites and readable(answer, parsed.answer) else 0.5


# ------------------------------------------------------------------------------------------------------- IoU


def temporal_iou(a: Window, b: Window) -> float:
    """Intersection over hull; 0 if either ends before it starts; 1 for two equal instants."""
    if a[1] < a[0] or b[1] < b[0]:
        return 0.0
    hull = max(a[1], b[1]) - min(a[0], b[0])
    if hull == 0:
        return 1.0
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / hull


def box_iou(a: XYXY, b: XYXY) -> float:
    """Intersection over union of two boxes; 0 where they have no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    return min(1.0, overlap / union) if union > 0 else 0.0


def best_box_iou(boxes: Sequence[XYXY], gold: XYXY) -> float:
    """The largest IoU of any box with the gold box; 0 without boxes."""
    return max((box_iou(box, gold) for box in boxes), default=0.0)


# ------------------------------------------------------------------------------------------------- reasoning


def temporal_sigma(progress: float, start: float, end: float, until: float) -> float:
    """Width of the temporal point reward: linear from `start` to `end` while progress < `until`, then `end`, s.

    With 4, 1 and 0.75 this is Open-o3-Video's 4 (1 - progress).
    """
    if progress >= until:
        return end
    return start + (end - start) * max(0.0, progress) / until


def think_temporal_point(times: Sequence[float], frames: Sequence[float], sigma: float) -> float:
    """Mean over the reasoning's times of exp(-d^2 / (2 sigma^2)), d to the nearest key frame; 0 without times.

    Args:
        times, frames: s; at least one frame.
        sigma: s.
    """
    if not times:
        return 0.0
    offsets = (min(abs(t - frame) for frame in frames) / sigma for t in times)
    return math.fsum(math.exp(-0.5 * z * z) for z in offsets) / len(times)


def think_temporal_segment(times: Sequence[float], windows: Sequence[Window]) -> float:
    """Share of the reasoning's times that lie in a gold window, ends included; 0 without times."""
    if not times:
        return 0.0
    return sum(any(start <= t <= end for start, end in windows) for t in times) / len(times)


def think_spatial(
    claims: Sequence[Claim],
    gold: Sequence[Box],
    *,
    gate: float,
    match: str = "soft",
    normaliser: str = "claims",
    aggregate: str = "mean",
    need_time: bool = True,
) -> float:
    """How well the reasoning's claims show gold objects, in 0-1; 0 without claims.

    A claim is compared with the nearest gold frame at most `gate` seconds away. There, for each object whose name
    matches, the best IoU of a claimed box is averaged over the object's gold boxes; `aggregate` (mean, max) joins the
    objects. A claim with no frame in reach or no object of that name is unmatched and scores 0. The sum is divided by
    the number of claims (`claims`: further wrong claims lower the score) or of matched claims (`matched`: they cost
    nothing, as in VisionCoach).

    Args:
        need_time: False (images) compares a claim without a time with all gold boxes.
    """
    values = [claim_iou(claim, gold, gate, match, aggregate, need_time) for claim in claims]
    matched = [value for value in values if value is not None]
    count = len(matched) if normaliser == "matched" else len(values)
    return min(1.0, math.fsum(matched) / max(1, count))


def claim_iou(
    claim: Claim, gold: Sequence[Box], gate: float, match: str, aggregate: str = "mean", need_time: bool = True
) -> float | None:
    """The score of one claim as `think_spatial` takes it; None for an unmatched claim."""
    objects: dict[str, list[XYXY]] = {}
    for box in _in_reach(claim, gold, gate, need_time):
        if name_matches(claim.name, box.name, match):
            objects.setdefault(box.name, []).append(box.xyxy)
    if not objects:
        return None
    scores = [math.fsum(best_box_iou(claim.boxes, box) for box in boxes) / len(boxes) for boxes in objects.values()]
    return max(scores) if aggregate == "max" else math.fsum(scores) / len(scores)


def _in_reach(claim: Claim, gold: Sequence[Box], gate: float, need_time: bool) -> Sequence[Box]:
    """The gold boxes of the frame that a claim is compared with; the earlier of two equally near frames."""
    if claim.t is None:
        return () if need_time else gold
    t = claim.t
    near = min((box.t for box in gold), key=lambda frame: (abs(frame - t), frame), default=math.inf)
    return [box for box in gold if box.t == near] if abs(near - t) <= gate else ()


_name = lru_cache(4096)(normalise)


def name_matches(claimed: str, gold: str, match: str) -> bool:
    """Whether two object names agree.

    `exact`: the same words; `within`: the words of one stand in the other; `soft`: one contains the other as text, or
    they share a word (the published rule, under which "red square" also matches "blue square").
    """
    a, b = _name(claimed), _name(gold)
    if not a or not b:
        return False
    if match == "exact":
        return a == b
    if match == "within":
        return f" {a} " in f" {b} " or f" {b} " in f" {a} "
    return a in b or b in a or not set(a.split()).isdisjoint(b.split())
