"""Which rows go through the model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from visd.types import VisdError


def micro_batches(lengths: Sequence[int], budget: int, describe: Callable[[int], str]) -> list[list[int]]:
    """Group row indices so that rows * longest length stays within `budget`, in the given order.

    Neighbours stay neighbours: the rollouts of a group come one after the other and share their prompt.

    Raises:
        VisdError: a single row is longer than the budget; `describe(row)` names it.
    """
    plan: list[list[int]] = []
    longest = 0
    for row, length in enumerate(lengths):
        if length > budget:
            raise VisdError(
                f"{describe(row)} takes {length} tokens, more than train.micro_batch_tokens = {budget}: "
                "raise it, or lower prompt.max_tokens, prompt.video or rollout.max_new_tokens."
            )
        longest = max(longest, length)
        if not plan or (len(plan[-1]) + 1) * longest > budget:
            plan.append([])
            longest = length
        plan[-1].append(row)
    return plan
