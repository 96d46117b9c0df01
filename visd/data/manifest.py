"""Manifests: one JSON object a line, or one row of a Parquet file, a sample; read strictly.

    {"id", "source", "family",
     "media":    [{"kind": "video" | "image", "path", "start", "end", "fps"}],
     "messages": [{"role", "content"}],                  `<video>` / `<image>` stand for the media, in order
     "answer":   {"type", "value", "options", "tolerance"},
     "evidence": {"windows": [[s, e]], "frames": [{"t"}], "boxes": [{"t", "name", "xyxy"}]},
     "rationale", "reward": {"name", "args"}, "meta"}

Required are id, source, family, media, messages and answer. Times are seconds on the file's own clock, boxes are
x1, y1, x2, y2 in 0-1, paths are relative to the data root.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from visd.data import parquet
from visd.data.fields import (
    ManifestError,
    Place,
    as_box,
    as_choice,
    as_free_object,
    as_list,
    as_number,
    as_object,
    as_optional_number,
    as_text,
    as_window,
    parse_json,
)
from visd.types import ANSWER_TYPES, XYXY, Answer, AnswerType, Box, Evidence, Media, Message, Sample, Window

__all__ = ["ManifestError", "answer_from_value", "load_manifest", "sample_from_record", "sample_to_record"]

REQUIRED = ("id", "source", "family", "media", "messages", "answer")
OPTIONAL = ("evidence", "rationale", "reward", "meta")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CLIP_SLACK = 0.05
"""s; times may pass the clip's end by this much, since containers round durations."""


def load_manifest(path: Path, root: Path) -> list[Sample]:
    """Read every sample of a manifest.

    Args:
        path: the file, JSON Lines or (`.parquet`) Parquet.
        root: folder below which every media path must lie after symbolic links are resolved.

    Raises:
        ManifestError: the file is missing, empty, not UTF-8, or a line is wrong.
    """
    samples: list[Sample] = []
    first_line: dict[str, int] = {}
    base = Path(os.path.realpath(root))
    for number, record in _records(path):
        where = f"{path}:{number}"
        sample = sample_from_record(record, where)
        place = Place(where, sample.id)
        if sample.id in first_line:
            raise place.at("id").error(
                f"is already used in row {first_line[sample.id]}; ids must be unique in a manifest"
            )
        first_line[sample.id] = number
        for index, item in enumerate(sample.media):
            if not Path(os.path.realpath(base / item.path)).is_relative_to(base):
                raise (
                    place.at("media")
                    .at(index)
                    .at("path")
                    .error(f"{item.path!r} leads outside the data root {str(root)!r}; move the file below the root")
                )
        samples.append(sample)
    if not samples:
        raise ManifestError(f"{path}: holds no sample")
    return samples


def sample_from_record(record: Any, where: str) -> Sample:
    """Check one record and turn it into a Sample.

    Args:
        where: file:line, for messages.

    Raises:
        ManifestError: a field is missing, unknown, of a wrong type or contradicts another.
    """
    sample_id = record.get("id") if isinstance(record, dict) else None
    place = Place(where, sample_id if isinstance(sample_id, str) else None)
    fields = as_object(record, place, REQUIRED, OPTIONAL)
    media = tuple(_media(v, place.at("media").at(i)) for i, v in enumerate(as_list(fields["media"], place.at("media"))))
    meta = as_free_object(fields.get("meta", {}), place.at("meta"))
    clip = _clip(media, meta, place)
    rationale = fields.get("rationale")
    return Sample(
        id=as_text(fields["id"], place.at("id")),
        source=as_text(fields["source"], place.at("source")),
        family=as_text(fields["family"], place.at("family")),
        media=media,
        messages=_messages(fields["messages"], media, place.at("messages")),
        answer=_answer(fields["answer"], clip, place.at("answer")),
        evidence=_evidence(fields.get("evidence", {}), clip, place.at("evidence")),
        rationale=None if rationale is None else as_text(rationale, place.at("rationale")),
        reward=_reward(fields.get("reward", {"name": "rules", "args": {}}), place.at("reward")),
        meta=dict(meta),
    )


def sample_to_record(sample: Sample) -> dict[str, Any]:
    """The JSON-able record of a sample, every field written out; the inverse of `sample_from_record`."""
    value = sample.answer.value
    return {
        "id": sample.id,
        "source": sample.source,
        "family": sample.family,
        "media": [{"kind": m.kind, "path": m.path, "start": m.start, "end": m.end, "fps": m.fps} for m in sample.media],
        "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
        "answer": {
            "type": sample.answer.type,
            "value": list(value) if isinstance(value, tuple) else value,
            "options": list(sample.answer.options),
            "tolerance": sample.answer.tolerance,
        },
        "evidence": {
            "windows": [list(w) for w in sample.evidence.windows],
            "frames": [{"t": t} for t in sample.evidence.frames],
            "boxes": [{"t": b.t, "name": b.name, "xyxy": list(b.xyxy)} for b in sample.evidence.boxes],
        },
        "rationale": sample.rationale,
        "reward": dict(sample.reward),
        "meta": dict(sample.meta),
    }


def answer_from_value(answer: Answer, value: Any, place: Place) -> Answer:
    """Another answer to the same question, checked like the verified one.

    Raises:
        ManifestError: the value does not fit the answer's type.
    """
    return Answer(answer.type, _value(answer.type, value, answer.options, place), answer.options, answer.tolerance)


@dataclass(frozen=True)
class _Clip:
    """The used part of the media, s; an unknown end is infinite."""

    start: float
    end: float

    def check(self, t: float, place: Place) -> None:
        if not self.start - CLIP_SLACK <= t <= self.end + CLIP_SLACK:
            raise place.error(
                f"{t} s lies outside the clip, which goes from {self.start} s to {self.end} s; "
                "times are seconds on the file's own clock"
            )


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Row numbers (from 1) and records, one at a time; blank lines are left out."""
    try:
        if path.suffix == parquet.SUFFIX and path.stat().st_size:
            yield from parquet.read_records(path)
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_json(line, f"{path}:{number}")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}; check the manifest's path") from error


def _media(value: Any, place: Place) -> Media:
    fields = as_object(value, place, ("kind", "path"), ("start", "end", "fps"))
    kind = as_choice(fields["kind"], place.at("kind"), ("video", "image"))
    start, end, fps = (as_optional_number(fields.get(name), place.at(name)) for name in ("start", "end", "fps"))
    if start is not None and start < 0:
        raise place.at("start").error(f"{start} must not be negative")
    if end is not None and end <= (start or 0.0):
        raise place.at("end").error(f"{end} must be greater than the start, {start or 0.0}")
    if fps is not None and fps <= 0:
        raise place.at("fps").error(f"{fps} must be greater than 0")
    return Media("video" if kind == "video" else "image", _path(fields["path"], place.at("path")), start, end, fps)


def _path(value: Any, place: Place) -> str:
    text = as_text(value, place)
    if "\0" in text:
        raise place.error("holds a null character")
    if PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor:
        raise place.error(f"{text!r} is absolute; give it relative to the data root")
    if ".." in PurePosixPath(text).parts:
        raise place.error(f"{text!r} climbs out by '..'; give it relative to the data root without '..'")
    return text


def _clip(media: tuple[Media, ...], meta: Mapping[str, Any], place: Place) -> _Clip:
    """The span in which every time must lie: what the media records and meta.duration say."""
    duration = as_optional_number(meta.get("duration"), place.at("meta").at("duration"))
    if duration is not None and duration <= 0:
        raise place.at("meta").at("duration").error(f"{duration} must be greater than 0")
    whole = math.inf if duration is None else duration
    for index, item in enumerate(media):
        for name in ("start", "end"):
            t = getattr(item, name)
            if t is not None and t > whole + CLIP_SLACK:
                raise place.at("media").at(index).at(name).error(f"{t} s is past meta.duration, {whole} s")
    starts = [item.start or 0.0 for item in media]
    ends = [whole if item.end is None else item.end for item in media]
    return _Clip(min(starts, default=0.0), max(ends, default=whole))


def _messages(value: Any, media: tuple[Media, ...], place: Place) -> tuple[Message, ...]:
    messages = []
    for index, item in enumerate(as_list(value, place)):
        here = place.at(index)
        fields = as_object(item, here, ("role", "content"))
        role = as_choice(fields["role"], here.at("role"), ("system", "user", "assistant"))
        messages.append(Message(cast(Any, role), as_text(fields["content"], here.at("content"))))
    if not messages or messages[-1].role != "user":
        raise place.error("must end with a message of the user, the question")
    text = "".join(m.content for m in messages)
    for kind in ("video", "image"):
        placeholders, items = text.count(f"<{kind}>"), sum(m.kind == kind for m in media)
        if placeholders != items:
            raise place.error(
                f"holds {placeholders} <{kind}> placeholders for {items} {kind}s in media; write one for each"
            )
    return tuple(messages)


def _answer(value: Any, clip: _Clip, place: Place) -> Answer:
    fields = as_object(value, place, ("type", "value"), ("options", "tolerance"))
    kind = cast(AnswerType, as_choice(fields["type"], place.at("type"), ANSWER_TYPES))
    here = place.at("options")
    options = tuple(as_text(v, here.at(i)) for i, v in enumerate(as_list(fields.get("options", []), here)))
    if options and kind != "letter":
        raise here.error(f"only answers of type 'letter' have options, this one is {kind!r}; leave them out")
    if kind == "letter" and not 2 <= len(options) <= len(LETTERS):
        raise here.error(f"a letter needs 2 to {len(LETTERS)} options, got {len(options)}")
    tolerance = as_number(fields.get("tolerance", 0.0), place.at("tolerance"))
    if tolerance < 0 or (tolerance > 0 and kind != "number"):
        raise place.at("tolerance").error(f"{tolerance} must be 0, or positive for an answer of type 'number'")
    here = place.at("value")
    checked = _value(kind, fields["value"], options, here)
    if kind == "window":
        for t in cast(Window, checked):
            clip.check(t, here)
    return Answer(kind, checked, options, tolerance)


def _value(kind: AnswerType, value: Any, options: tuple[str, ...], place: Place) -> str | float | Window | XYXY:
    if kind == "number":
        return as_number(value, place)
    if kind == "window":
        return as_window(value, place)
    if kind == "box":
        return as_box(value, place)
    text = as_text(value, place)
    if kind == "letter" and text not in LETTERS[: len(options)]:
        raise place.error(
            f"{text!r} is not among the options {', '.join(LETTERS[: len(options)])}; give one capital letter"
        )
    return text


def _evidence(value: Any, clip: _Clip, place: Place) -> Evidence:
    fields = as_object(value, place, (), ("windows", "frames", "boxes"))
    windows, frames, boxes = [], [], []
    for index, item in enumerate(as_list(fields.get("windows", []), place.at("windows"))):
        here = place.at("windows").at(index)
        window = as_window(item, here)
        for t in window:
            clip.check(t, here)
        windows.append(window)
    for index, item in enumerate(as_list(fields.get("frames", []), place.at("frames"))):
        frames.append(_time(as_object(item, place.at("frames").at(index), ("t",)), clip, place.at("frames").at(index)))
    for index, item in enumerate(as_list(fields.get("boxes", []), place.at("boxes"))):
        here = place.at("boxes").at(index)
        box = as_object(item, here, ("t", "name", "xyxy"))
        boxes.append(
            Box(_time(box, clip, here), as_text(box["name"], here.at("name")), as_box(box["xyxy"], here.at("xyxy")))
        )
    return Evidence(tuple(windows), tuple(frames), tuple(boxes))


def _time(fields: Mapping[str, Any], clip: _Clip, place: Place) -> float:
    t = as_number(fields["t"], place.at("t"))
    clip.check(t, place.at("t"))
    return t


def _reward(value: Any, place: Place) -> dict[str, Any]:
    fields = as_object(value, place, ("name",), ("args",))
    return {
        "name": as_text(fields["name"], place.at("name")),
        "args": dict(as_free_object(fields.get("args", {}), place.at("args"))),
    }
