"""TRL's conversational format: rows with `prompt` (or `messages`), images beside or inline, and free columns.

    {"prompt": [{"role", "content": text | [{"type": "image"}, {"type": "text", "text"}]}],
     "images" | "image": [..], "solution": "..", "completion": [{"role": "assistant", "content"}]}

The answer is a free column: `solution`, `answer` or `ground_truth`, or the one that `--column answer=NAME` says; without
one, the completion, or the last message of `messages`. TRL has no column of videos; `videos` is read all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.carried import COLUMN, answer_type, carried, response, restored
from data_tools.convert.messages import in_order, media_columns, read_messages
from data_tools.convert.text import answer_to, note_unless_box, split_tags
from visd.types import Message, Sample

ANSWERS = ("solution", "answer", "ground_truth")


def read(row: Row, context: Context) -> Iterator[Sample]:
    messages, inline = read_messages(row.take("prompt") or row.take("messages"), context)
    said = _completion(row, context)
    if messages[-1].role == "assistant":
        said = said or messages.pop().content
    text = _answer(row, context) or said
    if text is None:
        raise Unusable("no_answer", f"there is no column {', '.join(ANSWERS)}; give --column answer=NAME")
    messages, media = in_order(messages, inline + media_columns(row, context))
    thought, stated = split_tags(text)
    rationale = split_tags(said)[0] if said else thought
    answer = answer_to(messages[-1].content, stated, context, media[0].path if media else "", answer_type(row))
    made = sample(
        row,
        context,
        id=row.any_text("id") or "",
        family="trl",
        media=media,
        messages=messages,
        answer=answer,
        rationale=rationale,
        meta={"answer_text": note_unless_box(stated, answer)},
    )
    yield restored(made, row)


def _answer(row: Row, context: Context) -> str | None:
    named = context.options.columns.get("answer")
    return next((text for name in ([named] if named else ANSWERS) if (text := row.any_text(name))), None)


def _completion(row: Row, context: Context) -> str | None:
    value = row.take("completion")
    if value is None or isinstance(value, str):
        return value
    messages: list[Message] = read_messages(value, context)[0]
    return messages[-1].content


def write(sample: Sample) -> dict[str, Any]:
    """A sample as a row: prompt in parts, media inline and beside, everything else in the column `visd`."""
    waiting = {kind: iter([m.path for m in sample.media if m.kind == kind]) for kind in ("video", "image")}
    row: dict[str, Any] = {
        **sample.meta.get("fields", {}),
        "id": sample.id,
        "prompt": [{"role": m.role, "content": _parts(m.content, waiting)} for m in sample.messages],
        "images": [m.path for m in sample.media if m.kind == "image"],
        "solution": response(sample),
    }
    if sample.rationale:
        text = f"<think>{sample.rationale}</think>{response(sample)}"
        row["completion"] = [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
    return row | {COLUMN: carried(sample)}


def _parts(text: str, waiting: dict[str, Iterator[str]]) -> list[dict[str, str]]:
    """Content in parts. Images lie in their column, so only videos name their file here."""
    parts: list[dict[str, str]] = []
    while text:
        places = [(at, kind) for kind in waiting if (at := text.find(f"<{kind}>")) >= 0]
        at, kind = min(places, default=(len(text), ""))
        if at:
            parts.append({"type": "text", "text": text[:at]})
        if kind:
            parts.append({"type": "image"} if kind == "image" else {"type": "video", "video": next(waiting["video"])})
        text = text[at + len(f"<{kind}>") :] if kind else ""
    return parts


FORMAT = Format("trl", "TRL conversational: prompt of messages, images, answer in a free column", read, write)
