"""Reading a video file with PyAV: when each frame is shown, and the frames themselves."""

from __future__ import annotations

import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from visd.media.errors import DecodeError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,gif,wtv,rm,y4m"
"""Containers that may be opened. Playlists are not among them: they would read files outside the data root."""

SINGLE_THREAD_PIXELS = 640 * 480
"""Up to this frame size starting decoder threads costs more than they save."""

WORTH_A_JUMP = 8
"""Frames to skip that make seeking cheaper than decoding on."""


@dataclass(frozen=True)
class FrameIndex:
    """Every frame a file shows, in order of presentation."""

    stamps: tuple[int, ...]  # presentation stamps in stream units
    times: tuple[float, ...]  # s from the first frame
    end: float  # s at which the last frame stops being shown
    rate: float  # declared frames per second, 0 if none
    keyframes: tuple[int, ...]  # stamps of frames that decoding can start from, sorted
    damaged: frozenset[int]  # stamps of frames that need a damaged packet
    complete: bool  # False: the file ends before what its header announces


class Deadline:
    """A wall-clock limit that the reading loops check between packets and frames."""

    def __init__(self, path: Path, seconds: float):
        self.path, self.seconds, self.at = path, seconds, time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.at:
            raise DecodeError(
                "timeout",
                self.path,
                f"decoding took longer than {self.seconds:g} s; raise prompt.video.timeout or re-encode the file.",
            )


def check_file(path: Path) -> None:
    """Raise DecodeError unless `path` is a regular file that holds something."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError("missing", path, "there is no such file.") from None
    except OSError as error:
        raise DecodeError("unreadable", path, f"the file cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("unreadable", path, "this is not a regular file.")
    if status.st_size == 0:
        raise DecodeError("empty", path, "the file has no bytes.")


@contextmanager
def open_video(path: Path, deadline: Deadline) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    try:
        container = av.open(str(path), options={"format_whitelist": FORMATS}, timeout=deadline.seconds)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        deadline.check()
        raise DecodeError("unreadable", path, f"this is no video file, or its header is damaged ({error}).") from error
    try:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise DecodeError("no_video_stream", path, "the file has no video stream.")
        context = streams[0].codec_context
        if context is None:
            raise DecodeError("unreadable", path, "there is no decoder for its video stream.")
        if context.width * context.height <= SINGLE_THREAD_PIXELS:
            context.thread_count = 1
        else:
            streams[0].thread_type = "AUTO"
        yield container, streams[0]
    finally:
        container.close()


def index_frames(container: Any, stream: Any, deadline: Deadline) -> FrameIndex:
    """Read every packet's stamps without decoding any."""
    entries, keyframes, damaged, furthest = [], [], set(), 0.0
    broken = tainted = False
    wanted = [s for s in container.streams if s is stream or s.type == "audio"]
    try:
        for packet in container.demux(wanted):
            deadline.check()
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.dts is not None and packet.time_base is not None:
                furthest = max(furthest, float((packet.dts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            broken = packet.is_corrupt  # of the last packet: the file ends inside it
            tainted = packet.is_corrupt or (tainted and not packet.is_keyframe)
            if tainted:
                damaged.add(packet.pts)
            entries.append((packet.pts, packet.duration or 0))
            if packet.is_keyframe and packet.pts is not None:
                keyframes.append(packet.pts)
    except av.error.FFmpegError:
        broken = True
    if not entries:
        raise DecodeError("unreadable", deadline.path, "its video stream holds no frame.")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    complete = not broken and len(entries) >= stream.frames and not _ends_early(container, furthest)
    if any(pts is None for pts, _ in entries):
        raise DecodeError(
            "unreadable", deadline.path, "it does not say when its frames are shown; remux it with stamps."
        )
    stamps = sorted({pts for pts, _ in entries})
    last_duration = max(duration for pts, duration in entries if pts == stamps[-1])
    if not last_duration:
        last_duration = stamps[-1] - stamps[-2] if len(stamps) > 1 else round(1 / (rate or 1) / stream.time_base)
    times = tuple(float((stamp - stamps[0]) * stream.time_base) for stamp in stamps)
    end = float((stamps[-1] + last_duration - stamps[0]) * stream.time_base)
    return FrameIndex(tuple(stamps), times, end, rate, tuple(sorted(keyframes)), frozenset(damaged), complete)


def _ends_early(container: Any, furthest: float) -> bool:
    """Matroska has no frame count: its header announces a duration, which the last packet should reach."""
    if "matroska" not in container.format.name or not container.duration:
        return False
    return furthest < container.duration / av.time_base - 1.0


def read_frames(
    container: Any, stream: Any, index: FrameIndex, numbers: Sequence[int], deadline: Deadline
) -> Iterator[NDArray[np.uint8]]:
    """RGB pixels [H, W, 3], upright, of the frames `numbers` (strictly ascending), from a freshly opened container.

    Raises:
        DecodeError: a frame cannot be decoded; never fewer frames than asked for.
    """
    done = 0
    converter = VideoReformatter()  # one for all frames: setting it up costs more than converting a small frame
    try:
        for frame in _walk(container, stream, index, numbers, deadline):
            if frame.is_corrupt or frame.pts in index.damaged:
                raise _undecodable(index, numbers[done], deadline, "its data is damaged")
            yield _upright(frame, converter)
            done += 1
    except av.error.FFmpegError as error:
        raise _undecodable(index, numbers[done], deadline, str(error)) from error
    if done < len(numbers):
        raise _undecodable(index, numbers[done], deadline, "the stream ends before it")


def _walk(container: Any, stream: Any, index: FrameIndex, numbers: Sequence[int], deadline: Deadline) -> Iterator[Any]:
    """Decode forward, jumping to a keyframe where that skips many frames; stop early if a frame cannot be found."""
    slot, last, jumps = 0, -1, True
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
                # The container's seek table is wrong, or the keyframe needs frames before it: read it all instead.
                jumps = False
                container.seek(index.stamps[0], stream=stream, backward=True)
                break
            if stamp > target:
                return
            yield frame
            last, slot = numbers[slot], slot + 1
            if slot == len(numbers):
                return
            if jumps and _jump(index, last, numbers[slot]) is not None:
                break
        else:
            return


def _jump(index: FrameIndex, last: int, target: int) -> int | None:
    """The stamp of the keyframe to go on from, if it lies well ahead of frame `last` and not after `target`."""
    place = bisect_right(index.keyframes, index.stamps[target])
    if not place:
        return None
    start = index.keyframes[place - 1]
    return start if bisect_left(index.stamps, start) - last > WORTH_A_JUMP else None


def _upright(frame: Any, converter: VideoReformatter) -> NDArray[np.uint8]:
    pixels: Any = converter.reformat(frame, format="rgb24").to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels


def _undecodable(index: FrameIndex, number: int, deadline: Deadline, why: str) -> DecodeError:
    return DecodeError(
        "unreadable" if index.complete else "truncated",
        deadline.path,
        f"the frame at {index.times[number]:.3f} s cannot be decoded ({why}); re-encode the file or remove the sample.",
    )
