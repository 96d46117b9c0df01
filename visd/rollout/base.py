"""The interface of every rollout engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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


class RolloutEngine(ABC):
    """Samples answers. What an engine needs of the policy it takes at construction."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        """`sampling.n` rollouts a prompt; `seeds[i][g]` alone decides the tokens of rollout g of prompt i."""
