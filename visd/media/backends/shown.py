"""Whether a backend showed the frame it was asked for."""

from __future__ import annotations

from visd.media.container import Deadline, FrameIndex
from visd.media.errors import DecodeError


def check_shown(name: str, index: FrameIndex, number: int, at: float, deadline: Deadline) -> None:
    """Raise DecodeError unless `at` (s from the first frame) is nearer to frame `number` than to any other frame."""
    times = (*index.times, index.end)
    gaps = [times[number + 1] - times[number]]
    if number:
        gaps.append(times[number] - times[number - 1])
    if not abs(at - times[number]) < min(gaps) / 2:
        raise unsupported(
            name, deadline, f"it shows the frame at {at:.3f} s instead of the one at {times[number]:.3f} s"
        )


def unsupported(name: str, deadline: Deadline, why: str) -> DecodeError:
    """What to raise where another backend can be trusted with the file and this one cannot."""
    return DecodeError(
        "unsupported",
        deadline.path,
        f"{name} cannot be trusted with this file: {why}; set prompt.video.backend=pyav or re-encode the file.",
    )
