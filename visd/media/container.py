"""What a video file holds and when each frame is shown, from PyAV's packets. The frames are read by a backend."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from visd.media.errors import DecodeError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v,gif,wtv,rm,y4m"
"""Containers that may be opened. Playlists are not among them: they would read files outside the data root."""

SINGLE_THREAD_PIXELS = 640 * 480
"""Up to this frame size starting decoder threads costs more than they save."""


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
    stream: int  # which of the file's streams
    one_thread: bool  # whether its frames are too small to decode with several threads


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


def below_root(root: Path, relative: str) -> Path:
    """The real path of a file, which must lie below `root`, symbolic links followed.

    Raises:
        DecodeError: it does not.
    """
    root = root.resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise DecodeError(
            "outside_root", relative, f"the path leads out of {root}; set data.root to a folder above the file."
        )
    return path


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
        if is_small(context):
            context.thread_count = 1
        else:
            streams[0].thread_type = "AUTO"
        yield container, streams[0]
    finally:
        container.close()


def is_small(context: Any) -> bool:
    """Whether a codec context's frames are decoded with one thread."""
    return bool(context.width * context.height <= SINGLE_THREAD_PIXELS)


def index_frames(container: Any, stream: Any, deadline: Deadline) -> FrameIndex:
    """Read every packet's stamps without decoding any."""
    entries, keyframes, damaged, furthest = [], [], set(), 0.0
    broken, tainted, hidden = False, False, 0
    wanted = [s for s in container.streams if s is stream or s.type == "audio"]
    try:
        for packet in container.demux(wanted):
            deadline.check()
            if packet.size == 0:
                continue
            if packet.dts is not None and packet.time_base is not None:
                furthest = max(furthest, float((packet.dts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            broken = packet.is_corrupt  # of the last packet: the file ends inside it
            tainted = packet.is_corrupt or (tainted and not packet.is_keyframe)
            if tainted:
                damaged.add(packet.pts)
            if packet.is_discard:  # an edit list hides it, as in copies cut without coding anew
                hidden += 1
                continue
            entries.append((packet.pts, packet.duration or 0))
            if packet.is_keyframe and packet.pts is not None:
                keyframes.append(packet.pts)
    except av.error.FFmpegError:
        broken = True
    if not entries:
        raise DecodeError("unreadable", deadline.path, "its video stream holds no frame.")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    complete = not broken and len(entries) + hidden >= stream.frames and not _ends_early(container, furthest)
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
    return FrameIndex(
        stamps=tuple(stamps),
        times=times,
        end=end,
        rate=rate,
        keyframes=tuple(sorted(keyframes)),
        damaged=frozenset(damaged),
        complete=complete,
        stream=stream.index,
        one_thread=is_small(stream.codec_context),
    )


def _ends_early(container: Any, furthest: float) -> bool:
    """Matroska has no frame count: its header announces a duration, which the last packet should reach."""
    if "matroska" not in container.format.name or not container.duration:
        return False
    return furthest < container.duration / av.time_base - 1.0


def undecodable(index: FrameIndex, number: int, deadline: Deadline, why: str) -> DecodeError:
    """What to raise where frame `number` cannot be had."""
    return DecodeError(
        "unreadable" if index.complete else "truncated",
        deadline.path,
        f"the frame at {index.times[number]:.3f} s cannot be decoded ({why}); re-encode the file or remove the sample.",
    )
