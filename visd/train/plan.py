"""Which rows go through the model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from visd.types import VisdError


def micro_batches(lengths: Sequence[int], budget: int, describe: Callable[[int], str]) -> list[list[int]]:
    """Group row indices so that rows * longest length stays within `budget`.

    Rows are taken by length, so that little is padded; rows of equal length keep their order.

    Raises:
        VisdError: a single row is longer than the budget; `describe(row)` names it.
    """
    plan: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[row]
        if length > budget:
            raise VisdError(
                f"{describe(row)} takes {length} tokens, more than train.micro_batch_tokens = {budget}: "
                "raise it, or lower prompt.max_tokens, prompt.video or rollout.max_new_tokens."
            )
        if not plan or (len(plan[-1]) + 1) * length > budget:
            plan.append([])
        plan[-1].append(row)
    return plan
