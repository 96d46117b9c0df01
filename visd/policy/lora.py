"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft: put into a model, and merged into plain weights.

A linear layer computes W x + s B A x with s = alpha / rank; W is frozen, B begins at 0, so that a fresh adapter changes
nothing. Names inside the model become `<layer>.base_layer.weight`, `<layer>.lora_A.default.weight` [rank, in] and
`<layer>.lora_B.default.weight` [out, rank].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visd.config import ConfigError, LoraSection, ModelSection
from visd.media.families.base import Family
from visd.seeding import derive_seed
from visd.types import VisdError

BASE, A, B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def check_section(section: ModelSection, hf_config: Any) -> None:
    """Refuse what adapters cannot be combined with.

    Raises:
        ConfigError: parts that are to be frozen or trained besides the adapters, a folder of quantised weights, or
            quantised weights that nothing would train.
    """
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ConfigError(
            f"model.path: the weights in {section.path!r} are quantised; take the model's 16-bit folder, and set "
            "model.lora.quantize=nf4 to have its language model quantised here (QLoRA)."
        )
    if not section.lora.rank:
        if section.lora.quantize != "none":
            raise ConfigError("model.lora.quantize: quantised weights are not trained; set model.lora.rank, say 16.")
        return
    if section.freeze != ["vision"]:
        raise ConfigError(
            f"model.freeze: with model.lora.rank > 0 all weights but the adapters are frozen, so it must stay [vision], "
            f"not [{', '.join(section.freeze)}]; name layers of the tower in model.lora.vision_targets to adapt it."
        )


def add_adapters(hf: nn.Module, family: Family, section: LoraSection, seed: int) -> None:
    """Freeze the model and put adapters beside the layers that `section` names.

    Args:
        seed: with a layer's name it decides the adapter's initial A.

    Raises:
        ConfigError: peft is not installed, or a target that names no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ConfigError("model.lora: needs peft; pip install 'visd[lora]'.") from error
    names = target_layers(hf, (family.language_module,), section.targets, "model.lora.targets")
    names += target_layers(hf, family.vision_modules, section.vision_targets, "model.lora.vision_targets")
    hf.requires_grad_(False)
    config = LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=names, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, hf)
    for name, parameter in hf.named_parameters():
        if name.endswith(A):
            _initialise(parameter, derive_seed("lora", seed, name))
            parameter.requires_grad_(not section.freeze_a)
        if name.endswith((A, B)):
            parameter.data = parameter.data.float()  # small, and small steps would be lost in bfloat16


@torch.no_grad()
def _initialise(parameter: nn.Parameter, seed: int) -> None:
    """Uniform with bound 1 / sqrt(in), peft's own choice, from a stream of the layer's own."""
    numbers = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(parameter.shape[1])
    drawn = torch.rand(parameter.shape, generator=numbers, dtype=torch.float32)
    parameter.copy_(drawn.mul_(2 * bound).sub_(bound))


def target_layers(hf: nn.Module, paths: Iterable[str], targets: Sequence[str], field: str) -> list[str]:
    """Whole names of the linear layers below `paths` whose last part is one of `targets`.

    Raises:
        ConfigError: a target that names none.
    """
    below = tuple(f"{path}." for path in paths)
    linear = [
        name for name, module in hf.named_modules() if isinstance(module, nn.Linear) and f"{name}.".startswith(below)
    ]
    last = {name: name.rpartition(".")[2] for name in linear}
    for target in targets:
        if target not in last.values():
            known = ", ".join(sorted(set(last.values()))) or "none"
            raise ConfigError(f"{field}: {target!r} names no linear layer there; there are {known}.")
    return [name for name in linear if last[name] in targets]


def plain_name(name: str) -> str | None:
    """A parameter's name in the model without adapters; None for an adapter's own."""
    return None if name.endswith((A, B)) else name.replace(BASE, ".")


def is_adapted(name: str) -> bool:
    """Whether a parameter is a weight with an adapter beside it."""
    return name.endswith(f"{BASE}weight")


def adapter_names(name: str) -> tuple[str, str]:
    """Names of A and B beside an adapted weight."""
    layer = name.removesuffix(f"{BASE}weight")
    return layer + A, layer + B


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A in W's dtype, added in float32."""
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Whole weights with their adapters in them, by the names of the model without adapters.

    Raises:
        VisdError: an adapter that is not whole.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        plain = plain_name(name)
        if plain is None:
            continue
        if is_adapted(name):
            a, b = adapter_names(name)
            if a not in state or b not in state:
                raise VisdError(f"the adapter of {plain!r} is not whole: {a if a not in state else b!r} is missing.")
            value = merged_weight(value, state[a], state[b], scale)
        out[plain] = value
    return out


def merged_stream(stream: Iterable[tuple[str, Tensor]], scale: float) -> Iterator[tuple[str, Tensor]]:
    """`merged`, one weight at a time: an adapted weight waits until its adapter has come.

    Raises:
        VisdError: an adapter that is not whole.
    """
    waiting: dict[str, Tensor] = {}
    for name, value in stream:
        plain = plain_name(name)
        if plain is not None and not is_adapted(name):
            yield plain, value
            continue
        waiting[name] = value.clone()
        layer = name.removesuffix(A).removesuffix(B).removesuffix(f"{BASE}weight")
        parts = [f"{layer}{BASE}weight", layer + A, layer + B]
        if all(part in waiting for part in parts):
            weight, a, b = (waiting.pop(part) for part in parts)
            yield f"{layer}.weight", merged_weight(weight, a, b, scale)
    if waiting:
        raise VisdError(f"the adapter of {min(waiting)!r} is not whole.")
