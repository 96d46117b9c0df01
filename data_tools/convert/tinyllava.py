"""TinyLLaVA-Video-R1 (arXiv 2504.09641, `ZhangXJ199/TinyLLaVA-Video-R1`): a JSON list.

    {"video_filename", "problem", "solution", "options"?, "problem_id"?}

Options stand in `options` or in the problem's text; the solution is `<answer>X</answer>` or X.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.convert.base import Context, Format, Row, sample
from data_tools.convert.text import (
    answer_note,
    answer_to,
    read_answer,
    read_options,
    split_tags,
    with_options,
    with_placeholders,
)
from visd.types import Media, Message, Sample


def read(row: Row, context: Context) -> Iterator[Sample]:
    media = [Media("video", context.path(row.text("video_filename")))]
    options = read_options(row.list("options"))
    problem = with_options(row.text("problem"), options)
    rationale, stated = split_tags(row.text("solution"))
    answer = read_answer(stated, "letter", options, context) if options else answer_to(problem, stated, context)
    yield sample(
        row,
        context,
        id=row.any_text("problem_id") or row.any_text("id") or "",
        family=row.any_text("problem_type") or "tinyllava",
        media=media,
        messages=[Message("user", with_placeholders([problem], media)[0])],
        answer=answer,
        rationale=rationale,
        meta={"answer_text": answer_note(stated, answer)},
    )


FORMAT = Format("tinyllava", "TinyLLaVA-Video-R1: JSON list with video_filename, problem, solution", read)
