"""LLaVA, and Qwen-VL's fine-tuning format: a JSON list (or JSON Lines) of conversations.

    {"id", "image" | "images" | "video" | "videos": "a" or ["a", "b"],
     "conversations": [{"from": "human", "value": "<video>\\nQ"}, {"from": "gpt", "value": "A"}, ...]}

Each answer becomes one sample, with what was said before it as messages. A packed row is a list of such objects, and
`data_path` a folder of its media.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.convert.base import Context, Format, Row, Unusable, sample
from data_tools.convert.messages import in_order, read_media, read_messages
from data_tools.convert.text import answer_to, note_unless_box, split_tags
from visd.types import Media, MediaKind, Message, Sample


def read(row: Row, context: Context) -> Iterator[Sample]:
    yield from conversation(row, context)


def conversation(row: Row, context: Context) -> Iterator[Sample]:
    """Samples of one conversation, one an answer."""
    messages, inline = read_messages(row.take("conversations"), context, role="from", content="value")
    messages, media = in_order(messages, inline + _media(row, context))
    name, family = row.any_text("id"), row.any_text("task") or "conversation"
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if not answers or answers[0] == 0:
        raise Unusable("messages", "a question of a human and an answer of gpt are needed")
    for turn, place in enumerate(answers, start=1):
        before = messages[:place]
        if before[-1].role != "user":
            raise Unusable("messages", "each answer must follow a question")
        rationale, text = split_tags(messages[place].content)
        answer = answer_to(before[-1].content, text, context, media[0].path if media else "")
        yield sample(
            row,
            context,
            id=f"{name}-{turn}" if name and len(answers) > 1 else name or "",
            family=family,
            media=_used(before, media),
            messages=before,
            answer=answer,
            rationale=rationale,
            meta={"answer_text": note_unless_box(text, answer)},
        )


def _used(messages: list[Message], media: list[Media]) -> list[Media]:
    """The media whose placeholders stand in these messages; later turns may bring more."""
    text = "".join(message.content for message in messages)
    left = {"video": text.count("<video>"), "image": text.count("<image>")}
    used = []
    for medium in media:
        if left[medium.kind] > 0:
            left[medium.kind] -= 1
            used.append(medium)
    return used


def _media(row: Row, context: Context) -> list[Media]:
    folder = row.any_text("data_path") or ""
    media: list[Media] = []
    kinds: tuple[tuple[str, MediaKind], ...] = (
        ("video", "video"),
        ("videos", "video"),
        ("image", "image"),
        ("images", "image"),
    )
    for name, kind in kinds:
        if row.has(name):
            media += read_media(row.list(name), kind, context, folder)
    return media


FORMAT = Format("llava", "LLaVA and Qwen-VL fine-tuning: conversations with from and value", read)
