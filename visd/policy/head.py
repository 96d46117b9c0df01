"""From hidden states to what is needed of the distribution, a chunk of positions at a time.

Only response positions come here, and no more than one chunk of logits exists at once, in the backward pass either: it
has a backward of its own that computes a chunk's logits again, with the log-sum-exps that the forward kept, and goes on
from their gradient to those of hidden states and weights before it comes to the next chunk. Logits that fit into one
chunk, and whole distributions, which their method holds anyway, are kept instead of computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visd.types import ScoreNeeds, VisdError

CHUNK_ELEMENTS = 1 << 25
"""Most logits held at once: 128 MiB in float32."""

LOWEST = -1e4
"""Stands for the log-probability of an id that cannot be sampled, where -inf would give NaN."""


@dataclass(frozen=True)
class Wanted:
    """What is to be known at N positions."""

    token_ids: Tensor  # [N] long, whose log-probability is wanted
    support_ids: Tensor | None  # [N, K] long, further ids to read
    banned: Tensor  # [V] bool, ids that can be neither sampled nor counted in the normaliser
    temperature: float
    needs: ScoreNeeds

    def piece(self, part: slice) -> tuple[Tensor, Tensor | None]:
        return self.token_ids[part], None if self.support_ids is None else self.support_ids[part]


class ScoringHead(nn.Linear):
    """An output head that is asked for scores instead of logits; its weights keep their name and shape.

    Scores are computed inside the head's own forward, so that modes that gather a module's weights when it is called
    do so here and before its backward.
    """

    def forward(self, input: Tensor, wanted: Wanted | None = None) -> Any:
        """Logits [..., V], or what `score_names` lists, for hidden states [N, H]."""
        if wanted is None:
            return super().forward(input)
        return _Scores.apply(input, self.weight, self.bias, wanted)


def make_scoring(head: nn.Module) -> ScoringHead:
    """Have a model's output head score positions.

    Raises:
        VisdError: it is no linear layer.
    """
    if type(head) is nn.Linear:
        head.__class__ = ScoringHead
    if not isinstance(head, ScoringHead):
        raise VisdError(f"model.path: the model's output head is a {type(head).__name__}; it must be a linear layer.")
    return head


def score_positions(
    head: ScoringHead,
    hidden_NH: Tensor,
    token_ids_N: Tensor,
    *,
    temperature: float,
    banned_V: Tensor,
    needs: ScoreNeeds,
    support_ids_NK: Tensor | None = None,
) -> dict[str, Tensor]:
    """Score tokens at N positions.

    Args:
        token_ids_N: the token whose log-probability is wanted at each position.
        banned_V: True for ids that can be neither sampled nor counted in the normaliser.
        needs: what to return; where `support_ids_NK` names the ids to read, `needs.top_k` adds to them for the support
            `both` and is ignored for the others.

    Returns:
        Some of `logp` [N], `entropy` [N] (detached), `support_ids` [N, K], `support_logp` [N, K], `full_logp` [N, V],
        `kth_logp` [N] (detached), `log_z` [N], in float32 or, for a head in float64, in float64; log-probabilities are
        of the softmax of logits / temperature over the ids that are not banned. Gradients are of the first order.
    """
    names = score_names(needs, support_ids_NK)
    found = head(hidden_NH, Wanted(token_ids_N, support_ids_NK, banned_V, temperature, needs))
    return dict(zip(names, found, strict=True))


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


def read_scores(logp_all: Tensor, ids: Tensor, support: Tensor | None, needs: ScoreNeeds) -> tuple[Tensor, ...]:
    """What is needed of distributions [N, V], in the order of `score_names`, `log_z` apart; -inf stands for ids that are banned."""
    out = [logp_all.gather(-1, ids[:, None]).squeeze(-1)]
    if needs.entropy:
        with torch.no_grad():
            # A banned id has probability 0; its share of the entropy is 0 and not NaN.
            out.append(-logp_all.exp().mul_(logp_all.clamp(min=LOWEST)).sum(-1))
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


class _Scores(torch.autograd.Function):
    """Hidden states [N, H], weights [V, H] and perhaps a bias [V] to the scores of `score_names`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> tuple[Tensor, ...]:
        kind = hidden.device.type
        compute = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        parts: list[tuple[Tensor, ...]] = []
        log_z: list[Tensor] = []
        kept: Tensor | None = None
        with torch.autocast(kind, enabled=False):
            linear = _Linear.of(hidden, weight, bias, compute)
            for piece in chunks(hidden.shape[0], weight.shape[0]):
                logits = scaled_logits(linear, piece, wanted)
                log_z.append(torch.logsumexp(logits, dim=-1, keepdim=True))
                kept = logits.sub_(log_z[-1])
                parts.append(read_scores(kept, *wanted.piece(piece), wanted.needs))
        sums = _joined(log_z)
        found = [_joined(values) for values in zip(*parts, strict=True)]
        found += [sums.squeeze(-1)] if wanted.needs.log_z else []
        outputs = dict(zip(score_names(wanted.needs, wanted.support_ids), found, strict=True))
        kept = outputs.get("full_logp", kept if len(parts) == 1 else None)
        ctx.save_for_backward(hidden, weight, bias, sums, outputs.get("support_ids"), kept)
        ctx.wanted, ctx.compute, ctx.names = wanted, compute, list(outputs)
        ctx.mark_non_differentiable(*(outputs[n] for n in ("entropy", "support_ids", "kth_logp") if n in outputs))
        ctx.set_materialize_grads(False)
        return tuple(outputs.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, sums, support, kept = ctx.saved_tensors
        wanted, given = ctx.wanted, dict(zip(ctx.names, grads, strict=True))
        linear = _Linear.of(hidden, weight, bias, ctx.compute)
        total = _Gradients.like(hidden, weight, bias, ctx.needs_input_grad)
        for piece in chunks(hidden.shape[0], weight.shape[0]):
            if kept is None:
                grad = scaled_logits(linear, piece, wanted).sub_(sums[piece]).exp_()
            else:
                grad = kept[piece].exp()
            _to_logits(grad, piece, given, wanted.token_ids, support)
            grad.masked_fill_(wanted.banned, 0.0).div_(wanted.temperature)
            total.add(grad.to(linear.weight.dtype), linear, piece)
        return total.hidden, *total.of_weights(weight, bias), None


@dataclass(frozen=True)
class _Linear:
    """The head in the dtype it computes in."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    bias: Tensor | None

    @staticmethod
    def of(hidden: Tensor, weight: Tensor, bias: Tensor | None, compute: torch.dtype | None) -> _Linear:
        if compute is None:
            return _Linear(hidden, weight, bias)
        return _Linear(hidden.to(compute), weight.to(compute), None if bias is None else bias.to(compute))


@dataclass
class _Gradients:
    """Of hidden states and weights, added up over chunks in float32 at least."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @staticmethod
    def like(hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> _Gradients:
        return _Gradients(
            torch.empty_like(hidden) if needed[0] else None,
            torch.zeros_like(weight, dtype=wide(weight.dtype)) if needed[1] else None,
            torch.zeros_like(bias, dtype=wide(bias.dtype)) if bias is not None and needed[2] else None,
        )

    def add(self, grad: Tensor, linear: _Linear, piece: slice) -> None:
        """A chunk's gradient of logits, [n, V]."""
        if self.hidden is not None:
            self.hidden[piece] = grad @ linear.weight
        if self.weight is not None:
            if self.weight.dtype == grad.dtype:
                self.weight.addmm_(grad.T, linear.hidden[piece])
            else:
                self.weight += grad.T @ linear.hidden[piece]
        if self.bias is not None:
            self.bias += grad.sum(0, dtype=self.bias.dtype)

    def of_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return (
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


def _to_logits(
    probabilities: Tensor, piece: slice, given: dict[str, Tensor | None], ids: Tensor, support: Tensor | None
) -> None:
    """Probabilities [n, V] of a chunk to the gradient of its logits, in place.

    With p = softmax(z), d log p(y) / dz = one_hot(y) - p and d logsumexp(z) / dz = p.
    """
    scores, full, log_z = given["logp"], given.get("full_logp"), given.get("log_z")
    read = given.get("support_logp")
    shares = probabilities.new_zeros(probabilities.shape[0], 1)
    if scores is not None:
        shares -= scores[piece, None]
    if read is not None:
        shares -= read[piece].sum(-1, keepdim=True)
    if full is not None:
        shares -= full[piece].sum(-1, keepdim=True)
    if log_z is not None:
        shares += log_z[piece, None]
    probabilities *= shares
    if scores is not None:
        probabilities.scatter_add_(-1, ids[piece, None], scores[piece, None])
    if read is not None and support is not None:
        probabilities.scatter_add_(-1, support[piece], read[piece])
    if full is not None:
        probabilities += full[piece]


def scaled_logits(linear: _Linear, piece: slice, wanted: Wanted) -> Tensor:
    """[n, V] of a chunk, over the temperature, -inf for banned ids; the caller may change them."""
    logits = nn.functional.linear(linear.hidden[piece], linear.weight, linear.bias)
    return logits.to(wide(logits.dtype)).div_(wanted.temperature).masked_fill_(wanted.banned, float("-inf"))


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def chunks(count: int, vocab_size: int) -> Iterator[slice]:
    """Positions whose logits may exist together; at least one piece, which may be empty."""
    step = max(1, CHUNK_ELEMENTS // vocab_size)
    for start in range(0, max(count, 1), step):
        yield slice(start, min(start + step, count))


def _joined(parts: Any) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
