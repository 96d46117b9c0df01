"""Attention over a prompt that several continuations share, computed in pieces so that no masked score is.

Tokens of a micro-batch lie one after the other: for each bundle its prefix, then its suffixes. The prefix is causal by
itself. A suffix sees the prefix and itself: the two pieces are computed apart, without a mask and without copying the
prefix's keys, and put together by their log-sum-exps, as flash attention (arXiv 2205.14135) does with blocks. The
backward pass of each piece is exact when it is given the whole output and the whole log-sum-exp, because probabilities
are exp(score - log-sum-exp) whichever piece a score is in; so gradients of a prefix come from all its suffixes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from visd.types import VisdError

NAME = "visd_shared_prefix"
"""The implementation as transformers knows it: sdpa, and what is below where a forward is given a layout."""


@dataclass(frozen=True)
class Span:
    """Where a bundle lies among the tokens of a micro-batch: prefix [start, middle), its suffixes [middle, end)."""

    start: int
    middle: int
    end: int


@dataclass(frozen=True)
class SharedLayout:
    """How the L tokens of a micro-batch belong together. S: tokens of all suffixes, N: suffixes, R: the longest."""

    spans: tuple[Span, ...]
    suffix_tokens: Tensor  # [S] long, where each token of a suffix lies among the L
    slots: Tensor  # [S] long, where it lies among the N * R of suffixes padded at their ends
    padded: tuple[int, int]  # N, R

    def to(self, device: torch.device) -> SharedLayout:
        return replace(self, suffix_tokens=self.suffix_tokens.to(device), slots=self.slots.to(device))

    def dense_mask(self) -> Tensor:
        """[L, L] bool, True where a query (row) sees a key: what the pieces add up to, for tests and checks."""
        length = self.spans[-1].end
        suffix = torch.full((length,), -1, device=self.slots.device)
        suffix[self.suffix_tokens] = self.slots // max(self.padded[1], 1)
        bundle = torch.cat([torch.full((s.end - s.start,), i) for i, s in enumerate(self.spans)]).to(suffix.device)
        order = torch.arange(length, device=suffix.device)
        same = (bundle[:, None] == bundle) & ((suffix[:, None] == suffix) | (suffix == -1))
        return same & (order[:, None] >= order)


def layout_of(bundles: list[tuple[int, list[int]]]) -> SharedLayout:
    """The layout of bundles one after the other, each given as (prefix tokens, tokens of each suffix)."""
    spans, tokens, slots = [], [], []
    longest = max((length for _, lengths in bundles for length in lengths), default=0)
    start = number = 0
    for prefix, lengths in bundles:
        end = start + prefix
        for length in lengths:
            tokens.append(torch.arange(end, end + length))
            slots.append(torch.arange(length) + number * longest)
            end, number = end + length, number + 1
        spans.append(Span(start, start + prefix, end))
        start = end
    empty = [torch.zeros(0, dtype=torch.long)]
    return SharedLayout(tuple(spans), torch.cat(tokens or empty), torch.cat(slots or empty), (number, longest))


def shared_attention(query: Tensor, key: Tensor, value: Tensor, layout: SharedLayout, scale: float) -> Tensor:
    """Attention of all tokens by a layout.

    Args:
        query: [1, H, L, D].
        key, value: [1, K, L, D]; each of the K heads serves H / K heads of the query.

    Returns:
        [1, L, H, D].
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    output: Tensor = _SharedAttention.apply(query, key, value, layout, scale)
    return output


class _SharedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: SharedLayout, scale: float) -> Tensor:
        kernel = kernel_for(query)
        heads, length = query.shape[1:3]
        output = query.new_empty(1, length, heads, query.shape[3]).transpose(1, 2)
        sums_dtype = torch.promote_types(query.dtype, torch.float32)
        lse = torch.empty(1, heads, length, dtype=sums_dtype, device=query.device)
        if layout.padded[1]:
            own_query, own_key, own_value = (padded(part, layout) for part in (query, key, value))
            out, sums = kernel.forward(own_query, own_key, own_value, True, scale)
            output[:, :, layout.suffix_tokens] = unpadded(out, layout)
            lse[:, :, layout.suffix_tokens] = unpadded(sums, layout).to(lse.dtype)
        for span in layout.spans:
            before, after = slice(span.start, span.middle), slice(span.middle, span.end)
            keys, values = key[:, :, before], value[:, :, before]
            output[:, :, before], lse[:, :, before] = kernel.forward(query[:, :, before], keys, values, True, scale)
            if span.middle < span.end:
                out, sums = kernel.forward(query[:, :, after], keys, values, False, scale)
                _join(output[:, :, after], lse[:, :, after], out, sums)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.layout, ctx.scale = layout, scale
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        layout, scale, kernel = ctx.layout, ctx.scale, kernel_for(query)
        grad = grads[0].transpose(1, 2)
        d_query, d_key, d_value = (_zeros_like(part) for part in (query, key, value))
        if layout.padded[1]:
            g, q, k, v, o, sums = (padded(part, layout) for part in (grad, query, key, value, output, lse))
            parts = kernel.backward(g, q, k, v, o, sums, True, scale)
            for total, part in zip((d_query, d_key, d_value), parts, strict=True):
                total[:, :, layout.suffix_tokens] = unpadded(part, layout)
        for span in layout.spans:
            before, after = slice(span.start, span.middle), slice(span.middle, span.end)
            keys, values = key[:, :, before], value[:, :, before]
            for queries, causal in ((before, True), (after, False)):
                if queries.start == queries.stop:
                    continue
                g, q, o, sums = (part[:, :, queries] for part in (grad, query, output, lse))
                dq, dk, dv = kernel.backward(g, q, keys, values, o, sums, causal, scale)
                d_query[:, :, queries] += dq
                d_key[:, :, before] += dk
                d_value[:, :, before] += dv
        return d_query, d_key, d_value, None, None


def _zeros_like(part: Tensor) -> Tensor:
    """Zeros [1, H, L, D] that lie in memory as [1, L, H, D], the order in which projections take them back."""
    return torch.zeros_like(part.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _join(output: Tensor, lse: Tensor, other: Tensor, sums: Tensor) -> None:
    """Add a second piece of the same queries to the first, in place."""
    total = torch.logaddexp(lse, sums.to(lse.dtype))
    mine, others = (lse - total).exp()[..., None], (sums - total).exp()[..., None]
    output.copy_(output * mine + other * others)
    lse.copy_(total)


def padded(part: Tensor, layout: SharedLayout) -> Tensor:
    """[1, H, L, ...] to the suffixes alone, [N, H, R, ...], with zeros at their ends, which no token of a suffix sees."""
    out = part.new_zeros(layout.padded[0] * layout.padded[1], part.shape[1], *part.shape[3:])
    out[layout.slots] = part[0].transpose(0, 1)[layout.suffix_tokens]
    return out.unflatten(0, layout.padded).transpose(1, 2)


def unpadded(part: Tensor, layout: SharedLayout) -> Tensor:
    """[N, H, R, ...] to [1, H, S, ...]."""
    return part.transpose(1, 2).flatten(0, 1)[layout.slots].transpose(0, 1)[None]


class CpuKernel:
    """torch's flash attention on a CPU, which SDPA uses, asked for its log-sum-exp."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = attend(query, *repeated(query, key, value), 0.0, causal, scale=scale)
        return output, lse

    @staticmethod
    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        many = repeated(query, key, value)
        dq, dk, dv = attend(grad, query, *many, output, lse, 0.0, causal, scale=scale)
        return dq, summed(dk, key), summed(dv, value)


class CudaKernel:
    """torch's flash attention on a GPU, which SDPA uses, asked for its log-sum-exp; half precision only."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention
        output, lse, *_ = attend(query, *repeated(query, key, value), 0.0, causal, False, scale=scale)
        return output, lse

    @staticmethod
    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_backward
        many = repeated(query, key, value)
        nothing = torch.empty(0, dtype=torch.uint64, device=query.device)  # the random state of a dropout of 0
        dq, dk, dv = attend(
            grad, query, *many, output, lse.contiguous(), None, None, query.shape[2], key.shape[2], 0.0, causal,
            nothing, nothing, scale=scale,
        )  # fmt: skip
        return dq, summed(dk, key), summed(dv, value)


def kernel_for(query: Tensor) -> type[CpuKernel] | type[CudaKernel]:
    """Who computes a piece.

    Raises:
        VisdError: nobody can on this device in this dtype.
    """
    if reason := no_kernel(query.device, query.dtype):
        raise VisdError(f"train.shared_prefix: {reason}; set train.shared_prefix=false.")
    return CpuKernel if query.device.type == "cpu" else CudaKernel


def no_kernel(device: torch.device, dtype: torch.dtype) -> str:
    """Why pieces cannot be computed on a device in a dtype; "" where they can."""
    halves = (torch.bfloat16, torch.float16)
    if device.type == "cpu" or (device.type == "cuda" and dtype in halves):
        return ""
    return f"there is no kernel for {dtype} on {device.type}"


def repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with as many heads as the query."""
    repeats = query.shape[1] // key.shape[1]
    return (key, value) if repeats == 1 else (key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))


def summed(grad: Tensor, key: Tensor) -> Tensor:
    """The gradient of repeated heads for each of the heads themselves."""
    repeats = grad.shape[1] // key.shape[1]
    return grad if repeats == 1 else grad.unflatten(1, (-1, repeats)).sum(2)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_layout: SharedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer; its own sdpa without a layout."""
    if shared_layout is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    if dropout:
        raise VisdError("train.shared_prefix: the model drops out attention; set train.shared_prefix=false.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared_attention(query, key, value, shared_layout, scale), None


AttentionInterface.register(NAME, _attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def kernel_gap(device: torch.device, dtype: torch.dtype) -> float:
    """Largest relative difference of outputs and gradients from SDPA's under a dense mask, on small random inputs."""
    layout = layout_of([(40, [9, 17]), (24, [8])]).to(device)
    numbers = torch.Generator().manual_seed(0)
    shapes = [(1, layout.spans[-1].end, heads, 64) for heads in (4, 2, 2, 4)]
    query, key, value, direction = [torch.randn(shape, generator=numbers).to(device, dtype) for shape in shapes]
    results = []
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        parts = [part.transpose(1, 2).requires_grad_() for part in (query, key, value)]
        mask = layout.dense_mask()
        exact = [part.detach().float().requires_grad_() for part in parts]
        keys, values = repeated(exact[0], exact[1], exact[2])
        masked = nn.functional.scaled_dot_product_attention(exact[0], keys, values, attn_mask=mask, scale=0.125)
        pieces = shared_attention(parts[0], parts[1], parts[2], layout, 0.125)
        for output, inputs in ((masked.transpose(1, 2), exact), (pieces, parts)):
            results.append([output.detach(), *torch.autograd.grad(output, inputs, direction.to(output.dtype))])
    return max(float((b.float() - a).norm() / a.norm()) for a, b in zip(*results, strict=True))


def why_not(text_model: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> str:
    """Why a decoder's attention cannot share prefixes (on a device, in a dtype of activations); "" where it can."""
    config = text_model.config
    if config._attn_implementation not in ("sdpa", NAME):
        return f"it needs model.attention=sdpa, not {config._attn_implementation}"
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        return f"the model has layers of the kind {kinds[0]}"
    return no_kernel(device, dtype) if device is not None and dtype is not None else ""


def share_prefixes(text_model: Any) -> None:
    """Have a decoder's attention take layouts. Without a layout it computes what it did before.

    Raises:
        VisdError: it cannot.
    """
    if reason := why_not(text_model):
        raise VisdError(f"train.shared_prefix: {reason}; set train.shared_prefix=false.")
    text_model.set_attn_implementation(NAME)
