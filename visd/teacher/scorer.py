"""The teacher's pass: the rollouts' own tokens after a prompt that also holds the privileged text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visd.policy.batch import Row
from visd.policy.policy import Policy
from visd.types import ScoreNeeds, TokenScores


@torch.no_grad()
def score_rows(
    policy: Policy, rows: Sequence[Row], plan: Sequence[Sequence[int]], temperature: float, needs: ScoreNeeds
) -> list[TokenScores]:
    """Scores of each row, unpadded, with whatever weights are in place.

    Args:
        plan: row indices by micro-batch.
    """
    scores: list[TokenScores | None] = [None] * len(rows)
    for batch in plan:
        padded = policy.score([rows[i] for i in batch], temperature=temperature, needs=needs)
        for b, i in enumerate(batch):
            scores[i] = padded.row(b, len(rows[i].response_ids))
    return [score for score in scores if score is not None]
