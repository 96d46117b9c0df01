"""EasyR1 (`hiyouga/EasyR1`) and EasyVideoR1 (arXiv 2604.16893): JSON, JSON Lines or Parquet.

    {"problem": "<video>Q", "answer", "videos": [..], "images": [..]}
    and of EasyVideoR1: "options", "data_type", "problem_type", "has_offline_trajectory", "offline_output"

`--column problem=NAME --column answer=NAME` stand for EasyR1's `prompt_key` and `answer_key`. An offline output becomes
the rationale; `preprocessed_video`, a cache of EasyVideoR1's own, is left out, counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.messages import in_order, media_columns
from data_tools.convert.text import answer_to, note_unless_box, read_answer, read_options, split_tags, with_options
from data_tools.convert.video_r1 import TYPES
from visd.types import Message, Sample


def read(row: Row, context: Context) -> Iterator[Sample]:
    columns = context.options.columns
    problem = row.text(columns.get("problem", "problem"))
    text = row.any_text(columns.get("answer", "answer"))
    if text is None:
        raise Unusable("no_answer", "there is no answer; give --column answer=NAME")
    if row.take("preprocessed_video") is not None:
        context.note("left_out_preprocessed_video")
    media = media_columns(row, context)
    options = read_options(row.list("options"))
    kind = row.any_text("problem_type")
    messages, media = in_order([Message("user", with_options(problem, options))], media)
    rationale, stated = split_tags(text)
    if options:
        answer = read_answer(stated, "letter", options, context)
    elif kind in TYPES and TYPES[kind] != "letter":
        answer = read_answer(stated, TYPES[kind], (), context)
    else:
        answer = answer_to(problem, stated, context, media[0].path if media else "")
    trajectory = row.any_text("offline_output")
    yield sample(
        row,
        context,
        id=row.any_text("id") or row.any_text("problem_id") or "",
        source=row.any_text("data_source"),
        family=kind or "easyr1",
        media=media,
        messages=messages,
        answer=answer,
        rationale=split_tags(trajectory)[0] if trajectory else rationale,
        meta={"answer_text": note_unless_box(stated, answer)},
    )


FORMAT = Format("easyr1", "EasyR1 and EasyVideoR1: problem, answer, videos, images, options", read)
