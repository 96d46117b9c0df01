"""Peak memory of a piece of work, in this process or in one of its own. Linux alone."""

from __future__ import annotations

import ctypes
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIB = 2.0**20
M_MMAP_THRESHOLD = -3


@dataclass
class Peak:
    """Filled in when the work is done."""

    growth: float = 0.0  # bytes


def give_blocks_back() -> None:
    """From now on blocks of a mebibyte and more come from the system and go back to it at once, so that what one block leaves
    behind does not hide what another takes."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def peak_inside() -> Iterator[Peak]:
    """By how many bytes this process's memory grows at most inside, beyond what it held before."""
    peak, before = Peak(), _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    yield peak
    peak.growth = _status("VmHWM") - before


def peak_growth(prepare: Callable[[], Callable[[], object]]) -> float:
    """Bytes by which the memory of a process grows at most while it works, beyond what it held when it was ready.

    A process is forked: `prepare` runs in it, and then what `prepare` returned.

    Raises:
        RuntimeError: what the process raised.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(prepare, theirs))
    process.start()
    theirs.close()
    try:
        found: Any = ours.recv()
    except EOFError:
        found = "it ended without a word, perhaps for want of memory"
    process.join()
    if not isinstance(found, float):
        raise RuntimeError(f"the measured process failed: {found}")
    return found


def _measure(prepare: Callable[[], Callable[[], object]], answer: Connection) -> None:
    try:
        give_blocks_back()
        work = prepare()
        with peak_inside() as peak:
            work()
        answer.send(peak.growth)
    except BaseException:  # whatever it was, the other process raises it
        answer.send(traceback.format_exc())


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024.0
