"""From several answers of a model to one trace with the boxes that more than one answer saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_tools.checks import TINY_BOX, WHOLE_BOX
from visd.reward.parse import Claim, Parsed, parse_response
from visd.reward.rules import accuracy, best_box_iou, is_correct, name_matches
from visd.types import Box, Evidence, Sample

SAME_TIME = 1.0
"""s within which two answers speak of the same moment."""
SAME_BOX = 0.5
"""IoU from which on they speak of the same place."""


@dataclass(frozen=True)
class Agreed:
    """What the answers of one record came to."""

    right: int  # answers that are well formed and right
    claims: int  # citations of a box in the chosen one
    boxes: tuple[Box, ...]  # of these, those that another right answer has too
    rationale: str


def agreed(sample: Sample, texts: Sequence[str], agree: int) -> Agreed | None:
    """The trace with the most citations that others confirm, the shortest of equal ones; None if too few are right.

    Args:
        texts: the model's answers.
        agree: how many must be right, by the record's own verified answer.
    """
    read = [(text, parse_response(text)) for text in texts]
    right = [(text, parsed) for text, parsed in read if parsed.well_formed and _is_right(sample, parsed)]
    if len(right) < max(1, agree):
        return None
    found = []
    for place, (text, parsed) in enumerate(right):
        others = [other for number, (_, other) in enumerate(right) if number != place]
        kept = [claim for claim in parsed.claims if _confirmed(claim, others) and _sane(claim, sample)]
        found.append(Agreed(len(right), len(parsed.claims), _boxes(kept), _trace(text, parsed, kept)))
    return min(found, key=lambda one: (-len(one.boxes), len(one.rationale)))


def annotated(sample: Sample, found: Agreed, model: str, asked: int) -> Sample:
    """The sample with the trace, and with evidence where it had none."""
    evidence = sample.evidence
    if not evidence.boxes and found.boxes:
        times = evidence.frames or tuple(sorted({box.t for box in found.boxes}))
        evidence = Evidence(evidence.windows, times, found.boxes)
    note = {"model": model, "asked": asked, "right": found.right, "claims": found.claims, "confirmed": len(found.boxes)}
    return replace(sample, rationale=found.rationale, evidence=evidence, meta={**sample.meta, "annotation": note})


def _is_right(sample: Sample, parsed: Parsed) -> bool:
    return is_correct(sample.answer, accuracy(sample.answer, parsed.answer))


def _confirmed(claim: Claim, others: Sequence[Parsed]) -> bool:
    """Whether another answer cites the same thing at about the same time and place."""
    if not claim.boxes or not claim.name or claim.t is None:
        return False
    t = claim.t
    return any(
        other.t is not None
        and abs(other.t - t) <= SAME_TIME
        and name_matches(claim.name, other.name, "within")
        and all(best_box_iou(other.boxes, box) >= SAME_BOX for box in claim.boxes)
        for parsed in others
        for other in parsed.claims
    )


def _sane(claim: Claim, sample: Sample) -> bool:
    """Whether the boxes have a size that a thing can have and the time lies within the clip."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in claim.boxes]
    starts = [item.start or 0.0 for item in sample.media]
    ends = [item.end if item.end is not None else sample.meta.get("duration", float("inf")) for item in sample.media]
    assert claim.t is not None
    inside = min(starts, default=0.0) <= claim.t <= max(ends, default=0.0)
    return inside and all(TINY_BOX <= area <= WHOLE_BOX for area in areas)


def _boxes(claims: Sequence[Claim]) -> tuple[Box, ...]:
    boxes = [Box(claim.t, claim.name, box) for claim in claims if claim.t is not None for box in claim.boxes]
    return tuple(dict.fromkeys(boxes))


def _trace(text: str, parsed: Parsed, kept: Sequence[Claim]) -> str:
    """The reasoning; of citations that nobody confirms only the name of the thing is left."""
    (start, end), parts = parsed.think_span, []
    at = start
    for claim in parsed.claims:
        if claim not in kept:
            parts += [text[at : claim.span[0]], claim.name]
            at = claim.span[1]
    return "".join((*parts, text[at:end])).strip()
