"""verl (`verl-project/verl`): Parquet.

    {"data_source", "prompt": [{"role", "content"}], "ability", "reward_model": {"style", "ground_truth"},
     "extra_info", "images": [..], "videos": ["path" | {"video", "fps", "max_frames"}]}

`extra_info.index` and `extra_info.split` name the sample where there is no id. Budgets of a video (max_frames,
max_pixels) are left out, counted: they belong to the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.messages import in_order, media_columns, read_messages
from data_tools.convert.text import answer_to, note_unless_box, split_tags
from visd.types import Sample


def read(row: Row, context: Context) -> Iterator[Sample]:
    messages, inline = read_messages(row.take("prompt"), context)
    reward = row.take("reward_model", {})
    text = reward.get("ground_truth") if isinstance(reward, dict) else None
    if text is None or isinstance(text, (dict, list)):
        raise Unusable("no_answer", "reward_model.ground_truth must be a text or a number")
    messages, media = in_order(messages, inline + media_columns(row, context))
    rationale, stated = split_tags(str(text))
    answer = answer_to(messages[-1].content, stated, context, media[0].path if media else "")
    rest = {name: value for name, value in reward.items() if name != "ground_truth" and value is not None}
    yield sample(
        row,
        context,
        id=_name(row),
        source=row.any_text("data_source"),
        family=row.any_text("ability") or "verl",
        media=media,
        messages=messages,
        answer=answer,
        rationale=rationale,
        meta={"answer_text": note_unless_box(stated, answer), "reward_model": rest},
    )


def _name(row: Row) -> str:
    if row.has("id"):
        return row.any_text("id") or ""
    info: Any = row.peek("extra_info")
    if isinstance(info, dict) and info.get("index") is not None:
        return "-".join(str(info[name]) for name in ("split", "index") if info.get(name) is not None)
    return ""


FORMAT = Format("verl", "verl: Parquet with prompt, reward_model.ground_truth, videos, images", read)
