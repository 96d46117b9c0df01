"""Work on files in processes that can be ended: one that hangs, crashes or eats memory costs one file, not the run."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimeIsUp
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from visd.media.errors import DecodeError

T = TypeVar("T")
R = TypeVar("R")

TASKS = 500
"""Files after which a process is replaced, so that what a decoder leaks comes back."""


class KillableWorkers:
    """Processes that work on one file each at a time; one that does not come back is ended and replaced.

    They are forked from a server that has imported `preload` once, so that replacing one takes milliseconds.
    """

    def __init__(
        self,
        workers: int,
        memory_mb: int,
        preload: str,
        memory_name: str,
        set_up: Callable[[], None] | None = None,
    ):
        """
        Args:
            memory_mb: what a process may allocate beyond what it starts with.
            preload: name of the module that the work is in.
            memory_name: the setting that `memory_mb` comes from, for messages.
            set_up: called once in each process.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([preload])
        ensure_running()  # it imports for seconds: from now on, beside whatever comes before the first file
        self.memory_mb, self._memory_name = memory_mb, memory_name
        self._pool: Any = ProcessPool(workers, TASKS, _limit, (memory_mb * 2**20, set_up), context)

    def submit(self, work: Callable[[T], R], task: T, seconds: float) -> Future[R]:
        """Have something done soon, in `seconds` from when it begins."""
        future: Future[R] = self._pool.schedule(work, (task,), timeout=seconds)
        return future

    def result(self, path: Path, future: Future[R], seconds: float) -> R:
        """What `submit` was asked for, waiting for it if need be.

        Raises:
            DecodeError: the work raised it, or its process had to be ended, or ended itself.
        """
        try:
            return future.result()
        except TimeIsUp:
            raise DecodeError("timeout", path, f"the decoder hung and was ended after {seconds:g} s.") from None
        except MemoryError:
            message = (
                f"decoding needs more than {self._memory_name} = {self.memory_mb}; raise it or re-encode the file."
            )
            raise DecodeError("memory", path, message) from None
        except ProcessExpired as error:
            raise DecodeError("crashed", path, f"the decoder crashed (exit code {error.exitcode}).") from error

    def close(self) -> None:
        """End all processes."""
        self._pool.stop()
        self._pool.join()


def _limit(extra: int, set_up: Callable[[], None] | None) -> None:
    """In a new process: a limit on what it may allocate beyond what it has now."""
    if set_up is not None:
        set_up()
    limit = _data_bytes() + extra
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _data_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
