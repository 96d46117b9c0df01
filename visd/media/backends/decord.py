"""Frames from decord (the package decord2).

Decord finds a frame by counting from a keyframe, and its times come from a table, not from the frames it shows. Where
frames after a keyframe lean on some before it, they are left out, the count is off, and nothing tells. Such files are
refused, and so are rotated ones, whose rows it mixes up (seen with 3.4.0).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

os.environ.setdefault(
    "DECORD_EOF_RETRY_MAX", "2048"
)  # its own 10240 tries can take minutes; read when a file is opened

import decord
import numpy as np
from av.bitstream import BitStreamFilterContext
from decord.base import DECORDError
from numpy.typing import NDArray

from visd.media.backends.shown import check_shown, unsupported
from visd.media.container import Deadline, FrameIndex, open_video

ERRORS: tuple[type[Exception], ...] = (DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError)

FRESH_STARTS = {"h264": "5", "hevc": "19-20"}
"""NAL unit types of keyframes that no later frame looks back past; other codecs' keyframes all are."""

LOOKS_BACK = "frames after a keyframe need some before it (open groups of pictures, intra refresh)"

NO_SUBSTITUTES = 1e-9
"""Share of frames that decord may replace by others without saying so; 0 would mean any."""

decord.logging.set_level(decord.logging.QUIET)


def read(index: FrameIndex, numbers: Sequence[int], deadline: Deadline) -> Iterator[NDArray[np.uint8]]:
    """See the package."""
    _check_counting(deadline)
    reader = decord.VideoReader(str(deadline.path), num_threads=1 if index.one_thread else 0, fault_tol=NO_SUBSTITUTES)
    if len(reader) != len(index.times):
        raise unsupported("decord", deadline, f"it counts {len(reader)} frames where there are {len(index.times)}")
    first, *times = reader.get_frame_timestamp([0, *numbers])[:, 0].tolist()
    for number, at in zip(numbers, times, strict=True):
        check_shown("decord", index, number, at - first, deadline)
        yield reader[number].asnumpy()


def _check_counting(deadline: Deadline) -> None:
    """Raise DecodeError where counting from a keyframe leads to another frame, or frames have to be turned."""
    with open_video(deadline.path, deadline) as (container, stream):
        types = FRESH_STARTS.get(stream.codec_context.codec.name)
        fresh = BitStreamFilterContext(f"filter_units=pass_types={types}", in_stream=stream) if types else None
        start = None
        for packet in container.demux(stream):
            deadline.check()
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.is_keyframe:
                start = packet.pts
            elif start is not None and packet.pts < start:
                raise unsupported("decord", deadline, LOOKS_BACK)
            if packet.is_keyframe and fresh is not None and not fresh.filter(packet):  # empties the packet
                raise unsupported("decord", deadline, LOOKS_BACK)
    with open_video(deadline.path, deadline) as (container, stream):
        if next(container.decode(stream)).rotation:
            raise unsupported("decord", deadline, "its frames have to be turned")
