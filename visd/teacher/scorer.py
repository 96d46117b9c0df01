"""The teacher's pass: the rollouts' own tokens after a prompt that also holds the privileged text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visd.policy.batch import Row
from visd.policy.head import LOWEST, read_scores, score_names
from visd.policy.oom import memory_of
from visd.policy.policy import Policy
from visd.types import ScoreNeeds, TokenScores


@dataclass(frozen=True)
class ScoreJob:
    """What is to be scored, and how."""

    rows: Sequence[Row]
    plan: Sequence[Sequence[int]]  # row indices by micro-batch
    temperature: float
    needs: ScoreNeeds
    support: Sequence[Tensor] | None = None  # ids to read at each row's tokens, [T_i, K]; None: the scorer's own top K


@torch.no_grad()
def score_rows(
    policy: Policy, job: ScoreJob, change: Callable[[int, TokenScores], TokenScores] | None = None
) -> list[TokenScores]:
    """Scores of each row, unpadded, with whatever weights are in place.

    Args:
        change: applied to each row's index and scores as soon as they are known, before the next micro-batch.
    """
    scores: list[TokenScores | None] = [None] * len(job.rows)
    for batch in job.plan:
        rows = [job.rows[i] for i in batch]
        support = None
        if job.support is not None:
            support = torch.nn.utils.rnn.pad_sequence([job.support[i] for i in batch], batch_first=True)
        with memory_of("teacher", (row.prompt.sample_id for row in rows)):
            padded = policy.score(rows, temperature=job.temperature, needs=job.needs, support_ids=support)
        for b, i in enumerate(batch):
            row = padded.row(b, len(job.rows[i].response_ids))
            scores[i] = change(i, row) if change is not None else row
    return [score for score in scores if score is not None]


def score_full(policy: Policy, job: ScoreJob) -> list[Tensor]:
    """Log-probabilities of all ids at each row's tokens, [T_i, V], in CPU memory."""
    everything = ScoreJob(job.rows, job.plan, job.temperature, ScoreNeeds(full=True))
    kept: dict[int, Tensor] = {}

    def keep(index: int, row: TokenScores) -> TokenScores:
        assert row.full_logp is not None
        kept[index] = row.full_logp.cpu()
        return TokenScores(row.logp)

    score_rows(policy, everything, keep)
    return [kept[i] for i in range(len(job.rows))]


def score_mixed(policy: Policy, job: ScoreJob, reference: Sequence[Tensor], rate: float) -> list[TokenScores]:
    """The trust-region teacher of SDPO (arXiv 2601.20802, eq. 10): the weights in place, mixed with a reference.

    Args:
        reference: from `score_full` under the reference's weights.
    """

    def mix(index: int, row: TokenScores) -> TokenScores:
        assert row.full_logp is not None
        mixed = mixed_logp(reference[index].to(row.full_logp.device), row.full_logp, rate)
        ids = torch.as_tensor(job.rows[index].response_ids, device=mixed.device)
        support = None if job.support is None else job.support[index]
        names = score_names(job.needs, support)
        return TokenScores(**dict(zip(names, read_scores(mixed, ids, support, job.needs), strict=True)))

    return score_rows(policy, ScoreJob(job.rows, job.plan, job.temperature, ScoreNeeds(full=True)), mix)


def mixed_logp(reference: Tensor, live: Tensor, rate: float) -> Tensor:
    """log q = (1 - rate) log q_reference + rate log q_live - log Z, [..., V]: logits are interpolated, not probabilities."""
    mixed = (1 - rate) * reference.clamp(min=LOWEST) + rate * live.clamp(min=LOWEST)
    return mixed.masked_fill(live == -torch.inf, -torch.inf).log_softmax(-1)
