"""From groups of rollouts to the padded tensors of one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from visd.objective.dimensions import token_dimensions
from visd.policy.batch import Row, Shown, VisionFeatures
from visd.types import DIMENSIONS, Prompt, Rollout, RolloutGroup, TokenBatch, TokenScores, VisionInputs


@dataclass(frozen=True)
class Item:
    """One rollout of one group of this rank."""

    group: RolloutGroup
    index: int
    features: VisionFeatures | None
    shown: Shown | None = None  # what tools showed in it

    @property
    def key(self) -> tuple[str, int]:
        return self.group.sample.id, self.index

    @property
    def advantage(self) -> float:
        return self.group.advantages[self.index]

    @property
    def rollout(self) -> Rollout:
        return self.group.rollouts[self.index]

    @property
    def response_ids(self) -> tuple[int, ...]:
        return self.rollout.token_ids

    def row(self, prompt: Prompt | None = None) -> Row:
        """The rollout after its own prompt, or after the teacher's."""
        return Row(prompt or self.group.prompt, self.response_ids, self.features, self.shown)


def token_batch(items: Sequence[Item], has_teacher: Sequence[bool], device: torch.device) -> TokenBatch:
    """Pad what a method may look at."""
    reports = [item.group.reports[item.index] if item.group.reports else None for item in items]
    rollouts = [item.group.rollouts[item.index] for item in items]
    dimensions = [
        token_dimensions(rollout, report.spans if report else ())
        for rollout, report in zip(rollouts, reports, strict=True)
    ]
    scores = [
        [_nan(report.score(d)) if report is not None and report.usable else float("nan") for d in DIMENSIONS]
        for report in reports
    ]
    ids = padded([torch.tensor(r.token_ids) for r in rollouts])
    return TokenBatch(
        token_ids=ids.to(device),
        mask=padded([own_tokens(r) for r in rollouts]).to(device),
        advantages=torch.tensor([item.advantage for item in items], dtype=torch.float32, device=device),
        engine_logp=padded([torch.tensor(r.logp) for r in rollouts]).to(device),
        groups=[item.group for item in items],
        indices=[item.index for item in items],
        has_teacher=torch.tensor(has_teacher, device=device),
        dimensions=padded([torch.tensor(d) for d in dimensions]).to(device),
        dimension_scores=torch.tensor(scores, dtype=torch.float32, device=device),
    )


def own_tokens(rollout: Rollout) -> Tensor:
    """[T] bool: tokens that the policy wrote."""
    return torch.tensor(rollout.own or (True,) * len(rollout.token_ids), dtype=torch.bool)


def scores_of_own(scores: TokenScores, rollout: Rollout) -> TokenScores:
    """Scores of one rollout, [T, ...], at the tokens that the policy wrote."""
    return scores.where(own_tokens(rollout).to(scores.logp.device)) if rollout.own else scores


def _nan(score: float | None) -> float:
    return float("nan") if score is None else score


def padded(rows: Sequence[Tensor]) -> Tensor:
    """[T_i, ...] tensors to [B, T, ...] with zeros."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def join_scores(rows: Sequence[TokenScores | None], width: int) -> TokenScores | None:
    """Pad rows to one batch of `width` tokens, zeros for a row without scores; None when no row has any."""
    present = [row for row in rows if row is not None]
    if not present:
        return None
    joined: dict[str, Tensor | None] = {}
    for f in fields(TokenScores):
        example = getattr(present[0], f.name)
        if example is None:
            joined[f.name] = None
            continue
        out = example.new_zeros((len(rows), width, *example.shape[1:]))
        for b, row in enumerate(rows):
            if row is not None:
                value = getattr(row, f.name)
                out[b, : value.shape[0]] = value
        joined[f.name] = out
    return TokenScores(**joined)  # type: ignore[arg-type]


def dummy_row(token_id: int) -> Row:
    """A row of text for a rank that has none left while others still have; its weight in the loss is 0."""
    ids = torch.full((2,), token_id)
    prompt = Prompt(
        sample_id="",
        text="",
        input_ids=ids,
        mm_token_type_ids=torch.zeros(2, dtype=torch.int),
        position_ids=torch.arange(2).expand(4, 2),
        vision=VisionInputs(),
        frame_times=(),
        suffix_start=1,
    )
    return Row(prompt, (token_id,))
