"""VLM-R1 (arXiv 2504.07615, `om-ai-lab/VLM-R1`): JSON Lines, and folders of images.

    {"id", "image" | "video": "a" or ["a", "b"], "conversations": [{"from", "value"}], "solution"?,
     "accu_reward_method"?}

The answer is `solution`, or what gpt says last. Boxes, of referring expressions, are pixels of the image, whose size
the rows do not say: give `--root`.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.messages import in_order, media_columns, read_messages
from data_tools.convert.text import answer_to, note_unless_box, split_tags
from visd.types import Box, Evidence, Sample


def read(row: Row, context: Context) -> Iterator[Sample]:
    messages, inline = read_messages(row.take("conversations"), context, role="from", content="value")
    solution = row.any_text("solution")
    if messages[-1].role == "assistant":
        said = messages.pop().content
        solution = solution if solution is not None else said
    if solution is None:
        raise Unusable("no_answer", "there is neither a solution nor an answer of gpt")
    messages, media = in_order(messages, inline + media_columns(row, context))
    rationale, stated = split_tags(solution)
    answer = answer_to(messages[-1].content, stated, context, media[0].path if media else "")
    boxes = (Box(0.0, "target", answer.value),) if answer.type == "box" else ()  # type: ignore[arg-type]
    yield sample(
        row,
        context,
        id=row.any_text("id") or "",
        family=row.any_text("problem_type") or row.any_text("accu_reward_method") or "vlm_r1",
        media=media,
        messages=messages,
        answer=answer,
        evidence=Evidence(boxes=boxes),
        rationale=rationale,
        meta={"answer_text": note_unless_box(stated, answer)},
    )


FORMAT = Format("vlm_r1", "VLM-R1: JSON Lines of conversations with image and solution", read, boxes="pixels")
