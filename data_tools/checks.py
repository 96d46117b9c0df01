"""What can be wrong with one record, beyond what reading it refuses: each finding names the field and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from data_tools.probed import Probed
from visd.data.manifest import CLIP_SLACK
from visd.reward.combine import gold_windows, sample_weights
from visd.reward.parse import normalise, parse_response
from visd.types import Sample, VisdError

Level = Literal["error", "warning"]

TINY_BOX = 1e-4
"""Share of the frame under which a box is hardly a thing."""
WHOLE_BOX = 0.98
"""Share of the frame over which a box says nothing."""
_TAGS = re.compile(r"</?(think|answer|obj|box|t)>")
_LETTER = re.compile(r"\(?[A-E][.)]?")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Finding:
    """Something wrong, or likely to be, with a field of a record."""

    level: Level
    check: str  # its name, by which findings are counted
    field: str
    message: str  # what is wrong; what to do


def check_sample(sample: Sample, probed: Probed | None) -> Iterator[Finding]:
    """All findings of a record that could be read.

    Args:
        probed: what is known of its files; None leaves out what needs it.
    """
    if probed is not None:
        yield from check_media(sample, probed)
    yield from check_boxes(sample)
    yield from check_answer(sample)
    yield from check_reward(sample)
    yield from check_tags(sample)


def check_media(sample: Sample, probed: Probed) -> Iterator[Finding]:
    """Files are there and sound, and no time lies outside them."""
    end = 0.0
    for number, item in enumerate(sample.media):
        place, file = f"media[{number}]", probed.get(item.path)
        if file is None:
            yield Finding("error", "not_probed", f"{place}.path", f"{item.path!r} is not in --probe; probe it")
            end = math.inf
            continue
        if not file.sound:
            yield Finding(
                "error",
                "quarantined",
                f"{place}.path",
                f"{item.path!r} cannot be decoded; replace it or drop the record",
            )
            end = math.inf
            continue
        last = file.duration if item.kind == "video" else math.inf
        for name in ("start", "end"):
            t = getattr(item, name)
            if t is not None and t > last + CLIP_SLACK:
                message = f"{t} s is past the end of the file, {last:.3f} s; correct it"
                yield Finding("error", "clip_outside_file", f"{place}.{name}", message)
        end = max(end, min(last, item.end if item.end is not None else math.inf))
    if sample.media:
        for where, t in _times(sample):
            if t > end + CLIP_SLACK:
                message = f"{t} s is past the end of the clip, {end:.3f} s; correct it"
                yield Finding("error", "time_outside_clip", where, message)


def _times(sample: Sample) -> Iterator[tuple[str, float]]:
    evidence = sample.evidence
    yield from ((f"evidence.windows[{i}]", end) for i, (_, end) in enumerate(evidence.windows))
    yield from ((f"evidence.frames[{i}].t", t) for i, t in enumerate(evidence.frames))
    yield from ((f"evidence.boxes[{i}].t", box.t) for i, box in enumerate(evidence.boxes))
    if sample.answer.type == "window":
        yield "answer.value", cast(tuple[float, float], sample.answer.value)[1]


def check_boxes(sample: Sample) -> Iterator[Finding]:
    """Boxes have a size that a thing can have, stand once, and lie where the evidence says something happens."""
    windows, seen = gold_windows(sample), set()
    for number, box in enumerate(sample.evidence.boxes):
        place = f"evidence.boxes[{number}]"
        x1, y1, x2, y2 = box.xyxy
        area = (x2 - x1) * (y2 - y1)
        if area < TINY_BOX or area > WHOLE_BOX:
            what = "hardly a pixel" if area < TINY_BOX else "the whole frame"
            message = f"covers {area:.2g} of the frame, {what}; check the convention that boxes were written in"
            yield Finding("warning", "box_size", f"{place}.xyxy", message)
        if box in seen:
            yield Finding("warning", "box_twice", place, f"{box.name!r} at {box.t} s stands twice; delete one")
        seen.add(box)
        if windows and not any(a - CLIP_SLACK <= box.t <= b + CLIP_SLACK for a, b in windows):
            message = f"{box.t} s lies in no window of the evidence; correct the box or the windows"
            yield Finding("warning", "box_outside_windows", f"{place}.t", message)


def check_answer(sample: Sample) -> Iterator[Finding]:
    """Letters exist and mean one option each, and the type is the one that the value asks for."""
    answer = sample.answer
    options = [normalise(option) or option.strip() for option in answer.options]
    for number, option in enumerate(options):
        if option in options[:number]:
            first = chr(ord("A") + options.index(option))
            message = f"is the same as option {first}; two letters would be right"
            yield Finding("error", "option_twice", f"answer.options[{number}]", message)
    if answer.type not in ("word", "text"):
        return
    value = str(answer.value).strip()
    advice = None
    if _LETTER.fullmatch(value) and re.search(r"\bB[.)]", sample.messages[-1].content):
        advice = "looks like a letter of options in the question; make it 'letter' and list them"
    elif _NUMBER.fullmatch(value):
        advice = "is a number; make it 'number', or 3 and 3.0 will differ"
    elif answer.type == "word" and len(normalise(value).split()) > 1:
        advice = "has several words; make it 'text', or nothing but exactly these will be right"
    if advice:
        yield Finding("warning", "answer_type", "answer.type", f"{value[:60]!r} of type {answer.type!r} {advice}")


NEEDS = {
    "temporal_iou": "an answer of type 'window'",
    "spatial_iou": "an answer of type 'box'",
    "think_temporal_point": "evidence.frames",
    "think_temporal_segment": "a window in answer or evidence",
    "think_spatial": "evidence.boxes",
}


def check_reward(sample: Sample) -> Iterator[Finding]:
    """The reward exists, and each part that the record gives weight to can be scored for its answer and evidence."""
    try:
        weights = sample_weights(sample)
    except VisdError as error:
        yield Finding("error", "reward", "reward", str(error).split(": ", 1)[-1])
        return
    answer, evidence = sample.answer, sample.evidence
    there = {
        "temporal_iou": answer.type == "window",
        "spatial_iou": answer.type == "box",
        "think_temporal_point": bool(evidence.frames),
        "think_temporal_segment": bool(gold_windows(sample)),
        "think_spatial": bool(evidence.boxes) or answer.type == "box",
    }
    for part, weight in weights.items():
        if weight and not there.get(part, True):
            message = f"needs {NEEDS[part]}, which this record (answer of type {answer.type!r}) has not; remove it"
            yield Finding("error", "reward_does_not_apply", f"reward.args.weights.{part}", message)


def check_tags(sample: Sample) -> Iterator[Finding]:
    """Tags of the trace are balanced and can be read; the question has none that belong to answers."""
    for number, turn in enumerate(sample.messages):
        if turn.role == "user" and (found := re.search(r"</?(?:think|answer)>", turn.content)):
            text = f"holds {found[0]!r}, which belongs to answers; remove it"
            yield Finding("warning", "tag_in_question", f"messages[{number}].content", text)
    trace = sample.rationale
    if trace is None:
        return
    if re.search(r"</?(?:think|answer)>", trace):
        message = "holds <think> or <answer>, which are added around it; remove the tags and the answer"
        yield Finding("error", "tag_in_rationale", "rationale", message)
        return
    parsed = parse_response(f"<think>{trace}</think><answer>x</answer>")
    if not parsed.well_formed:
        yield Finding("error", "tags_unbalanced", "rationale", f"{_unbalanced(trace)}; close each tag that is opened")
        return
    for name, readable in (("t", len(parsed.times)), ("box", len(parsed.boxes))):
        written = trace.count(f"<{name}>")
        if readable < written:
            message = (
                f"{written - readable} of {written} <{name}> tags hold no {'time' if name == 't' else 'box in 0-1'}"
            )
            yield Finding("error", "tag_unreadable", "rationale", f"{message}; correct them")


def _unbalanced(trace: str) -> str:
    for name in ("obj", "box", "t"):
        opened, closed = trace.count(f"<{name}>"), trace.count(f"</{name}>")
        if opened != closed:
            return f"has {opened} <{name}> and {closed} </{name}>"
    return f"tags cross each other ({', '.join(m[0] for m in list(_TAGS.finditer(trace))[:6])})"
