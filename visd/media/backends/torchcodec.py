"""Frames from torchcodec, which says of each frame when it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torchcodec.decoders import VideoDecoder

from visd.media.backends.shown import check_shown
from visd.media.container import Deadline, FrameIndex

ERRORS: tuple[type[Exception], ...] = (RuntimeError, ValueError, IndexError)

CHUNK = 8
"""Frames decoded at once, so that memory does not grow with the number asked for."""


def read(index: FrameIndex, numbers: Sequence[int], deadline: Deadline) -> Iterator[NDArray[np.uint8]]:
    """See the package."""
    decoder = VideoDecoder(
        str(deadline.path),
        stream_index=index.stream,
        dimension_order="NHWC",
        num_ffmpeg_threads=1 if index.one_thread else 0,
        device="cpu",
    )
    first = decoder.metadata.begin_stream_seconds
    for start in range(0, len(numbers), CHUNK):
        deadline.check()
        chunk = list(numbers[start : start + CHUNK])
        frames = decoder.get_frames_at(chunk)
        for number, at in zip(chunk, frames.pts_seconds.tolist(), strict=True):
            check_shown("torchcodec", index, number, at - first, deadline)
        yield from frames.data.numpy()
