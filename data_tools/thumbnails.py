"""Pictures of samples: frames with their boxes, and windows on a line of time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from visd.media.backends import read_frames
from visd.media.container import Deadline, check_file, index_frames, open_video
from visd.media.errors import DecodeError
from visd.reward.combine import gold_windows
from visd.types import Box, Media, Sample, Window

HEIGHT = 150
"""Pixels of a frame as it is shown."""
BAR = 10
"""Pixels of the line of time."""
FRAMES = 4
BLUE, ORANGE, GREY = (31, 119, 180), (255, 127, 14), (221, 221, 221)
SECONDS = 20.0
"""Longest time for one sample's frames."""


@dataclass(frozen=True)
class Picture:
    """What a process is asked to draw: one medium of a sample."""

    path: Path
    media: Media
    windows: tuple[Window, ...]  # s
    times: tuple[float, ...]  # s, of the frames to show; empty shows some, evenly spread
    boxes: tuple[Box, ...]


def picture_of(sample: Sample, path: Path) -> Picture:
    """The first medium with the sample's evidence on it; `path` is the file."""
    evidence = sample.evidence
    boxes = evidence.boxes
    if sample.answer.type == "box":
        assert isinstance(sample.answer.value, tuple) and len(sample.answer.value) == 4
        time = boxes[0].t if boxes else evidence.frames[0] if evidence.frames else 0.0
        boxes = (*boxes, Box(time, "answer", sample.answer.value))
    times = tuple(sorted({box.t for box in boxes} | set(evidence.frames)))
    if len(times) > FRAMES:
        times = tuple(times[round(i * (len(times) - 1) / (FRAMES - 1))] for i in range(FRAMES))
    return Picture(path, sample.media[0], gold_windows(sample), times, boxes)


def draw(order: Picture) -> bytes:
    """A JPEG: frames side by side with the boxes of their times, below them the clip with its windows and the frames' places.

    Raises:
        DecodeError: the file cannot give the frames.
    """
    check_file(order.path)
    if order.media.kind == "image":
        with Image.open(order.path) as file:
            frames, times, duration = [np.asarray(ImageOps.exif_transpose(file).convert("RGB"))], [0.0], 0.0
    else:
        frames, times, duration = _frames(order)
    shown = [_framed(pixels, [box for box in order.boxes if _at(box.t, times) == place])
             for place, pixels in enumerate(frames)]  # fmt: skip
    sheet = Image.new("RGB", (sum(image.width + 4 for image in shown) - 4, HEIGHT + BAR + 4), "white")
    left = 0
    for image in shown:
        sheet.paste(image, (left, 0))
        left += image.width + 4
    if duration:
        _time_line(ImageDraw.Draw(sheet), sheet.width, duration, order.windows, times)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85, subsampling=0)  # thin lines keep their colour
    return buffer.getvalue()


def _frames(order: Picture) -> tuple[list[NDArray[np.uint8]], list[float], float]:
    """Frames, their times, and the file's length in seconds."""
    deadline = Deadline(order.path, SECONDS)
    with open_video(order.path, deadline) as (container, stream):
        index = index_frames(container, stream, deadline)
    start, end = order.media.start or 0.0, order.media.end if order.media.end is not None else index.end
    wanted = order.times or tuple(np.linspace(start, end, FRAMES + 1)[:FRAMES].tolist())
    numbers = sorted({int(np.argmin(np.abs(np.array(index.times) - t))) for t in wanted})
    frames = list(read_frames("pyav", index, numbers, deadline))
    return frames, [index.times[number] for number in numbers], index.end


def _at(t: float, times: Sequence[float]) -> int:
    return min(range(len(times)), key=lambda place: abs(times[place] - t))


def _framed(pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> Image.Image:
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels).resize((max(1, round(width * HEIGHT / height)), HEIGHT))
    pen = ImageDraw.Draw(image)
    for box in boxes:
        x1, y1, x2, y2 = box.xyxy
        corners = (x1 * image.width, y1 * HEIGHT, x2 * image.width, y2 * HEIGHT)
        pen.rectangle(corners, outline=ORANGE, width=2)
        pen.text((corners[0] + 3, corners[1] + 2), box.name[:20], fill=ORANGE)
    return image


def _time_line(
    pen: ImageDraw.ImageDraw, width: int, duration: float, windows: Sequence[Window], times: Sequence[float]
) -> None:
    top, bottom = HEIGHT + 4, HEIGHT + 4 + BAR - 1
    pen.rectangle((0, top, width - 1, bottom), fill=GREY)
    for start, end in windows:
        pen.rectangle((start / duration * (width - 1), top, end / duration * (width - 1), bottom), fill=BLUE)
    for t in times:
        x = t / duration * (width - 1)
        pen.line((x, top, x, bottom), fill=ORANGE, width=2)


def drawn(order: Picture) -> bytes:
    """`draw`, with what Pillow says turned into what files are refused with."""
    try:
        return draw(order)
    except (OSError, ValueError, SyntaxError) as error:
        raise DecodeError("unreadable", order.path, f"it cannot be drawn ({error}).") from error
