"""Frozen base weights in 4 bit under adapters (QLoRA, arXiv 2305.14314), by bitsandbytes.

Every linear layer of the language model keeps its weight as NF4 numbers in blocks of 64, whose scales are quantised too; a forward
takes it apart again and computes in the activations' dtype. Embeddings, norms, the output head and the vision tower stay as they are.
What leaves the trainer, to a folder or to another engine, is the weight that the forward computes with.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from visd.config import ConfigError
from visd.media.families.base import Family


def quantize_language_model(
    hf: nn.Module, family: Family, kind: str, compute: torch.dtype, device: torch.device
) -> None:
    """Replace the linear layers of the language model, one after the other, on the device that they will stay on.

    Args:
        kind: the code, nf4.
        compute: dtype of activations.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ModuleNotFoundError as error:
        raise ConfigError("model.lora.quantize: needs bitsandbytes; pip install 'visd[qlora]'.") from error
    language = hf.get_submodule(family.language_module)
    for name, layer in list(language.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        packed = Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=compute, quant_type=kind, device="meta"
        )
        packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type=kind, module=packed)
        packed.bias = layer.bias
        # Some CPUs would repack weights in place at a forward without gradients, and compute in bfloat16 from then on.
        packed.support_avx512bf16_for_cpu = False
        language.set_submodule(name, packed.to(device))
    cast(Any, hf).is_loaded_in_4bit = True  # read by peft, and by transformers, which leaves such a model as it is


def is_quantized(parameter: Tensor) -> bool:
    """Whether a parameter's numbers are packed."""
    return getattr(parameter, "quant_state", None) is not None


def plain_weight(parameter: Tensor) -> Tensor:
    """The weight that a forward computes with, [out, in], in its dtype before it was quantised."""
    if not is_quantized(parameter):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.detach(), cast(Any, parameter).quant_state)


STORED = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a packed number: 4 bits, a byte for each block of 64, and four for each 256 blocks."""


def numbers_of(parameter: Tensor) -> int:
    """Of the weight, however it is stored."""
    return math.prod(cast(Any, parameter).quant_state.shape) if is_quantized(parameter) else parameter.numel()


def bytes_of(parameter: Tensor) -> int:
    """Of what is stored, with the scales of packed numbers."""
    if not is_quantized(parameter):
        return parameter.numel() * parameter.element_size()
    state = cast(Any, parameter).quant_state
    scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *scales))
