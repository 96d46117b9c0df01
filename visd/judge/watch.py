"""Stops a run whose judge fails, or contradicts the verifiable reward, too often."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from visd.types import JudgeReport, Rewards, VisdError


class Watch:
    """The last judgements: which failed, and which contradicted the verifiable reward.

    `over_budget` is nobody's failure and is not counted. A rate counts against the whole window even before the window
    is full, so one bad answer at the start stops nothing and a dead server stops the run at once.
    """

    def __init__(self, window: int, max_failure_rate: float, max_disagreement: float):
        self.window = window
        self.max_failure_rate = max_failure_rate
        self.max_disagreement = max_disagreement
        self._statuses: deque[str] = deque(maxlen=window)
        self._disagreements: deque[bool] = deque(maxlen=window)

    def update(self, judged: Iterable[tuple[JudgeReport, Rewards | None]], note: str) -> None:
        """Count judgements.

        Args:
            note: of the last failure, for the message.

        Raises:
            VisdError: a rate is over its limit.
        """
        for report, rewards in judged:
            if report.status != "over_budget":
                self._statuses.append(report.status)
            if rewards is not None and (contradicts := report.contradicts(rewards)) is not None:
                self._disagreements.append(contradicts)
        failed = Counter(status for status in self._statuses if status not in ("ok", "repaired"))
        if failed.total() > self.max_failure_rate * self.window:
            counts = ", ".join(f"{status}: {count}" for status, count in sorted(failed.items()))
            raise VisdError(
                f"the judge failed {failed.total()} of the last {len(self._statuses)} times ({counts}), more than "
                f"judge.max_failure_rate = {self.max_failure_rate:g} of {self.window} allows; the last time: {note}. "
                "Repair the server or the settings and resume."
            )
        wrong = sum(self._disagreements)
        if wrong > self.max_disagreement * self.window:
            raise VisdError(
                f"the judge's answer score contradicted the verifiable reward {wrong} of the last "
                f"{len(self._disagreements)} times, more than judge.max_disagreement = {self.max_disagreement:g} of "
                f"{self.window} allows: its model is too weak, or is being talked to. Look at the rollout dumps."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"statuses": list(self._statuses), "disagreements": list(self._disagreements)}

    def load_state_dict(self, state: dict[str, Sequence[Any]]) -> None:
        self._statuses.extend(state["statuses"])
        self._disagreements.extend(state["disagreements"])
