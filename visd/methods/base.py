"""What a method may decide. The trainer asks these questions and never knows which method answers.

A method is one dataclass in one file, its fields are its settings, and one config in `configs/method/` names it by
`_target_`. The defaults below are GRPO: no teacher, no judge, no extra term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from visd.types import PrivilegedContext, RolloutGroup, ScoreNeeds, Term, TokenBatch, TokenCredit, TokenScores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visd.config import RunConfig
    from visd.observe.accumulate import Gather
    from visd.types import Sample


@dataclass(frozen=True)
class Scores:
    """Student and teacher on the same tokens; the student's entries are detached."""

    student: TokenScores
    teacher: TokenScores | None  # None when no row has a teacher


@dataclass(frozen=True)
class StepView:
    """A whole step as one rank sees it, before its update."""

    groups: Sequence[RolloutGroup]  # of this rank
    teacher: Mapping[tuple[str, int], TokenScores]  # of this rank, unpadded, by sample id and rollout index
    gather: Gather  # returns one entry a rank; what a method keeps must be computed from all of them


@dataclass
class Method:
    """Base of all methods."""

    uses_teacher: ClassVar[bool] = False
    """True for a method that ever asks for a teacher; for the others none is kept in memory."""

    learns_without_advantage: ClassVar[bool] = False
    """True for a method whose extra terms also teach from rollouts with advantage 0; otherwise these are skipped."""

    def check(self, samples: Sequence[Sample], config: RunConfig) -> None:
        """Refuse, before the first step, data or settings that the method cannot use.

        Raises:
            VisdError: one sentence that names the sample and the field.
        """

    def needs(self, step: int) -> ScoreNeeds | None:
        """What the teacher scores at this step (0-based); None asks for no teacher."""
        return None

    def active(self, step: int) -> bool:
        """False switches judge, teacher and EMA off at this step."""
        return False

    def wants_judge(self, step: int) -> bool:
        """Whether the judge is asked at this step."""
        return False

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        """What the teacher sees besides the prompt for rollout `index`; None: the rollout is no target."""
        return None

    def prepare(self, groups: Sequence[RolloutGroup], services: Any) -> None:
        """Generate whatever the contexts need before any is asked for."""

    def observe(self, seen: StepView, step: int) -> dict[str, float]:
        """Learn what concerns the whole step, before its first micro-batch; every rank calls it once a step.

        Returns:
            Numbers to log as `method/<name>`, the same on every rank.
        """
        return {}

    def advantages(self, batch: TokenBatch, scores: Scores, step: int) -> TokenCredit:
        """Base advantages [B] to per-token advantages [B, T], detached."""
        spread = batch.advantages[:, None].expand(batch.mask.shape)
        return TokenCredit(advantages=spread, weights=torch.ones_like(spread))

    def terms(self, batch: TokenBatch, scores: Scores, step: int) -> dict[str, Term]:
        """Extra differentiable terms by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart (JSON-able)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} has no state, the checkpoint holds {sorted(state)}")
