"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import re
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to `CLEAR`, it makes the kernel's peak of resident memory begin again at what is resident now."""


class PeakMeter:
    """Peaks of one device.

    On a GPU a peak is all that torch's allocator had given out, what was there before included. On a CPU it is how far the
    process's resident memory grew, and 0 where what was free inside the process sufficed.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.standing = 0 if device.type == "cuda" else _resident("VmRSS")

    def start(self) -> None:
        """Begin a piece of work."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            CLEAR.write_text(RESET_PEAK)

    def peak(self) -> int:
        """Bytes, since `start`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, _resident("VmHWM") - self.standing)


def _resident(name: str) -> int:
    """A field of the process's status that is given in kB, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"{STATUS} has no {name}"
    return int(found[1]) * 1024
