"""The interface of every judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from visd.types import JudgeReport, RolloutGroup


class Judge(ABC):
    """Scores rollouts along the dimensions and says what went wrong."""

    @abstractmethod
    def judge(self, groups: Sequence[RolloutGroup]) -> list[tuple[JudgeReport, ...]]:
        """One report a rollout, one tuple a group, in order.

        A judge never raises for a single rollout: a failed judgement is a report with its status, which removes the
        teacher's feedback block of that rollout and nothing else.
        """
