"""Messages to rendered chat text: where media stand, and where the assistant's turn opens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from visd.types import Media, Message, VisdError

PLACEHOLDER = re.compile(r"<(video|image)>")
SENTINEL = "\u2402end-of-user-text\u2403"
"""Stands for the end of the user's text while the suffix of a chat template is found; no template writes it."""


def media_kinds(messages: Sequence[Message]) -> list[str]:
    """Kinds of the placeholders in the messages, in order."""
    return [kind for message in messages for kind in PLACEHOLDER.findall(message.content)]


def check_media(messages: Sequence[Message], media: Sequence[Media]) -> str | None:
    """What is wrong with the placeholders, or None where they fit the media one by one."""
    written, given = media_kinds(messages), [item.kind for item in media]
    if written == given:
        return None
    return (
        f"its messages have the placeholders {_listed(written)}, its media are {_listed(given)}; "
        "write one <video> or <image> a medium, in the same order."
    )


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: a list of parts where there are media, a plain string elsewhere.

    Line breaks beside a placeholder separate it from the text in manifests and are not part of either.
    """
    return [{"role": message.role, "content": _content(message.content)} for message in messages]


def _content(text: str) -> str | list[dict[str, str]]:
    pieces = PLACEHOLDER.split(text)
    if len(pieces) == 1:
        return text
    parts: list[dict[str, str]] = []
    for place, piece in enumerate(pieces):
        if place % 2:
            parts.append({"type": piece})
        elif stripped := _without_breaks(piece, left=place > 0, right=place + 1 < len(pieces)):
            parts.append({"type": "text", "text": stripped})
    return parts


def _without_breaks(piece: str, left: bool, right: bool) -> str:
    piece = piece.lstrip("\n") if left else piece
    return piece.rstrip("\n") if right else piece


def find_suffix(template_owner: Any) -> str:
    """What a chat template writes after the last user message to open the assistant's turn.

    Raises:
        VisdError: the template does not keep the user's text as it is.
    """
    rendered = template_owner.apply_chat_template(
        [{"role": "user", "content": SENTINEL}], tokenize=False, add_generation_prompt=True
    )
    if rendered.count(SENTINEL) != 1:
        raise VisdError("model.path: the chat template does not write the user's text exactly once, as it is.")
    return str(rendered.split(SENTINEL)[1])


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "none"
