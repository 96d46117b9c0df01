"""Chat messages of several formats: content as text or as parts, media inline or beside, answer last or apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from data_tools.convert.base import Context, Row, Unusable
from data_tools.convert.text import with_placeholders
from visd.data.fields import kind
from visd.types import Media, MediaKind, Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def read_messages(
    values: Any, context: Context, *, role: str = "role", content: str = "content"
) -> tuple[list[Message], list[Media]]:
    """Messages, with placeholders for inline media, and these media.

    Raises:
        Unusable: a role is unknown, a content is neither text nor parts, or a part is of an unknown type.
    """
    if not isinstance(values, list) or not values:
        raise Unusable("messages", f"messages must be a list that is not empty, got {kind(values)}")
    messages, media = [], []
    for value in values:
        if not isinstance(value, dict) or value.get(role) not in ROLES:
            raise Unusable("role", f"a message needs {role!r}, one of {', '.join(ROLES)}: {str(value)[:80]!r}")
        text, inline = _content(value.get(content), context)
        messages.append(Message(cast(Any, ROLES[value[role]]), text))
        media += inline
    return messages, media


def _content(value: Any, context: Context) -> tuple[str, list[Media]]:
    if isinstance(value, str):
        return value, []
    if not isinstance(value, list):
        raise Unusable("content", f"a message's content must be text or a list of parts, got {kind(value)}")
    text, media = "", []
    for part in value:
        if isinstance(part, str):
            text += part
            continue
        what = part.get("type") if isinstance(part, dict) else None
        if what == "text" and isinstance(part.get("text"), str):
            text += part["text"]
        elif what in ("image", "video", "image_url", "video_url", "input_image", "input_video"):
            name = "video" if "video" in what else "image"
            text += f"<{name}>"
            file = part.get(name) if part.get(name) is not None else part.get(f"{name}_url", part.get("path"))
            if file is not None:
                given = file.get("url") if isinstance(file, dict) and "url" in file else file
                media += read_media([given], cast(MediaKind, name), context)
        else:
            raise Unusable("content", f"a part of a message must be text, image or video: {str(part)[:80]!r}")
    return text, media


def read_media(values: Sequence[Any], kind: MediaKind, context: Context, folder: str = "") -> list[Media]:
    """Media given as paths, or as objects with a path and settings of a video.

    Raises:
        Unusable: embedded bytes, a list of frames, or no path.
    """
    return [_medium(value, kind, context, folder) for value in values if value is not None]


def _medium(value: Any, kind: MediaKind, context: Context, folder: str) -> Media:
    if isinstance(value, str):
        if len(value) > 4096:
            raise Unusable("embedded_media", "media are embedded in the row; write them to files")
        return Media(kind, context.path(value, folder))
    if not isinstance(value, dict):
        raise Unusable("media", f"a {kind} must be a path or an object with one: {str(value)[:80]!r}")
    path = value.get(kind) or value.get("path") or value.get("url")
    if not isinstance(path, str):
        if value.get("bytes") is not None:
            raise Unusable("embedded_media", "media are embedded in the row; write them to files and give their paths")
        raise Unusable("media", f"a {kind} has no path: {str(value)[:80]!r}")
    numbers = [value.get(name) for name in ("video_start", "video_end", "fps")]
    start, end, fps = (None if number is None else float(number) for number in numbers)
    known = {kind, "path", "url", "bytes", "type", "video_start", "video_end", "fps"}
    for name in sorted(value.keys() - known):
        if value[name] is not None:
            context.note(f"left_out_{kind}_{name}")  # budgets of frames and pixels belong to the run's configuration
    return Media(kind, context.path(path, folder), start, end, fps)


def media_columns(row: Row, context: Context) -> list[Media]:
    """Media of the columns video, videos, image and images, in that order."""
    if row.has("audios") and row.list("audios"):
        raise Unusable("audio", "audio is not supported")
    media: list[Media] = []
    for name in ("video", "videos", "image", "images"):
        if row.has(name):
            media += read_media(row.list(name), "video" if name.startswith("video") else "image", context)
    return media


def in_order(messages: Sequence[Message], media: Sequence[Media]) -> tuple[list[Message], list[Media]]:
    """Messages with a placeholder for each medium, and the media in the order of the placeholders.

    Raises:
        Unusable: placeholders and media do not agree.
    """
    places = [i for i, message in enumerate(messages) if message.role == "user"]
    if not places:
        raise Unusable("messages", "there is no message of the user")
    first = places[0]
    rest = [message.content for message in messages[first:]]
    texts = [m.content for m in messages[:first]] + with_placeholders(rest, media)
    whole = "".join(texts)
    waiting = {kind: [m for m in media if m.kind == kind] for kind in ("video", "image")}
    ordered: list[Media] = []
    position = 0
    while any(waiting.values()):
        places_of = {kind: whole.find(f"<{kind}>", position) for kind, items in waiting.items() if items}
        kind_ = min(places_of, key=lambda name: places_of[name])
        ordered.append(waiting[kind_].pop(0))
        position = places_of[kind_] + 1
    return [Message(m.role, text) for m, text in zip(messages, texts, strict=True)], ordered
