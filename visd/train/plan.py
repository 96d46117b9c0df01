"""Which rows go through the model together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visd.policy.batch import Row
from visd.policy.prefix import plan_bundles, too_long


@dataclass(frozen=True)
class Plan:
    """Which rows go through the model together, and what that costs."""

    batches: list[list[int]]  # row indices by micro-batch
    tokens: int  # through the model, padding included
    repeated: int = 0  # of these, in prefixes that run again because a group does not fit into one micro-batch


def plan_rows(rows: Sequence[Row], budget: int, describe: Callable[[int], str], shared: bool) -> Plan:
    """Micro-batches of at most `budget` tokens; with `shared`, what a sample's rows begin with counts and runs once.

    Raises:
        VisdError: a single row is longer than the budget; `describe(row)` names it.
    """
    if shared:
        return Plan(*plan_bundles(rows, budget, describe))
    batches = micro_batches([len(row) for row in rows], budget, describe)
    return Plan(batches, sum(len(batch) * max(len(rows[i]) for i in batch) for batch in batches))


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
            raise too_long(describe(row), length, budget)
        if not plan or (len(plan[-1]) + 1) * length > budget:
            plan.append([])
        plan[-1].append(row)
    return plan
