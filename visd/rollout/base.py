"""The interface of every rollout engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from visd.media.processor import PromptProcessor
from visd.parallel.base import Backend
from visd.types import Prompt, Rollout


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    greedy: bool = False
    stop: tuple[str, ...] = ()  # texts after which nothing of an answer is used; an engine may stop there or go on


@dataclass(frozen=True)
class Limits:
    """What a run will ask of its engine."""

    sampling: Sampling
    max_length: int  # tokens of the longest prompt with its longest answer
    processes: int  # of the run


class RolloutEngine(ABC):
    """Samples answers. What an engine needs of the policy it takes at construction."""

    uses_module: ClassVar[bool] = True  # samples from the policy's own module, inside `Backend.whole_weights`
    elsewhere: ClassVar[bool] = False  # on other devices than the trainer's
    shows_media: bool = False  # answers may hold frames that a tool showed

    def open(self, limits: Limits) -> None:  # noqa: B027  # most engines take anything
        """Called once, before the first sync.

        Raises:
            ConfigError: this engine cannot serve such a run.
        """

    def use(self, processor: PromptProcessor) -> None:  # noqa: B027  # most engines need prompts alone
        """Called once, after `open`: who made the prompts and can make more of their media.

        Raises:
            ConfigError: the model cannot be shown what this engine shows.
        """

    def sync(self, backend: Backend, version: int) -> None:  # noqa: B027  # the module needs none
        """Take over the policy's weights, which are those of `version`. All ranks call it, outside `whole_weights`."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        """`sampling.n` rollouts a prompt; `seeds[i][g]` alone decides the tokens of rollout g of prompt i."""

    def rest(self) -> None:  # noqa: B027  # the module is needed
        """The step needs no more answers: an engine may give memory back until it is asked again."""
