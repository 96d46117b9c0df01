"""From hidden states to what is needed of the distribution, a chunk of positions at a time.

Only response positions come here, and no more than one chunk of logits exists at once; with gradients on, a chunk is
recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from visd.types import ScoreNeeds

CHUNK_ELEMENTS = 1 << 25
"""Most logits held at once: 128 MiB in float32."""

LOWEST = -1e4
"""Stands for the log-probability of an id that cannot be sampled, where -inf would give NaN."""

Head = Callable[[Tensor], Tensor]


def score_positions(
    head: Head,
    hidden_NH: Tensor,
    token_ids_N: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    banned_V: Tensor,
    needs: ScoreNeeds,
    support_ids_NK: Tensor | None = None,
) -> dict[str, Tensor]:
    """Score tokens at N positions.

    Args:
        head: hidden states [n, H] to logits [n, V].
        token_ids_N: the token whose log-probability is wanted at each position.
        banned_V: True for ids that can be neither sampled nor counted in the normaliser.
        needs: what to return; where `support_ids_NK` names the ids to read, `needs.top_k` adds to them for the support
            `both` and is ignored for the others.

    Returns:
        Some of `logp` [N], `entropy` [N] (detached), `support_ids` [N, K], `support_logp` [N, K], `full_logp` [N, V],
        `kth_logp` [N] (detached), `log_z` [N], in float32; log-probabilities are of the softmax of logits / temperature over the ids that are not banned.
    """
    chunk = max(1, CHUNK_ELEMENTS // vocab_size)
    count = hidden_NH.shape[0]
    names = score_names(needs, support_ids_NK)

    def run(hidden: Tensor, ids: Tensor, support: Tensor | None) -> tuple[Tensor, ...]:
        return _score_chunk(head, hidden, ids, support, temperature, banned_V, needs)

    if count <= chunk:
        return dict(zip(names, run(hidden_NH, token_ids_N, support_ids_NK), strict=True))
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, count, chunk):
        piece = slice(start, start + chunk)
        support = None if support_ids_NK is None else support_ids_NK[piece]
        if torch.is_grad_enabled():
            parts.append(checkpoint(run, hidden_NH[piece], token_ids_N[piece], support, use_reentrant=False))
        else:
            parts.append(run(hidden_NH[piece], token_ids_N[piece], support))
    return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(names)}


def score_names(needs: ScoreNeeds, support_ids: Tensor | None) -> list[str]:
    """Names, as in `TokenScores`, of what `read_scores` returns."""
    names = ["logp"]
    if needs.entropy:
        names.append("entropy")
    if support_ids is not None or needs.top_k:
        names += ["support_ids", "support_logp"]
    if needs.full:
        names.append("full_logp")
    if needs.overlap_k:
        names.append("kth_logp")
    if needs.log_z:
        names.append("log_z")
    return names


def _score_chunk(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    support: Tensor | None,
    temperature: float,
    banned: Tensor,
    needs: ScoreNeeds,
) -> tuple[Tensor, ...]:
    logits = head(hidden).float() / temperature
    logits = logits.masked_fill(banned, float("-inf"))
    log_z = torch.logsumexp(logits, dim=-1, keepdim=True)
    scores = read_scores(logits - log_z, ids, support, needs)
    return (*scores, log_z.squeeze(-1)) if needs.log_z else scores


def read_scores(logp_all: Tensor, ids: Tensor, support: Tensor | None, needs: ScoreNeeds) -> tuple[Tensor, ...]:
    """What is needed of distributions [N, V], in the order of `score_names`, `log_z` apart; -inf stands for ids that are banned."""
    out = [logp_all.gather(-1, ids[:, None]).squeeze(-1)]
    if needs.entropy:
        with torch.no_grad():
            # A banned id has probability 0; its share of the entropy is 0 and not NaN.
            out.append(-(logp_all.exp() * logp_all.clamp(min=LOWEST)).sum(-1))
    if needs.top_k and (support is None or needs.support == "both"):
        own = logp_all.detach().topk(min(needs.top_k, logp_all.shape[-1]), dim=-1).indices
        support = own if support is None else torch.cat([support, own], dim=-1)
    if support is not None:
        out += [support, logp_all.gather(-1, support)]
    if needs.full:
        out.append(logp_all)
    if needs.overlap_k:
        out.append(logp_all.detach().topk(min(needs.overlap_k, logp_all.shape[-1]), dim=-1).values[..., -1])
    return tuple(out)
