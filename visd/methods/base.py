"""What a method may decide. The trainer asks these questions and never knows which method answers.

A method is one dataclass in one file, its fields are its settings, and one config in `configs/method/` names it by
`_target_`. The defaults below are GRPO: no teacher, no judge, no extra term.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from visd.objective.credit import sampled_log_ratio
from visd.types import PrivilegedContext, RolloutGroup, ScoreNeeds, Term, TokenBatch, TokenCredit, TokenScores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from visd.config import RunConfig
    from visd.observe.accumulate import Gather
    from visd.types import Prompt, Rewards, Rollout, Sample


@dataclass(frozen=True)
class Scores:
    """Student and teacher on the same tokens; the student's entries are detached."""

    student: TokenScores
    teacher: TokenScores | None  # None when no row has a teacher


def without_reward(scores: Scores) -> TokenCredit:
    """The credit of a method that learns by its terms alone: 0 at every token; the gap to the teacher is for the log."""
    nothing = torch.zeros_like(scores.student.logp)
    ratio = None if scores.teacher is None else sampled_log_ratio(scores.teacher, scores.student)
    return TokenCredit(nothing, nothing, ratio)


def with_answers(group: RolloutGroup, answers: Sequence[tuple[Rollout, Rewards]]) -> RolloutGroup:
    """The group with answers that the policy did not give as further rollouts, which no advantage concerns."""
    return replace(
        group,
        rollouts=group.rollouts + tuple(answer for answer, _ in answers),
        rewards=group.rewards + tuple(rewards for _, rewards in answers),
        advantages=group.advantages + (0.0,) * len(answers),
    )


@dataclass(frozen=True)
class StepView:
    """A whole step as one rank sees it, before its update."""

    groups: Sequence[RolloutGroup]  # of this rank
    teacher: Mapping[tuple[str, int], TokenScores]  # of this rank, of the policy's own tokens, by sample id and index
    gather: Gather  # returns one entry a rank; what a method keeps must be computed from all of them


class Services(ABC):
    """What a method may have done for it in `prepare`.

    `write`, `score`, `answers` and `gather` are collective: every rank calls them equally often and in the same order, with as much as it
    has, which may be nothing.
    """

    step: int  # 0-based
    folder: Path  # of the run; only the main rank writes there
    is_main: bool

    @abstractmethod
    def write(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        max_new_tokens: int,
        weights: Literal["student", "teacher"] = "student",
    ) -> list[Rollout]:
        """One text a prompt by the run's engine, at the rollouts' temperature; a seed alone decides its tokens."""

    @abstractmethod
    def score(self, prompts: Sequence[Prompt], texts: Sequence[Rollout]) -> list[list[float]]:
        """Log-probabilities of each text's tokens after its prompt by the student, at the rollouts' temperature."""

    @abstractmethod
    def answers(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Rollout]:
        """Texts of the data as answers, with the log-probabilities that the student gives them."""

    @abstractmethod
    def chat(self, name: str, text: str) -> Prompt:
        """A prompt without media whose only turn is the user's `text`; `name` is no sample's id.

        Raises:
            DroppedSample: the text spells out a special token, or is longer than `prompt.max_tokens`.
        """

    @abstractmethod
    def insert(self, prompt: Prompt, text: str) -> Prompt:
        """The prompt with `text` at the end of the user's turn; special tokens spelled out in it are plain text."""

    @abstractmethod
    def teacher_view(self, prompt: Prompt, context: PrivilegedContext) -> Prompt:
        """The prompt as the teacher scores it, by `teacher.context` and `teacher.layout`."""

    @abstractmethod
    def seed(self, *parts: int | str) -> int:
        """A seed for this run and step and what the parts name."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """One entry a rank."""


@dataclass
class Method:
    """Base of all methods."""

    uses_teacher: ClassVar[bool] = False
    """True for a method that ever asks for a teacher; for the others none is kept in memory."""

    learns_without_advantage: ClassVar[bool] = False
    """True for a method that, while active, also teaches from rollouts with advantage 0; otherwise these are skipped."""

    crosses_tokenizers: ClassVar[bool] = False
    """True for a method whose external teacher may have another tokenizer; its needs name `units`."""

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

    def wants_rollouts(self, step: int) -> bool:
        """Whether the policy answers the step's prompts; if not, `prepare` brings all answers, and groups begin without any."""
        return True

    def wants_judge(self, step: int) -> bool:
        """Whether the judge is asked at this step."""
        return False

    def context(self, group: RolloutGroup, index: int) -> PrivilegedContext | None:
        """What the teacher sees besides the prompt for rollout `index`; None: the rollout is no target."""
        return None

    def prepare(self, groups: Sequence[RolloutGroup], services: Services) -> Sequence[RolloutGroup]:
        """Have written whatever the contexts need before any is asked for; every rank calls it once a step.

        Returns:
            The groups that the rest of the step works with: those given, or with rollouts, rewards and advantages added.
        """
        return groups

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
