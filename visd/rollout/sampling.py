"""Drawing tokens so that a rollout depends on its own seed and on nothing else in its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from visd.rollout.base import Sampling
from visd.seeding import generator
from visd.types import Rollout


class SeededSampler(LogitsProcessor):
    """Chooses each token by inverting the distribution function at a uniform number of the row's own stream.

    It hands `generate` logits in which only the chosen token is finite, so that greedy decoding takes it; the numbers
    are drawn ahead on the CPU, [rows, max_new_tokens]. Log-probabilities kept are those of the whole distribution at
    the sampling temperature (banned ids excepted), before top-k and top-p.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling, banned_V: Tensor):
        self.sampling = sampling
        self.banned = banned_V
        uniform = np.stack([generator("sampling", seed).random(sampling.max_new_tokens) for seed in seeds])
        self.uniform = torch.from_numpy(uniform).to(banned_V.device)
        self.drawn = 0
        self.logp: list[Tensor] = []  # [rows] for each token drawn since the rows were last cut down

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        self.uniform = self.uniform[rows]
        self.logp = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float().masked_fill(self.banned, float("-inf")) / self.sampling.temperature
        logp = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        chosen = logp.argmax(-1) if self.sampling.greedy else self._draw(logp, self.uniform[:, self.drawn])
        self.drawn += 1
        self.logp.append(logp.gather(-1, chosen[:, None]).squeeze(-1))
        return torch.full_like(logits, float("-inf")).scatter_(-1, chosen[:, None], 0.0)

    def _draw(self, logp: Tensor, uniform: Tensor) -> Tensor:
        if not self.sampling.top_k and self.sampling.top_p >= 1:
            return _invert(logp.exp().double(), uniform)
        order = logp.argsort(dim=-1, descending=True, stable=True)
        probs = logp.gather(-1, order).exp().double()
        keep = probs.cumsum(-1) - probs < self.sampling.top_p
        if self.sampling.top_k:
            keep[:, self.sampling.top_k :] = False
        return order.gather(-1, _invert(probs * keep, uniform)[:, None]).squeeze(-1)


def _invert(mass: Tensor, uniform: Tensor) -> Tensor:
    """The first index whose cumulative mass exceeds `uniform` times the whole mass, a row; never one without mass."""
    cumulative = mass.cumsum(-1)
    index = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    last = mass.shape[-1] - 1 - (mass > 0).flip(-1).long().argmax(-1)
    return torch.minimum(index, last)  # rounding may put the number past the last token that has mass


def token_pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
    """One piece of text a token. A character that spans several tokens belongs to the one that completes it."""
    pieces: list[str] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        piece = decode(pending)
        if piece.endswith("\N{REPLACEMENT CHARACTER}"):
            pieces.append("")
            continue
        pieces.append(piece)
        pending = []
    if pending:
        pieces[-1] = decode(pending)
    return tuple(pieces)


def finished_rollout(
    ids: Sequence[int], logp: Sequence[float], eos_ids: Sequence[int], tokenizer: Any, seed: int, policy_version: int
) -> Rollout:
    """A rollout from sampled tokens, cut after the first that ends a turn."""
    ends = [i for i, token in enumerate(ids) if token in eos_ids]
    length = ends[0] + 1 if ends else len(ids)
    pieces = token_pieces(ids[:length], lambda part: tokenizer.decode(part, skip_special_tokens=True))
    return Rollout(
        token_ids=tuple(ids[:length]),
        logp=tuple(logp[:length]),
        text="".join(pieces),
        pieces=pieces,
        stop_reason="eos" if ends else "length",
        seed=seed,
        policy_version=policy_version,
    )
