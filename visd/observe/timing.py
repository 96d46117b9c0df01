"""Wall-clock times of the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from visd.observe.accumulate import Metrics


class PhaseTimer:
    """Adds up the seconds spent in named phases. A phase inside another counts in both.

    Args:
        synchronize: called at each end of a phase, so that queued device work counts where it was asked for.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None, clock: Callable[[], float] = time.perf_counter):
        self._synchronize = synchronize
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._started = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            if self._synchronize is not None:
                self._synchronize()
            self.add(name, self._clock() - start)

    def add(self, name: str, seconds: float) -> None:
        """Seconds of a phase that ran beside others, in a thread."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call, and `step`, the whole time since then; starts anew."""
        now = self._clock()
        seconds = {**self._seconds, "step": now - self._started}
        self._seconds = {}
        self._started = now
        return seconds


def time_metrics(seconds: dict[str, float]) -> Metrics:
    """`time/<phase>`: the slowest rank's seconds."""
    metrics = Metrics()
    for name, value in seconds.items():
        metrics.max(f"time/{name}", value)
    return metrics
