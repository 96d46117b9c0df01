"""Controls: what a method's signal is replaced by, to see whether it is the signal that helps.

Both keep the distribution of what they replace and take away what it says: `shuffled_feedback` gives the teacher feedback
on another sample's rollout, `random_weights` puts a rollout's token weights on other tokens of the same rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visd.seeding import generator
from visd.types import RolloutGroup, TokenBatch

CONTROLS = ("none", "shuffled_feedback", "random_weights")

Feedback = dict[tuple[str, int], str | None]
"""By (sample id, rollout index)."""


def shuffled_feedback(groups: Sequence[RolloutGroup]) -> Feedback:
    """For each rollout the feedback of the next sample's, at the same place of its group; none where that one has none.

    Samples are those of one rank and step, in the order of their ids, so that their own order decides nothing. A rank with
    one sample has no other to take feedback from, and gives none.
    """
    ordered = sorted((group for group in groups if group.reports), key=lambda group: group.sample.id)
    found: Feedback = {}
    for group, other in zip(ordered, ordered[1:] + ordered[:1], strict=True):
        for index in range(len(group.rollouts)):
            report = other.reports[index % len(other.reports)]
            found[group.sample.id, index] = report.feedback if other is not group and report.usable else None
    return found


def random_weights(weights: Tensor, batch: TokenBatch) -> Tensor:
    """[B, T]: the weights of each rollout's tokens in a random order, which depends on the rollout alone."""
    shuffled = weights.clone()
    for row, (group, index) in enumerate(zip(batch.groups, batch.indices, strict=True)):
        places = batch.mask[row].nonzero()[:, 0]
        order = generator("random_weights", group.sample.id, index, group.rollouts[index].seed).permutation(len(places))
        shuffled[row, places] = weights[row, places[torch.from_numpy(np.asarray(order)).to(places.device)]]
    return shuffled
