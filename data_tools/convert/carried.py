"""What a manifest holds and a foreign row has no field for: kept in one further column, so that the way back is whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tools.convert.base import Row, Unusable
from data_tools.convert.text import stated_answer
from visd.types import Box, Evidence, Sample

COLUMN = "visd"


def carried(sample: Sample, *, boxes: bool = True) -> dict[str, Any]:
    """The column's value. Fields at their defaults are left out.

    Args:
        boxes: whether the row has no place of its own for boxes.
    """
    evidence = sample.evidence
    value: dict[str, Any] = {
        "family": sample.family,
        "source": sample.source,
        "answer_type": sample.answer.type,
        "tolerance": sample.answer.tolerance or None,
        "windows": [list(window) for window in evidence.windows],
        "frames": list(evidence.frames),
        "boxes": [{"t": b.t, "name": b.name, "xyxy": list(b.xyxy)} for b in evidence.boxes] if boxes else [],
        "clips": [[m.start, m.end, m.fps] for m in sample.media],
        "reward": dict(sample.reward) if sample.reward != {"name": "rules", "args": {}} else None,
        "meta": {name: item for name, item in sample.meta.items() if name != "fields"},
    }
    if all(clip == [None, None, None] for clip in value["clips"]):
        value["clips"] = []
    return {name: item for name, item in value.items() if item not in (None, [], {})}


def answer_type(row: Row) -> str:
    """The answer's type that the column says; empty where it does not."""
    value = row.take(COLUMN, {})
    return str(value.get("answer_type", "")) if isinstance(value, dict) else ""


def restored(sample: Sample, row: Row) -> Sample:
    """The sample with what the column of its row says."""
    value = row.take(COLUMN)
    if value is None:
        return sample
    try:
        boxes = tuple(Box(float(b["t"]), str(b["name"]), tuple(b["xyxy"])) for b in value.get("boxes", []))
        evidence = Evidence(
            tuple((float(s), float(e)) for s, e in value.get("windows", [])),
            tuple(float(t) for t in value.get("frames", [])),
            boxes or sample.evidence.boxes,
        )
        clips = value.get("clips") or [[None, None, None]] * len(sample.media)
        media = tuple(
            replace(m, start=start, end=end, fps=fps) for m, (start, end, fps) in zip(sample.media, clips, strict=True)
        )
        fields = {"fields": sample.meta["fields"]} if "fields" in sample.meta else {}
        return replace(
            sample,
            family=value["family"],
            source=value["source"],
            media=media,
            answer=replace(sample.answer, tolerance=float(value.get("tolerance", 0.0))),
            evidence=evidence,
            reward=value.get("reward", {"name": "rules", "args": {}}),
            meta={**value.get("meta", {}), **fields},
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unusable("field", f"field {COLUMN!r} is not what `convert --to` wrote ({error!r})") from None


def response(sample: Sample) -> str:
    """The answer in its tag."""
    return f"<answer>{stated_answer(sample)}</answer>"
