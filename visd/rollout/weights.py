"""Which weights an engine of its own is given, and in which form."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from visd.parallel.base import Backend
from visd.policy import lora
from visd.policy.policy import Policy, part_of


def plain_weights(policy: Policy, backend: Backend) -> Iterator[tuple[str, Tensor]]:
    """Tensors by their names in a Hugging Face folder, adapters merged and nothing quantised, one gathered at a time. All
    ranks go through.

    vLLM keeps a tensor until its layer has all of its own, longer than a gathered one lives.
    """
    stream = policy.plain(backend.whole_tensors(with_siblings(policy)))
    scale = policy.adapter_scale
    if scale is not None:
        stream = lora.merged_stream(stream, scale)
    for name, value in stream:
        yield name.removeprefix("hf."), value.clone() if backend.sharded else value


def with_siblings(policy: Policy) -> set[str]:
    """Parameters to send: those that change, and all in the same part of a layer.

    vLLM joins layers that read the same input (queries, keys and values; gate and up), and a joined layer of which only a
    part arrives has undefined numbers in the rest.
    """
    names = [name for name, _ in policy.model.named_parameters()]
    changed = {part_of_layer(name) for name in policy.changing_names()}
    return {name for name in names if part_of_layer(name) in changed}


def part_of_layer(name: str) -> str:
    """The module that holds a parameter's layer, `...layers.0.self_attn` for a projection's weight."""
    plain = lora.plain_name(name) or name.removesuffix(lora.A).removesuffix(lora.B) + ".weight"
    return plain.rpartition(".")[0].rpartition(".")[0]


def features_change(policy: Policy) -> bool:
    """Whether what the vision tower makes of a video changes with the weights that are trained."""
    return any(part_of(name.removeprefix("hf."), policy.family) != "language" for name in policy.changing_names())
