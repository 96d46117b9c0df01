"""Open-o3-Video's STGR (arXiv 2510.20579, `marinero4972/Open-o3-Video`), SFT and RL: a JSON list.

    {"id", "source", "task", "question", "answer", "video_path" | "image_path", "image_size": [W, H],
     "key_frames": [{"idx", "time", "path"}], "key_items": {idx: {object: [box, ...]}}, "reasoning_process" (SFT)}

The task decides the shape of the answer. Boxes are 0-1, those of images ("visual QA") pixels of `image_size`. The
folder of a medium follows from source and task, as in the published code; `--folder` goes before it. A key item of a
frame that is not among the key frames has no time and is left out, counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.boxes import BadBox, Size
from data_tools.convert.text import (
    answer_note,
    boxes_to_unit,
    options_in,
    read_answer,
    read_box,
    with_placeholders,
)
from visd.reward.parse import parse_window
from visd.types import XYXY, Answer, Box, Evidence, Media, Message, Sample, Window

IMAGE_TASK = "visual QA"
TASKS = {
    IMAGE_TASK: "box",
    "temporal-spatial free-form QA": "text",
    "temporal QA": "window",
    "temporal QA (MCQ)": "letter",
    "General video QA MCQ": "letter",
    "General video QA Free-form": "text",
}
FOLDERS = (
    ("gqa", "gqa"),
    ("timerft", "timerft"),
    ("videoespresso", "videoespresso/videos"),
    ("STR_plm", "stgr/plm/videos"),
    ("STR", "stgr/temporal_grounding/videos"),
    ("TVG", "tvg_r1"),
    ("videor1", "videor1"),
)
"""What the name of a source holds, and its folder; the first that fits."""


def read(row: Row, context: Context) -> Iterator[Sample]:
    task, source, question = row.text("task"), row.text("source"), row.text("question")
    if task not in TASKS:
        raise Unusable("task", f"task {task!r} is not one of {', '.join(TASKS)}")
    image = task == IMAGE_TASK
    size = _size(row.take("image_size"))
    convention = "pixels" if image else "unit"
    medium = Media(
        "image" if image else "video",
        context.path(row.text("image_path" if image else "video_path"), _folder(source, task)),
    )
    written = row.take("answer")
    answer, windows, boxes = _answer(written, task, question, size, context)
    frames = row.list("key_frames")
    items = _boxes(row.take("key_items"), frames, size, context)
    thought = row.any_text("reasoning_process")
    yield sample(
        row,
        context,
        id=row.any_text("id") or "",
        source=source,
        family=task,
        media=[medium],
        messages=[Message("user", with_placeholders([question], [medium])[0])],
        answer=answer,
        evidence=Evidence(tuple(windows), tuple(float(frame["time"]) for frame in frames), tuple(boxes + items)),
        rationale=boxes_to_unit(thought, context, size, convention) if thought else None,
        meta={
            "answer_text": answer_note(written, answer) if answer.type == "text" else None,
            "key_frames": frames,
            "boxes": {"from": convention, "size": list(size) if size else None} if boxes or items else None,
        },
    )


def _size(value: Any) -> Size | None:
    if value in (None, []):
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, (int, float)) and v > 0 for v in value):
        raise Unusable("image_size", f"image_size must be [width, height], got {value}")
    return int(value[0]), int(value[1])


def _folder(source: str, task: str) -> str:
    if task == IMAGE_TASK and source != "gqa":
        return "treevgr"
    if task.startswith("General"):
        return "videor1"
    found = next((folder for mark, folder in FOLDERS if mark in source), None)
    if found is None:
        if task.startswith("temporal QA"):
            return "tvg_r1"
        raise Unusable("source", f"source {source!r} has no known folder")
    return found


def _answer(
    written: Any, task: str, question: str, size: Size | None, context: Context
) -> tuple[Answer, list[Window], list[Box]]:
    kind = TASKS[task]
    if kind == "window":
        window = _window(written)
        return Answer("window", window), [window], []
    if not isinstance(written, str) or not written.strip():
        raise Unusable("no_answer", f"field 'answer' must be a text that is not empty, got {written!r}")
    if kind == "box":
        if "<box>" not in written:
            context.note("visual_answer_in_words")  # rows of the SFT file
            return read_answer(written, "text", (), context), [], []
        box = read_box(written, context, size, "", "pixels")
        return Answer("box", box), [], [Box(0.0, _name(written), box)]
    if kind == "letter":
        letter, _, rest = written.partition("\n")
        answer = read_answer(letter, "letter", options_in(question), context)
        return answer, [_window(rest)] if task == "temporal QA (MCQ)" else [], []
    return read_answer(written, "text", (), context), [], []


def _name(text: str) -> str:
    name = text.partition("<obj>")[2].partition("</obj>")[0].strip()
    if not name:
        raise Unusable("object", f"{text[:80]!r} names no object")
    return name


def _window(value: Any) -> Window:
    """`[1.0, 2.5]` as a list or as its text, or `From <t>1.0</t>s to <t>2.5</t>s`."""
    if isinstance(value, list):
        value = str(value)
    window = parse_window(value) if isinstance(value, str) else None
    if window is None:
        raise Unusable("window", f"{str(value)[:80]!r} is no window of start and end in seconds")
    return window


def _boxes(items: Any, frames: Sequence[Any], size: Size | None, context: Context) -> list[Box]:
    if not items:
        return []
    if not isinstance(items, Mapping):
        raise Unusable("key_items", "key_items must be an object of frames")
    times = {str(frame["idx"]): float(frame["time"]) for frame in frames}
    boxes: list[Box] = []
    for idx, objects in items.items():
        if not objects:  # `datasets` gives every row all names, without values
            continue
        if str(idx) not in times:
            context.note("key_item_without_frame")
            continue
        for name, given in objects.items():
            for values in _several(given):
                box = _box(values, size, context)
                if box is not None:
                    boxes.append(Box(times[str(idx)], name, box))
    return boxes


def _several(value: Any) -> list[Any]:
    """Boxes of an object: a list of boxes, or one box."""
    if not value:
        return []
    return [value] if isinstance(value[0], (int, float)) else value


def _box(values: Any, size: Size | None, context: Context) -> XYXY | None:
    try:
        return context.boxes.read(values, size, "", "unit")
    except BadBox as error:
        context.note(f"left_out_{error.reason}")
        return None


FORMAT = Format("stgr", "Open-o3-Video STGR, SFT and RL: JSON list with task, key_frames, key_items", read)
