"""Model families, one file each: adding a file with `MODEL_TYPES` adds its architectures."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

from visd.media.families.base import Family
from visd.types import VisdError

SPECIAL_TO_BAN = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
)
"""Tokens that open a turn or stand for media; an answer that holds one cannot be scored."""

LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of decoder layers that keep keys and values."""


@cache
def media_families() -> dict[str, Callable[[Any], Family]]:
    """`model_type` of a Hugging Face config to what makes the family's record from such a config."""
    found: dict[str, Callable[[Any], Family]] = {}
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        found |= getattr(importlib.import_module(module.name), "MODEL_TYPES", {})
    return found


def family_from_config(hf_config: Any, tokenizer: Any = None) -> Family:
    """The family of a Hugging Face config.

    Args:
        hf_config: a transformers config object of the whole model.
        tokenizer: adds the ids of tokens that the config does not name (the opening of a turn) to `banned_ids`.

    Raises:
        VisdError: the architecture is not supported, for one because layers of its decoder are recurrent.
    """
    model_type = getattr(hf_config, "model_type", None)
    families = media_families()
    check_layers(hf_config)
    if model_type in families:
        family = families[model_type](hf_config)
    elif any(hasattr(hf_config, part) for part in ("vision_config", "audio_config", "thinker_config")):
        raise VisdError(
            f"model.path: the architecture {model_type!r} is not supported; "
            f"take one of {', '.join(sorted(families))} or a text-only causal language model."
        )
    else:
        family = Family(name="text", model_type=str(model_type))
    return with_banned_tokens(family, tokenizer) if tokenizer is not None else family


def check_layers(hf_config: Any) -> None:
    """Refuse a decoder with layers that are no attention, as Qwen3.5 and Qwen3-Next have them.

    Raises:
        VisdError: names the kind of layer, and why.
    """
    kinds = getattr(getattr(hf_config, "text_config", None) or hf_config, "layer_types", None) or ()
    if other := sorted(set(kinds) - set(LAYERS)):
        raise VisdError(
            f"model.path: {hf_config.model_type!r} has layers of the kind {other[0]}, which keep one running state instead "
            "of keys and values, so that answers cannot go on from a prompt that they share; take a model with attention "
            "in every layer, such as Qwen3-VL."
        )


def with_banned_tokens(family: Family, tokenizer: Any) -> Family:
    """The family with the ids that only its tokenizer knows added to `banned_ids`."""
    known = tokenizer.get_vocab()
    ids = set(family.banned_ids) | {known[token] for token in SPECIAL_TO_BAN if token in known}
    return dataclasses.replace(family, banned_ids=tuple(sorted(ids)))
