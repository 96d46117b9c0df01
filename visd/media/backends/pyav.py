"""Frames from PyAV: each is known by its stamp, so a jump that misses is noticed and made good."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from visd.media.container import Deadline, FrameIndex, open_video, undecodable

ERRORS: tuple[type[Exception], ...] = (av.error.FFmpegError,)

WORTH_A_JUMP = 8
"""Frames to skip that make seeking cheaper than decoding on."""


class _Missed(Exception):
    """The container's seek table is wrong, or a keyframe needs frames before it."""


def read(index: FrameIndex, numbers: Sequence[int], deadline: Deadline) -> Iterator[NDArray[np.uint8]]:
    """See the package."""
    converter = VideoReformatter()  # one for all frames: setting it up costs more than converting a small frame
    done = 0
    for jumps in (True, False):
        try:
            with open_video(deadline.path, deadline) as (container, stream):
                for frame in _walk(container, stream, index, numbers[done:], deadline, jumps):
                    if frame.is_corrupt:
                        raise undecodable(index, numbers[done], deadline, "its data is damaged")
                    yield upright(frame, converter)
                    done += 1
            return
        except _Missed:  # read all of it instead, from the beginning
            continue


def _walk(
    container: Any, stream: Any, index: FrameIndex, numbers: Sequence[int], deadline: Deadline, jumps: bool
) -> Iterator[Any]:
    """Decode forward, jumping to a keyframe where that skips many frames; stop early if a frame cannot be found."""
    slot, last = 0, -1
    while True:
        start = _jump(index, last, numbers[slot]) if jumps else None
        if start is not None:
            container.seek(start, stream=stream, backward=True)
        for frame in container.decode(stream):
            deadline.check()
            stamp, target = frame.pts, index.stamps[numbers[slot]]
            if stamp is None or stamp < target:
                continue
            if start is not None and (stamp > target or frame.is_corrupt):
                raise _Missed
            if stamp > target:
                return
            yield frame
            last, slot = numbers[slot], slot + 1
            if slot == len(numbers):
                return
            if jumps and _jump(index, last, numbers[slot]) is not None:
                break
        else:
            if start is not None:
                raise _Missed
            return


def _jump(index: FrameIndex, last: int, target: int) -> int | None:
    """The stamp of the keyframe to go on from, if it lies well ahead of frame `last` and not after `target`."""
    place = bisect_right(index.keyframes, index.stamps[target])
    if not place:
        return None
    start = index.keyframes[place - 1]
    return start if bisect_left(index.stamps, start) - last > WORTH_A_JUMP else None


def upright(frame: Any, converter: VideoReformatter) -> NDArray[np.uint8]:
    """A decoded frame's RGB pixels [H, W, 3], turned as its file says."""
    pixels: Any = converter.reformat(frame, format="rgb24").to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
