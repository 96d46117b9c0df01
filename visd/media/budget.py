"""How media are reduced until a prompt fits a limit; how long it is follows from their sizes (`Family.prompt_tokens`).

Nothing here looks at pixels. A prompt is never cut: it is built again from fewer frames or from smaller ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from qwen_vl_utils.vision_process import FRAME_FACTOR, ceil_by_factor, floor_by_factor

from visd.config import VideoSection
from visd.media.families.base import Family, MediumSize
from visd.media.layout import NativeVideo
from visd.media.video import frame_budget
from visd.types import VisdError


class CannotFit(VisdError):
    """No allowed reduction is enough. The message says which bound stopped it, as the end of a sentence."""


Count = Callable[[Sequence[MediumSize]], int]
"""Tokens of a prompt by the sizes of its media."""


def reduced_settings(
    rule: str,
    sizes: Sequence[MediumSize],
    section: VideoSection,
    family: Family,
    layout: NativeVideo,
    count: Count,
    limit: int,
) -> list[VideoSection]:
    """Settings for each medium with which the prompt has at most `limit` tokens.

    Args:
        rule: `prompt.over_budget`, frames or pixels.
        sizes: the media as `section` gives them, with which the prompt is too long.

    Raises:
        CannotFit: the lower bound of the rule is reached.
    """
    if rule == "frames":
        return _fewer_frames(sizes, section, count, limit)
    return _fewer_pixels(sizes, section, family, layout, count, limit)


def _fewer_frames(sizes: Sequence[MediumSize], section: VideoSection, count: Count, limit: int) -> list[VideoSection]:
    """The most frames that fit, over all videos in proportion; frames keep their size."""
    longest = max((len(size.times) for size in sizes if size.kind == "video"), default=0)
    if not longest:
        raise CannotFit("and has no video to take frames from; raise the limit")

    def shrunk(most: int) -> list[MediumSize]:
        return [
            size.with_frames(_share(size, most, longest, section)) if size.kind == "video" else size for size in sizes
        ]

    least = count(shrunk(0))
    if least > limit:
        raise CannotFit(
            f"and still {least} with prompt.video.min_frames = {section.min_frames} frames a video; "
            "lower that or prompt.video.max_pixels, or raise the limit"
        )
    low, high = 0, longest  # frames of the longest video: fits, does not fit
    while high - low > FRAME_FACTOR:
        middle = floor_by_factor((low + high) // 2, FRAME_FACTOR)
        low, high = (middle, high) if count(shrunk(middle)) <= limit else (low, middle)
    return [
        replace(
            section, max_frames=_share(size, low, longest, section), max_pixels=_same_size(section, len(size.times))
        )
        if size.kind == "video"
        else section
        for size in sizes
    ]


def _share(size: MediumSize, most: int, longest: int, section: VideoSection) -> int:
    frames = len(size.times)
    least = min(frames, max(FRAME_FACTOR, ceil_by_factor(section.min_frames, FRAME_FACTOR)))
    return max(least, floor_by_factor(frames * most // longest, FRAME_FACTOR))


def _same_size(section: VideoSection, frames: int) -> int:
    """The pixels a frame could have among `frames`, so that dropping some of them enlarges none of the others."""
    return min(section.max_pixels, math.ceil(frame_budget(section, frames)))


def _fewer_pixels(
    sizes: Sequence[MediumSize],
    section: VideoSection,
    family: Family,
    layout: NativeVideo,
    count: Count,
    limit: int,
) -> list[VideoSection]:
    """The most tokens a frame, the same for all media, with which all of them fit."""
    if not sizes:
        raise CannotFit("and has no media to make smaller; raise the limit")
    if section.min_pixels >= section.max_pixels:
        raise CannotFit("and frames of one size only; take prompt.over_budget=frames, or raise the limit")
    shown = [layout.sizes(size) for size in sizes]
    held = [sum(family.visual_tokens(part) for part in of) for of in shown]
    parts = [sum(family.cells(len(part.times)) for part in of) for of in shown]
    text = count(sizes) - sum(held)

    def total(tokens: int) -> int:
        return text + sum(min(now, part * tokens) for now, part in zip(held, parts, strict=True))

    area = family.pixel_factor**2
    low = max(1, section.min_pixels // area)
    if total(low) > limit:
        raise CannotFit(
            f"and still {total(low)} with prompt.video.min_pixels = {section.min_pixels} pixels a frame; "
            "lower that or prompt.video.max_frames, or raise the limit"
        )
    high = max(now // part for now, part in zip(held, parts, strict=True))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= limit else (low, middle)
    smaller = replace(section, max_pixels=min(section.max_pixels, max(section.min_pixels, low * area)))
    return [smaller if now > part * low else section for now, part in zip(held, parts, strict=True)]
