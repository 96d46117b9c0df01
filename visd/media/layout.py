"""How videos stand in a prompt (`prompt.layout`): as videos, or as their frames, each an image after its number and time.

The frames themselves are the same, decoded once and for either. All that follows (ids, positions, counts, rollouts, teacher)
only ever sees what a layout made of a medium.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from visd.media.chat import conversation
from visd.media.families.base import MediumSize
from visd.types import Frames, Media, Message


class NativeVideo:
    """Each video is one for the model too."""

    def sizes(self, size: MediumSize) -> list[MediumSize]:
        """The media of the prompt that a medium of the sample becomes."""
        return [size]

    def media(self, medium: Media, frames: Frames) -> list[tuple[Media, Frames]]:
        """The same, with their pixels."""
        return [(medium, frames)]

    def chat(self, messages: Sequence[Message], sizes: Sequence[MediumSize]) -> list[dict[str, Any]]:
        """Messages as chat templates take them; `sizes` are those of the sample's media, in order."""
        return conversation(messages)


class TimestampedFrames(NativeVideo):
    """Each frame of a video is an image on a line of its own, as in Open-o3-Video (arXiv 2510.20579).

    That recipe's last line, which tells the video's length, is not written.
    """

    def sizes(self, size: MediumSize) -> list[MediumSize]:
        if size.kind == "image":
            return [size]
        shown = zip(size.times, size.indices, strict=True)
        return [replace(size, kind="image", times=(time,), indices=(index,), also=()) for time, index in shown]

    def media(self, medium: Media, frames: Frames) -> list[tuple[Media, Frames]]:
        if medium.kind == "image":
            return [(medium, frames)]
        image = replace(medium, kind="image")
        return [
            (image, replace(frames, pixels=frames.pixels[i : i + 1], times=(time,), indices=(index,)))
            for i, (time, index) in enumerate(zip(frames.times, frames.indices, strict=True))
        ]

    def chat(self, messages: Sequence[Message], sizes: Sequence[MediumSize]) -> list[dict[str, Any]]:
        waiting = iter(sizes)
        written = []
        for message in conversation(messages):
            if isinstance(message["content"], list):
                parts = [other for part in message["content"] for other in _spelled_out(part, waiting)]
                message = message | {"content": parts}
            written.append(message)
        return written


def _spelled_out(part: dict[str, str], waiting: Iterator[MediumSize]) -> list[dict[str, str]]:
    if part["type"] == "text":
        return [part]
    size = next(waiting)
    if size.kind == "image":
        return [part]
    frames = []
    for number, time in enumerate(size.times, 1):
        frames += [{"type": "text", "text": f"Frame {number} at {time:.1f}s: "}, {"type": "image"}]
        frames.append({"type": "text", "text": "\n"})
    return frames


LAYOUTS: dict[str, NativeVideo] = {"native": NativeVideo(), "timestamped_frames": TimestampedFrames()}
"""By `prompt.layout`."""
