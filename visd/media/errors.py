"""The ways in which a media file can be unusable."""

from __future__ import annotations

from pathlib import Path

from visd.types import VisdError

REASONS = (
    "outside_root",  # the path leaves the data root
    "missing",  # no such file
    "empty",  # zero bytes
    "unreadable",  # not a media file, or damaged where it is needed
    "no_video_stream",  # audio only
    "too_short",  # fewer frames than prompt.video.min_frames
    "bad_clip",  # start and end, or a key frame, do not lie inside the file
    "bad_size",  # an aspect ratio that no allowed size fits
    "truncated",  # the file ends before what its header announces and is asked for
    "unsupported",  # prompt.video.backend would show other frames than those asked for, or shows them wrongly
    "timeout",  # decoding took longer than prompt.video.timeout
    "memory",  # decoding needed more than data.frames.memory_mb
    "crashed",  # the decoder ended its process
)


class DecodeError(VisdError):
    """A file that cannot give the frames asked for. `reason` is one of `REASONS`."""

    def __init__(self, reason: str, path: Path | str, message: str):
        assert reason in REASONS, reason
        super().__init__(f"{path}: {message}")
        self.reason = reason
        self.path = str(path)
        self.message = message

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str, str]]:
        """What comes back from another process is built from the parts, not from the finished text."""
        return DecodeError, (self.reason, self.path, self.message)


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is torch's way to say what numpy says by MemoryError."""
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
