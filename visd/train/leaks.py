"""Watches for answers that speak of what only the teacher was shown, or repeat it, and stops a run in which they become the rule."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from visd.config import TrainSection
from visd.types import VisdError

log = logging.getLogger(__name__)

WINDOW = 10
"""Steps whose mean counts."""
METRICS = {"max_mention_rate": "leak/mention_rate", "max_copied_share": "leak/copied_share"}
"""Fields of the configuration, and what each limits."""


class LeakWatch:
    """The last steps' leaks. Means count as if the steps before the first had none, so that one step stops no run."""

    def __init__(self, section: TrainSection):
        self._limits = {name: getattr(section, name) for name in METRICS}
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in METRICS}
        self._warned: set[str] = set()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take up a step's metrics, the same on all ranks; warns from half of a limit on, until the mean falls below.

        Raises:
            VisdError: a mean is over its limit.
        """
        for name, value in self._over(metrics, 0.5):
            if value > self._limits[name]:
                raise VisdError(
                    f"step {step}: {METRICS[name]} was {value:.3f} over the last {WINDOW} steps, more than train.{name} = "
                    f"{self._limits[name]:g} allows: answers speak of what only the teacher is shown. Look at the rollout "
                    "dumps, lower lam or show the teacher less (teacher.context), and resume from an earlier checkpoint."
                )
            if name not in self._warned:
                log.warning(
                    "step %d: %s was %.3f over the last %d steps; the run stops above train.%s = %g",
                    step, METRICS[name], value, WINDOW, name, self._limits[name],
                )  # fmt: skip
            self._warned.add(name)

    def _over(self, metrics: Mapping[str, float], share: float) -> Iterator[tuple[str, float]]:
        """Fields whose mean is over a share of the limit, with the mean."""
        for name, metric in METRICS.items():
            self._seen[name].append(metrics.get(metric, 0.0))
            mean = sum(self._seen[name]) / WINDOW
            if self._limits[name] and mean > share * self._limits[name]:
                yield name, mean
            else:
                self._warned.discard(name)

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart (JSON-able)."""
        return {"seen": {name: list(values) for name, values in self._seen.items()}, "warned": sorted(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, values in state["seen"].items():
            self._seen[name].extend(values)
        self._warned.update(state["warned"])
