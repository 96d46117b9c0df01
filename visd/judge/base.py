"""The interface of every judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visd.types import Frames, JudgeReport, Media, RolloutGroup


@dataclass(frozen=True)
class JudgeServices:
    """What a judge may use of the run."""

    folder: Path  # its own, below the run's; it need not exist
    frames: Callable[[Media], Frames]  # the frames that the policy sees
    rank: int = 0
    ranks: int = 1


class Judge(ABC):
    """Scores rollouts along the dimensions and says what went wrong."""

    @abstractmethod
    def judge(self, groups: Sequence[RolloutGroup]) -> list[tuple[JudgeReport, ...]]:
        """One report a rollout, one tuple a group, in order; once a step, for all its groups.

        A judge never raises for a single rollout: a failed judgement is a report with its status, which removes the
        teacher's feedback block of that rollout and nothing else.
        """

    def submit(self, groups: Sequence[RolloutGroup]) -> None:  # noqa: B027
        """Begin to judge groups that `judge` will be asked about; a judge that answers at once need not."""

    def removes_target(self, report: JudgeReport) -> bool:
        """Whether a report takes the rollout away from the teacher altogether."""
        return False

    def open(self, services: JudgeServices) -> None:  # noqa: B027
        """Called once, before anything is judged.

        Raises:
            ConfigError: a setting that cannot work here.
        """

    def close(self) -> None:  # noqa: B027
        """Called once, at the end of the run, whatever ended it."""

    def take_counts(self) -> dict[str, float]:
        """Numbers since the last call, by name; they are logged as sums over ranks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart (JSON-able)."""
        return {}

    def load_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:  # noqa: B027
        """Take up where `state_dict` was written; one entry for each rank that wrote, which may have been more or fewer."""
