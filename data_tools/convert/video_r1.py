"""Video-R1 (arXiv 2503.21776, `tulerfeng/Video-R1`): a JSON list.

    {"problem_id", "problem", "data_type": "video" | "image", "problem_type", "options", "process", "solution",
     "path", "data_source"}

`problem_type` decides the type of the answer; `solution` is `<answer>X</answer>`; `process`, in the file with reasoning,
is `<think>..</think>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.text import (
    answer_note,
    read_answer,
    read_options,
    split_tags,
    stated_answer,
    with_options,
    with_placeholders,
    without_options,
    without_placeholders,
)
from visd.data.manifest import LETTERS
from visd.types import Media, Message, Sample

TYPES = {
    "multiple choice": "letter",
    "numerical": "number",
    "regression": "number",
    "OCR": "text",
    "free-form": "text",
}
"""Their metrics: equality, equality of numbers, relative error, word error rate, ROUGE."""


def read(row: Row, context: Context) -> Iterator[Sample]:
    problem_type = row.text("problem_type")
    if problem_type not in TYPES:
        raise Unusable("problem_type", f"problem_type {problem_type!r} is not one of {', '.join(TYPES)}")
    written = row.list("options")
    options = read_options(written) if TYPES[problem_type] == "letter" else ()
    thought, solution = split_tags(row.text("solution"))
    answer = read_answer(solution, TYPES[problem_type], options, context)
    process = row.any_text("process")
    rationale = split_tags(process)[0] or split_tags(process)[1] if process else thought
    kind = row.text("data_type")
    if kind not in ("video", "image", "text"):
        raise Unusable("data_type", f"data_type {kind!r} is none of video, image, text")
    media = [Media("video" if kind == "video" else "image", context.path(row.text("path")))] if kind != "text" else []
    text = with_placeholders([with_options(row.text("problem"), options)], media)[0]
    source = row.any_text("data_source")
    yield sample(
        row,
        context,
        id=row.any_text("problem_id") or "",
        family=problem_type,
        source=source or None,
        media=media,
        messages=[Message("user", text)],
        answer=answer,
        rationale=rationale,
        meta={
            "answer_text": answer_note(solution, answer),
            "options_text": None if written == _labelled(options) else written,
        },
    )


def write(sample: Sample) -> dict[str, Any]:
    """A sample as a row. Its windows, boxes and further messages have no place in this format."""
    family = sample.family if sample.family in TYPES else _family(sample)
    text = without_placeholders(sample.messages[-1].content, sample.media)
    kept = sample.meta.get("options_text")
    row: dict[str, Any] = {
        **sample.meta.get("fields", {}),
        "problem_id": int(sample.id) if sample.id.isdecimal() and str(int(sample.id)) == sample.id else sample.id,
        "problem": without_options(text, sample.answer.options),
        "data_type": sample.media[0].kind if sample.media else "text",
        "problem_type": family,
        "options": kept if kept is not None else _labelled(sample.answer.options),
        "solution": f"<answer>{stated_answer(sample)}</answer>",
        "path": f"./{sample.media[0].path}" if sample.media else "",
        "data_source": sample.source,
    }
    if sample.rationale:
        row["process"] = f"<think>{sample.rationale}</think>"
    return row


def _family(sample: Sample) -> str:
    return {"letter": "multiple choice", "number": "numerical"}.get(sample.answer.type, "free-form")


def _labelled(options: tuple[str, ...]) -> list[str]:
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]


FORMAT = Format("video_r1", "Video-R1: JSON list with problem, options, solution, path", read, write)
