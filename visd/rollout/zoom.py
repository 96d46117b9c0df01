"""The zoom tool: frames of a part of the video, finer in time and, with a box, in space.

A call is `{"name": "zoom", "arguments": {"start": 1.0, "end": 2.5, "box": [0.1, 0.2, 0.6, 0.9]}}`: seconds on the clock on which the
prompt's frames are timed, and 0-1 of the picture's sides; the box may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from visd.config import ConfigError, VideoSection
from visd.media.errors import DecodeError
from visd.media.processor import PromptProcessor
from visd.media.video import planned_image
from visd.rollout.tools import Said, Tool, ToolError
from visd.types import XYXY, Frames, Media, Prompt

LEAST_SIDE = 0.05
"""Of a box, 0-1."""


@dataclass
class Zoom(Tool):
    """Shows frames of a window of the prompt's first video."""

    name = "zoom"

    processor: PromptProcessor
    frames: int  # that a call shows at most; even, as the sampler of videos chooses
    max_pixels: int  # of each

    def __post_init__(self) -> None:
        if self.frames < 2 or self.frames % 2:
            raise ConfigError(f"rollout.engine.zoom_frames: {self.frames} must be even, and 2 or more.")

    def run(self, arguments: Mapping[str, Any], prompt: Prompt) -> Said:
        video = next((medium for medium in prompt.media if medium.kind == "video"), None)
        if video is None:
            raise ToolError("no video")
        start, end = _window(arguments, video)
        found = self._decode(video, start, end, _box(arguments))
        times = ", ".join(f"{time:.2f} s" for (time,) in (frame.times for frame in found))
        return Said(f"Frames at {times}: ", tuple(found))

    def _decode(self, video: Media, start: float, end: float, box: XYXY | None) -> list[Frames]:
        cache = self.processor.frame_cache
        assert cache is not None, "a family that shows images has a cache of frames"
        area = (box[2] - box[0]) * (box[3] - box[1]) if box else 1.0
        settings = replace(
            cache.settings,
            min_frames=2,
            max_frames=self.frames,
            max_pixels=int(self.max_pixels / area),
            total_pixels=int(self.max_pixels / area) * self.frames,
        )
        clip = replace(video, start=start, end=end, fps=self.frames / (end - start), also=())
        try:
            shown = cache.get(clip, settings)
        except DecodeError as error:
            if error.reason in ("too_short", "bad_clip"):
                raise ToolError("fewer than two frames there") from None
            raise
        pictures = shown.pixels
        if box is not None:
            pictures = self._cropped(video, pictures, box, replace(settings, max_pixels=self.max_pixels))
        return [
            Frames(pictures[i : i + 1], (time,), (index,), shown.source_fps, shown.duration)
            for i, (time, index) in enumerate(zip(shown.times, shown.indices, strict=True))
        ]

    def _cropped(self, video: Media, pictures: Any, box: XYXY, settings: VideoSection) -> Any:
        """[N, H, W, 3]: the box of each picture, at a size that the tower takes."""
        rows, columns = pictures.shape[1:3]
        left, right = math.floor(box[0] * columns), math.ceil(box[2] * columns)
        top, bottom = math.floor(box[1] * rows), math.ceil(box[3] * rows)
        cache = self.processor.frame_cache
        assert cache is not None
        height, width = planned_image(cache.resolve(video.path), bottom - top, right - left, settings, cache.factor)
        parts = [Image.fromarray(picture[top:bottom, left:right]).resize((width, height)) for picture in pictures]
        return np.stack([np.asarray(part) for part in parts])


def _window(arguments: Mapping[str, Any], video: Media) -> tuple[float, float]:
    start, end = arguments.get("start"), arguments.get("end")
    if not (_number(start) and _number(end)) or not start < end:
        raise ToolError("not a window")
    first, last = video.start or 0.0, math.inf if video.end is None else video.end
    if start < first or end > last:
        raise ToolError("outside the video")
    return float(start), float(end)


def _box(arguments: Mapping[str, Any]) -> XYXY | None:
    box = arguments.get("box")
    if box is None:
        return None
    if not isinstance(box, list) or len(box) != 4 or not all(_number(side) and 0 <= side <= 1 for side in box):
        raise ToolError("not a box")
    left, top, right, bottom = map(float, box)
    if right - left < LEAST_SIDE or bottom - top < LEAST_SIDE:
        raise ToolError("not a box")
    return left, top, right, bottom


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
