"""Any table, by naming its columns: folders of Hugging Face `datasets`, Parquet, CSV, JSON.

    --column question=problem --column answer=solution --column video=clip --column options=choices

Known names: id, question, answer, options, video, image, start, end, duration, windows, boxes, names, width, height,
rationale, family, source. A number as the answer to options is the option's, from 0. Boxes are lists of four numbers,
beside `names` of the objects; their convention is found unless `--boxes` says it. Columns not named go to meta.fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.boxes import BadBox, Size
from data_tools.convert.messages import in_order, read_media
from data_tools.convert.text import answer_to, note_unless_box, read_answer, read_options, split_tags, with_options
from visd.data.manifest import LETTERS
from visd.types import Answer, Box, Evidence, Media, Message, Sample

NAMES = (
    "id", "question", "answer", "options", "video", "image", "start", "end", "duration", "windows", "boxes", "names",
    "width", "height", "rationale", "family", "source",
)  # fmt: skip


def read(row: Row, context: Context) -> Iterator[Sample]:
    columns = context.options.columns
    unknown = sorted(set(columns) - set(NAMES))
    if unknown:
        raise Unusable("column", f"--column {unknown[0]}=..: known names are {', '.join(NAMES)}")

    def value(name: str) -> Any:
        return row.take(columns[name]) if name in columns else None

    media = _media(value("video"), value("image"), value("start"), value("end"), context)
    options = read_options(_several(value("options")))
    question = value("question")
    if not isinstance(question, str) or not question.strip():
        raise Unusable("field", "there is no question; give --column question=NAME")
    messages, media = in_order([Message("user", with_options(question, options))], media)
    size, path = _size(value("width"), value("height")), media[0].path if media else ""
    answer, note, thought = _answer(value("answer"), options, question, path, context)
    windows = [(float(start), float(end)) for start, end in _pairs(value("windows"))]
    t = media[0].start or 0.0 if media else 0.0
    boxes = _boxes(value("boxes"), _several(value("names")), size, path, t, context)
    name, rationale, duration = value("id"), value("rationale"), value("duration")
    yield sample(
        row,
        context,
        id="" if name is None else name,
        family=str(value("family") or "columns"),
        source=value("source"),
        media=media,
        messages=messages,
        answer=answer,
        evidence=Evidence(tuple(windows), (), tuple(boxes)),
        rationale=(split_tags(rationale)[0] or split_tags(rationale)[1]) if rationale else thought,
        meta={
            "answer_text": note,
            "duration": None if duration is None else float(duration),
            "boxes": {"from": context.boxes.convention, "size": list(size) if size else None} if boxes else None,
        },
    )


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _pairs(value: Any) -> list[Any]:
    """[[s, e], ..], or [s, e] alone."""
    items = _several(value)
    return [items] if items and not isinstance(items[0], list) else items


def _media(video: Any, image: Any, start: Any, end: Any, context: Context) -> list[Media]:
    media = read_media(_several(video), "video", context)
    if start is not None or end is not None:
        if len(media) != 1:
            raise Unusable("media", "start and end need one video")
        begin, finish = (None if t is None else float(t) for t in (start, end))
        media = [Media("video", media[0].path, begin, finish, media[0].fps)]
    return media + read_media(_several(image), "image", context)


def _size(width: Any, height: Any) -> Size | None:
    return (int(width), int(height)) if width and height else None


def _answer(
    value: Any, options: Sequence[str], question: str, path: str, context: Context
) -> tuple[Answer, dict[str, str] | None, str | None]:
    if value is None:
        raise Unusable("no_answer", "there is no answer; give --column answer=NAME")
    if options and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(options):
            raise Unusable("letter", f"option {value} of {len(options)}; options are counted from 0")
        return read_answer(LETTERS[value], "letter", options, context), None, None
    if isinstance(value, list):
        value = str(value)
    thought, said = split_tags(str(value))
    answer = read_answer(said, "letter", options, context) if options else answer_to(question, said, context, path)
    return answer, note_unless_box(said, answer), thought


def _boxes(values: Any, names: Sequence[Any], size: Size | None, path: str, t: float, context: Context) -> list[Box]:
    boxes = []
    for index, box in enumerate(_pairs(values)):
        try:
            xyxy = context.boxes.read(box, size, path)
        except BadBox as error:
            raise Unusable(error.reason, str(error)) from None
        boxes.append(Box(t, str(names[index]) if index < len(names) else "object", xyxy))
    return boxes


FORMAT = Format("columns", "any table or folder of `datasets`, by --column OURS=THEIRS", read)
