"""Peak memory of a piece of work, measured in a process of its own."""

from __future__ import annotations

import ctypes
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MIB = 2.0**20
M_MMAP_THRESHOLD = -3


def peak_growth(prepare: Callable[[], Callable[[], object]]) -> float:
    """Bytes by which the memory of a process grows at most while it works, beyond what it held when it was ready.

    A process is forked: `prepare` runs in it, and then what `prepare` returned. Blocks of a mebibyte and more come from the
    system and go back to it at once, so that what one block leaves behind does not hide what another takes. Linux alone.

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
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
        work = prepare()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        work()
        answer.send(_status("VmHWM") - before)
    except BaseException:  # whatever it was, the other process raises it
        answer.send(traceback.format_exc())


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024.0
