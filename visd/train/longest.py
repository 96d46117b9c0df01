"""The longest prompt that a run's data and limits admit, known without opening a media file."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from qwen_vl_utils.vision_process import FRAME_FACTOR, ceil_by_factor, floor_by_factor

from visd.config import VideoSection
from visd.data.prompts import PromptBuilder
from visd.media.families.base import Family, MediumSize
from visd.media.processor import PromptProcessor
from visd.media.video import frame_budget
from visd.types import Frames, Media, Prompt, Sample

CANDIDATES = 32
"""Samples whose tokens are counted, of those whose text and media may be longest."""

CHARS_A_TOKEN = 3.0
"""Only to choose candidates."""

UNKNOWN_END = 9999.0
"""s, the length of a video whose record does not say it: its frames' times have as many digits as any."""


@dataclass(frozen=True)
class Bound:
    """A sample and the most that its prompt may hold."""

    sample: Sample
    sizes: tuple[MediumSize, ...]  # of its media
    tokens: int


Candidate = tuple[Sample, tuple[MediumSize, ...]]
"""A sample and its media as large as the limits allow."""


def candidates(builder: PromptBuilder, samples: Sequence[Sample]) -> list[Candidate]:
    """The samples whose prompts may be longest, by the length of their text and the size of their media.

    A video has as many frames as the length in its record (`start`, `end`, `meta.duration`) gives, and at most
    `prompt.video.max_frames`, besides those of `prompt.key_frames`, each as large as the limits on pixels allow.
    """
    processor = builder.processor
    largest = cache(partial(_largest, section=processor.video_limits, family=processor.family))
    tokens = cache(lambda size: sum(processor.family.visual_tokens(part) for part in processor.shown([size])))

    def sizes_of(sample: Sample) -> tuple[MediumSize, ...]:
        return tuple(largest(item.kind, _seconds(item, sample), item.fps, len(item.also)) for item in sample.media)

    def guess(sample: Sample) -> float:
        text = sum(len(message.content) for message in sample.messages)
        return text / CHARS_A_TOKEN + sum(tokens(size) for size in sizes_of(sample))

    chosen = heapq.nlargest(CANDIDATES, samples, key=guess)
    return [(sample, sizes_of(sample)) for sample in chosen]


def longest_bound(builder: PromptBuilder, known: Sequence[Candidate], limit: int) -> Bound | None:
    """The longest prompt of at most `limit` tokens, with fewer frames where need be; None where there is none."""
    best: Bound | None = None
    for sample, sizes in known:
        count = partial(builder.processor.count_tokens, builder.messages(sample.question()))
        fitting = fitted(sizes, count, limit, 1 if any(item.also for item in sample.media) else FRAME_FACTOR)
        if fitting is not None and (best is None or count(fitting) > best.tokens):
            best = Bound(sample, fitting, count(fitting))
    return best


def fitted(
    sizes: tuple[MediumSize, ...], count: Callable[[Sequence[MediumSize]], int], limit: int, step: int = FRAME_FACTOR
) -> tuple[MediumSize, ...] | None:
    """The media with as many frames as fit; None where even two a video are too many.

    Args:
        step: frames by which a video's may differ.
    """
    if count(sizes) <= limit:
        return sizes

    def shrunk(most: int) -> tuple[MediumSize, ...]:
        return tuple(size.with_frames(min(most, len(size.times))) if size.kind == "video" else size for size in sizes)

    low, high = FRAME_FACTOR, max((len(size.times) for size in sizes if size.kind == "video"), default=0)
    if not high or count(shrunk(low)) > limit:
        return None
    while high - low > step:  # low fits, high does not
        middle = floor_by_factor((low + high) // 2, step)
        low, high = (middle, high) if count(shrunk(middle)) <= limit else (low, middle)
    return shrunk(low)


def prompt_of(builder: PromptBuilder, bound: Bound) -> Prompt:
    """The sample's prompt with black frames of those sizes; no file is read."""
    sample = bound.sample
    frames = [_black(size, media) for size, media in zip(bound.sizes, sample.media, strict=True)]
    return builder.processor.assemble(sample.id, builder.messages(sample.question()), sample.media, frames)


def resized(processor: PromptProcessor, sizes: Sequence[MediumSize]) -> tuple[MediumSize, ...]:
    """The same frames as large as another model's limits allow: an external teacher may want other sizes."""
    section, factor = processor.video_limits, processor.family.pixel_factor
    grown = []
    for size in sizes:
        pixels = section.max_pixels
        if size.kind == "video":
            pixels = min(pixels, int(frame_budget(section, len(size.times))))
        rows, columns = _grid(pixels, factor)
        grown.append(MediumSize(size.kind, size.times, size.indices, rows * factor, columns * factor))
    return tuple(grown)


def _seconds(media: Media, sample: Sample) -> float | None:
    """The length of the used part of a video, as far as its record says."""
    end = media.end if media.end is not None else sample.meta.get("duration")
    return None if end is None else max(0.0, float(end) - (media.start or 0.0))


def _largest(
    kind: str, seconds: float | None, fps: float | None, also: int, section: VideoSection, family: Family
) -> MediumSize:
    frames, pixels = 1, section.max_pixels
    if kind == "video":
        most = max(FRAME_FACTOR, floor_by_factor(section.max_frames, FRAME_FACTOR))
        asked = most if seconds is None else ceil_by_factor(seconds * (fps or section.fps), FRAME_FACTOR)
        frames = int(min(most, max(asked, ceil_by_factor(section.min_frames, FRAME_FACTOR)))) + also
        pixels = min(pixels, int(frame_budget(section, frames)))
    rows, columns = _grid(pixels, family.pixel_factor)
    end = UNKNOWN_END if seconds is None else seconds
    times = tuple(np.linspace(0.0, end, frames).tolist())
    return MediumSize(
        "video" if kind == "video" else "image",
        times,
        tuple(range(frames)),
        rows * family.pixel_factor,
        columns * family.pixel_factor,
    )


def _grid(pixels: int, factor: int) -> tuple[int, int]:
    """The most cells of `factor` pixels square that an upright frame may have, as rows and columns."""
    cells = max(1, pixels // factor**2)
    root = math.isqrt(cells)
    rows = max(range(max(1, root // 2), root + 1), key=lambda rows: rows * (cells // rows))
    return rows, cells // rows


def _black(size: MediumSize, media: Media) -> Frames:
    count = len(size.times)
    duration = max(size.times[-1], 1e-3) if media.kind == "video" else 0.0
    rate = count / duration if duration else 1.0
    pixels = np.zeros((count, size.height, size.width, 3), dtype=np.uint8)
    return Frames(pixels, size.times, tuple(range(count)), rate, duration)
