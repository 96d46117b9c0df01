"""How far an engine's log-probabilities are from the trainer's."""

from __future__ import annotations

from collections.abc import Sequence

from visd.train.run import Run
from visd.train.teach import items_of
from visd.types import RolloutGroup, ScoreNeeds

BOUND = 1e-4
"""nats, largest difference of a token's log-probabilities in float32."""


def largest_difference(run: Run, groups: Sequence[RolloutGroup]) -> float:
    """nats, over all tokens; rollouts need an advantage other than 0."""
    items = items_of(run, groups)
    assert len(items) == sum(len(group.rollouts) for group in groups)
    rows = [item.row() for item in items]
    scores = run.policy.score(rows, temperature=run.sampling.temperature, needs=ScoreNeeds())
    run.policy.forget_features()
    return max(
        abs(own - theirs)
        for item, values in zip(items, scores.logp.tolist(), strict=True)
        for own, theirs in zip(values, item.group.rollouts[item.index].logp, strict=False)
    )
