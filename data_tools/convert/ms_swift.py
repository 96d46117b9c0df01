"""ms-swift (`modelscope/ms-swift`, "Custom dataset"): JSON Lines.

    {"messages": [{"role", "content"}], "videos": [..], "images": [..], "solution",
     "objects": {"ref": [..], "bbox": [[x1, y1, x2, y2]], "bbox_type": "real" | "norm1", "image_id": [..]}}

The answer is `solution`, or the last message of the assistant. A video may be a list of frames, which become images.
`<ref-object>` and `<bbox>` in texts are written out, boxes in 0-1. `real` boxes are pixels of the medium that
`image_id` (from 0) names. Points, audio and media embedded in rows are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.boxes import BadBox
from data_tools.convert.carried import COLUMN, answer_type, carried, response, restored
from data_tools.convert.messages import in_order, media_columns, read_messages
from data_tools.convert.text import answer_to, note_unless_box, split_tags
from visd.data.targets import box_text
from visd.types import Box, Evidence, Media, Message, Sample

CONVENTION = {"real": "pixels", "norm1": "unit"}


def read(row: Row, context: Context) -> Iterator[Sample]:
    messages, inline = read_messages(row.take("messages"), context)
    frames = _frame_lists(row)
    messages, frame_images = _as_images(messages, frames, context)
    objects = row.take("objects", {})
    media = inline + _columns(row, context, frames, frame_images)
    boxes, kind = _boxes(objects, media, context)
    # A box that comes from `objects` is written out in 0-1, whatever those of the file are.
    from_objects = "box" if messages[-1].content.strip() == "<bbox>" else ""
    messages = _written_out(messages, objects, boxes)
    solution = row.any_text("solution")
    last = messages.pop().content if messages[-1].role == "assistant" else None
    text = solution if solution is not None else last
    if text is None:
        raise Unusable("no_answer", "there is neither a solution nor a last message of the assistant")
    messages, media = in_order(messages, media)
    rationale, said = split_tags(text)
    if solution is not None and last is not None:
        rationale = split_tags(last)[0]
    answer = answer_to(
        messages[-1].content, said, context, media[0].path if media else "", answer_type(row) or from_objects
    )
    made = sample(
        row,
        context,
        id=row.any_text("id") or "",
        family="swift",
        media=media,
        messages=messages,
        answer=answer,
        evidence=Evidence(boxes=tuple(boxes)),
        rationale=rationale,
        meta={
            "answer_text": note_unless_box(said, answer),
            "boxes": {"from": kind} if boxes else None,
            "frame_lists": [len(paths) for paths in frames],
        },
    )
    yield restored(made, row)


def _frame_lists(row: Row) -> list[list[Any]]:
    return [value for value in row.list("videos") if isinstance(value, list)]


def _columns(row: Row, context: Context, frames: Sequence[list[Any]], frame_images: list[Media]) -> list[Media]:
    if not frames:
        return media_columns(row, context)
    if any(not isinstance(value, list) for value in row.list("videos")) or row.has("images"):
        raise Unusable("media", "lists of frames beside other media have no order; convert them apart")
    return frame_images


def _as_images(
    messages: list[Message], frames: Sequence[list[Any]], context: Context
) -> tuple[list[Message], list[Media]]:
    """Each `<video>` that is a list of frames as one `<image>` a frame."""
    if not frames:
        return messages, []
    waiting = iter(frames)
    out = []
    for message in messages:
        parts = message.content.split("<video>")
        text = parts[0]
        for part in parts[1:]:
            paths = next(waiting, None)
            if paths is None:
                raise Unusable("placeholders", "there are more <video> than videos")
            text += "<image>" * len(paths) + part
        out.append(Message(message.role, text))
    context.note("frames_as_images")
    return out, [Media("image", context.path(path)) for paths in frames for path in paths]


def _boxes(objects: dict[str, Any], media: Sequence[Media], context: Context) -> tuple[list[Box], str]:
    values, names = objects.get("bbox") or [], objects.get("ref") or []
    kind = objects.get("bbox_type") or "real"
    if kind not in CONVENTION:
        raise Unusable("bbox_type", f"bbox_type {kind!r} is not one of {', '.join(CONVENTION)}")
    of, times = objects.get("image_id") or [0] * len(values), objects.get("time") or [0.0] * len(values)
    if len(of) != len(values) or len(times) != len(values):
        raise Unusable("objects", "image_id and bbox must be equally long")
    boxes = []
    for index, box in enumerate(values):
        if len(box) == 2:
            raise Unusable("point", "a point is no box")
        if not 0 <= of[index] < max(1, len(media)):
            raise Unusable("objects", f"image_id {of[index]} names no medium")
        path = media[of[index]].path if media else ""
        try:
            xyxy = context.boxes.read(box, None, path, CONVENTION[kind])
        except BadBox as error:
            raise Unusable(error.reason, str(error)) from None
        name = names[index] if index < len(names) else (names[-1] if names else "object")
        boxes.append(Box(float(times[index]), name, xyxy))
    return boxes, CONVENTION[kind]


def _written_out(messages: Sequence[Message], objects: dict[str, Any], boxes: Sequence[Box]) -> list[Message]:
    names, places = iter(objects.get("ref") or []), iter(boxes)
    out = []
    for message in messages:
        text = message.content
        while "<ref-object>" in text or "<bbox>" in text:
            name_at, box_at = text.find("<ref-object>"), text.find("<bbox>")
            if box_at < 0 or 0 <= name_at < box_at:
                name = next(names, None)
                if name is None:
                    raise Unusable("objects", "there are more <ref-object> than names in objects.ref")
                text = text.replace("<ref-object>", name, 1)
            else:
                box = next(places, None)
                if box is None:
                    raise Unusable("objects", "there are more <bbox> than boxes in objects.bbox")
                text = text.replace("<bbox>", box_text(box.xyxy), 1)
        out.append(Message(message.role, text))
    return out


def write(sample: Sample) -> dict[str, Any]:
    """A sample as a row; boxes are `norm1`. What has no field goes to the column `visd`, which reaches rewards."""
    texts = [message.content for message in sample.messages]
    roles: list[str] = [message.role for message in sample.messages]
    if sample.rationale:
        texts.append(f"<think>{sample.rationale}</think>{response(sample)}")
        roles.append("assistant")
    row: dict[str, Any] = {**sample.meta.get("fields", {}), "id": sample.id}
    paths = {kind: [m.path for m in sample.media if m.kind == kind] for kind in ("video", "image")}
    counts = sample.meta.get("frame_lists")
    if counts:
        frames = iter(paths["image"])
        row["videos"] = [[next(frames) for _ in range(count)] for count in counts]
        texts = _as_videos(texts, counts)
    else:
        row |= {f"{kind}s": values for kind, values in paths.items() if values}
    row["messages"] = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    row["solution"] = response(sample)
    boxes = sample.evidence.boxes
    if boxes:
        row["objects"] = {
            "ref": [box.name for box in boxes],
            "bbox": [list(box.xyxy) for box in boxes],
            "bbox_type": "norm1",
            "image_id": [0] * len(boxes),
            "time": [box.t for box in boxes],
        }
    return row | {COLUMN: carried(sample, boxes=False)}


def _as_videos(texts: list[str], counts: Sequence[int]) -> list[str]:
    """Runs of `<image>` as the videos that they are frames of, in order."""
    whole = "\0".join(texts)
    done = ""
    for count in counts:
        before, _, whole = whole.partition("<image>" * count)
        done += f"{before}<video>"
    return (done + whole).split("\0")


FORMAT = Format("ms_swift", "ms-swift: JSON Lines with messages, videos, images, objects", read, write, boxes="pixels")
