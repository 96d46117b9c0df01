"""Media files to uint8 frames at the size the vision tower sees, each with the exact time at which it is shown.

Which frames: as many as qwen_vl_utils' `smart_nframes` says, evenly over the frames between `start` and `end` as its
readers take them. How large: its `smart_resize`, within the pixel budget of its `fetch_video`. Deviations, each on
purpose: frames lie between `start` and `end` by their own times, not by index / fps, so variable frame rates and
rotated files come out right; a clip with fewer frames than `min_frames` is refused instead of sampled shorter;
`max_pixels` is not capped a second time by a constant; nothing falls back to another reader. Frames asked for by their
time (`Media.also`) come on top of those chosen, within the same pixel budget; one that is chosen anyway comes once.

The time limit is checked between packets and frames in this process, so a single call into the decoder that never
returns is not interrupted; for that, decoding has to move into a process that can be ended.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from qwen_vl_utils.vision_process import FRAME_FACTOR, ceil_by_factor, smart_nframes, smart_resize, to_rgb
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from visd.config import VideoSection
from visd.media.backends import read_frames
from visd.media.container import Deadline, FrameIndex, check_file, index_frames, open_video
from visd.media.errors import DecodeError
from visd.types import Frames

CLIP_SLACK = 1e-6
"""s, for comparing times that went through text."""


@dataclass
class DecodeCounter:
    """Proves that a run decodes each video once: then both numbers are equal."""

    videos_decoded: int = 0  # decodings that gave frames
    videos_seen: int = 0  # different videos (file, clip and sampling) asked for


@dataclass(frozen=True)
class _Choice:
    numbers: tuple[int, ...]  # frame numbers in the file, ascending
    rate: float  # frames per second over the clip
    duration: float  # s, of the clip


def decode(
    path: Path,
    *,
    start: float | None,
    end: float | None,
    fps: float | None,
    settings: VideoSection,
    factor: int,
    also: Sequence[float] = (),
) -> Frames:
    """Sampled frames of the video, or of its part from `start` to `end`.

    Args:
        start, end: s on the file's clock, on which its first frame is at 0; None takes the file's own.
        fps: frames a second to sample; None takes `settings.fps`.
        factor: both sides become multiples of this many pixels.
        also: s, times whose frames are wanted too; of each the frame shown nearest to it.

    Returns:
        Frames; `times` are on the file's clock, `source_fps` and `duration` are those of the clip, so that
        len(times) / duration is the sampled rate (where `also` adds none).

    Raises:
        DecodeError: see its reasons; never fewer or other frames than chosen.
    """
    check_file(path)
    deadline = Deadline(path, settings.timeout)
    with open_video(path, deadline) as (container, stream):
        index = index_frames(container, stream, deadline)
    choice = _choose(path, index, start, end, fps or settings.fps, settings, also)
    pixels = None
    for slot, frame in enumerate(read_frames(settings.backend, index, choice.numbers, deadline)):
        if pixels is None:
            height, width = _target_size(path, frame.shape[0], frame.shape[1], len(choice.numbers), settings, factor)
            pixels = np.empty((len(choice.numbers), height, width, 3), dtype=np.uint8)
        pixels[slot] = _resized(frame, *pixels.shape[1:3])
    return Frames(
        pixels=pixels,
        times=tuple(index.times[number] for number in choice.numbers),
        indices=choice.numbers,
        source_fps=choice.rate,
        duration=choice.duration,
    )


def decode_image(path: Path, *, settings: VideoSection, factor: int) -> Frames:
    """One image as one frame at time 0, upright by its EXIF data, transparency on white.

    Raises:
        DecodeError: missing, empty, unreadable, truncated or bad_size.
    """
    check_file(path)
    try:
        with Image.open(path) as file:
            image = to_rgb(ImageOps.exif_transpose(file))
    except UnidentifiedImageError as error:
        raise DecodeError("unreadable", path, "this is no image file.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "truncated" if "truncated" in str(error) else "unreadable"
        raise DecodeError(reason, path, f"the image cannot be decoded ({error}).") from error
    height, width = planned_image(path, image.height, image.width, settings, factor)
    pixels = np.array(image.resize((width, height)))[None]
    return Frames(pixels=pixels, times=(0.0,), indices=(0,), source_fps=1.0, duration=0.0)


def planned(
    path: Path,
    index: FrameIndex,
    height: int,
    width: int,
    *,
    start: float | None,
    end: float | None,
    fps: float | None,
    settings: VideoSection,
    factor: int,
    also: Sequence[float] = (),
) -> tuple[tuple[int, ...], int, int]:
    """Numbers of the frames that `decode` would take, and their height and width; nothing is decoded.

    Args:
        height, width: pixels, of the file as it is shown.

    Raises:
        DecodeError: too_short, bad_clip or bad_size.
    """
    numbers = _choose(path, index, start, end, fps or settings.fps, settings, also).numbers
    return numbers, *_target_size(path, height, width, len(numbers), settings, factor)


def planned_image(path: Path, height: int, width: int, settings: VideoSection, factor: int) -> tuple[int, int]:
    """Height and width that `decode_image` would give an image of so many pixels.

    Raises:
        DecodeError: bad_size.
    """
    return _fit(path, height, width, factor, settings.min_pixels, settings.max_pixels)


def _choose(
    path: Path,
    index: FrameIndex,
    start: float | None,
    end: float | None,
    fps: float,
    settings: VideoSection,
    also: Sequence[float],
) -> _Choice:
    first, last = _clip(path, index, start, end)
    count = last - first + 1
    needed = max(FRAME_FACTOR, ceil_by_factor(settings.min_frames, FRAME_FACTOR))
    if count < needed:
        raise DecodeError(
            "too_short",
            path,
            f"{count} frames to sample from, at least {needed} are needed; lower prompt.video.min_frames or remove it.",
        )
    clip_end = index.times[last + 1] if last + 1 < len(index.times) else index.end
    duration = clip_end - index.times[first]
    rate = _rate(index, count, duration)
    bounds = {"fps": fps, "min_frames": settings.min_frames, "max_frames": settings.max_frames}
    frames = smart_nframes(bounds, total_frames=count, video_fps=rate)
    numbers = torch.linspace(first, last, frames).round().long().tolist()
    if also:
        numbers = sorted({*numbers, *(_shown_at(path, index, first, last, time) for time in also)})
    return _Choice(tuple(numbers), rate, count / rate)


def _shown_at(path: Path, index: FrameIndex, first: int, last: int, time: float) -> int:
    """Number of the frame of the clip that is shown nearest to a time, which may lie a frame outside at most."""
    low, high = index.times[first], index.times[last]
    one_frame = (index.end - index.times[0]) / len(index.times)
    if not low - one_frame <= time <= high + 2 * one_frame:
        raise DecodeError(
            "bad_clip",
            path,
            f"the key frame at {time:g} s does not lie in the clip, whose frames are shown from {low:.3f} to "
            f"{high:.3f} s; correct the evidence.",
        )
    return nearest(index.times, time, first, last)


def nearest(times: Sequence[float], time: float, first: int, last: int) -> int:
    """Index of the time from `first` to `last` that lies nearest; the earlier of two as near."""
    after = min(max(bisect_left(times, time, first, last + 1), first), last)
    return after - 1 if after > first and time - times[after - 1] <= times[after] - time else after


def _clip(path: Path, index: FrameIndex, start: float | None, end: float | None) -> tuple[int, int]:
    """Numbers of the first and last frame shown from `start` to `end`."""
    one_frame = index.end - index.times[-1]
    span = f"the clip {0.0 if start is None else start:g}-{index.end if end is None else end:g} s"
    if (start is not None and start < 0) or (end is not None and end <= (start or 0.0)):
        raise DecodeError("bad_clip", path, f"{span} is empty or starts before 0; correct its start and end.")
    out_of_file = (start is not None and start >= index.end) or (end is not None and end > index.end + one_frame)
    if not index.complete and (end is None or end > index.times[-1]):
        raise DecodeError(
            "truncated", path, f"the file breaks off at {index.end:.3f} s, before the end of {span}; get it whole."
        )
    if out_of_file:
        raise DecodeError("bad_clip", path, f"{span} does not lie in the file, which lasts {index.end:.3f} s.")
    first = 0 if start is None else bisect_left(index.times, start - CLIP_SLACK)
    last = len(index.times) - 1 if end is None else bisect_right(index.times, end + CLIP_SLACK) - 1
    return first, last


def _rate(index: FrameIndex, count: int, duration: float) -> float:
    """The declared rate where it is true of the clip, which keeps it free of rounding; else the clip's own."""
    measured = count / duration
    if index.rate and abs(count / index.rate - duration) < 0.5 / measured:
        return index.rate
    return measured


def _target_size(
    path: Path, height: int, width: int, frames: int, settings: VideoSection, factor: int
) -> tuple[int, int]:
    high = min(settings.max_pixels, frame_budget(settings, frames))
    return _fit(path, height, width, factor, settings.min_pixels, high)


def frame_budget(settings: VideoSection, frames: int) -> float:
    """Most pixels of one of `frames` frames, as far as the whole video's budget goes."""
    # A pair of frames becomes one temporal patch, so the budget of the whole video counts it once.
    return max(settings.total_pixels / frames * FRAME_FACTOR, int(settings.min_pixels * 1.05))


def _fit(path: Path, height: int, width: int, factor: int, low: int, high: float) -> tuple[int, int]:
    try:
        sides = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
    except ValueError as error:
        raise DecodeError("bad_size", path, f"{width} x {height} pixels: {error}.") from error
    # Rounding down can leave nothing of the shorter side; one patch is the least there is.
    rows, columns = (max(side, factor) for side in sides)
    if min(sides) < factor and rows * columns > max(high, factor * factor):
        raise DecodeError(
            "bad_size",
            path,
            f"{width} x {height} pixels do not fit into {high:g} pixels; raise prompt.video.max_pixels.",
        )
    return rows, columns


def _resized(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    tensor = torch.from_numpy(frame).permute(2, 0, 1)
    scaled = resize(tensor, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return np.asarray(scaled.permute(1, 2, 0))


def sampling_key(settings: VideoSection, factor: int) -> Sequence[float | str]:
    """Everything besides the file and its clip that decides the frames."""
    names = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "backend")
    return (factor, *(getattr(settings, name) for name in names))
