"""Sizes of the models that are planned with: published ones by heart, others from their config."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from visd.config import ConfigError
from visd.policy.costs import Architecture, Tower, from_config

PUBLISHED = {
    "Qwen/Qwen2.5-VL-7B-Instruct": Architecture(
        3584, 28, 28, 4, 128, 18944, 152064, tied=False, bias=True,
        tower=Tower(32, 1280, 3420, True, 3584, 14, 2, 2, 64, 4),
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Architecture(
        4096, 36, 32, 8, 128, 12288, 151936, tied=False, head_norms=True,
        tower=Tower(27, 1152, 4304, False, 4096, 16, 2, 2, 0, 27, mergers=4),
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Architecture(
        2560, 36, 32, 8, 128, 9728, 151936, tied=True, head_norms=True,
        tower=Tower(24, 1024, 4096, False, 2560, 16, 2, 2, 0, 24, mergers=4),
    ),
    "Qwen/Qwen3-4B": Architecture(2560, 36, 32, 8, 128, 9728, 151936, tied=True, head_norms=True),
}  # fmt: skip
"""Sizes of published models, for machines that cannot ask the hub."""
PUBLISHED["Video-R1/Qwen2.5-VL-7B-COT-SFT"] = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]


def architecture(path: str) -> Architecture:
    """Sizes of a published model, or from the config of a Hugging Face folder or hub id.

    Raises:
        ConfigError: no such model, or one that the plan does not know.
    """
    if path in PUBLISHED:
        return PUBLISHED[path]
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path!r} has no config to plan with ({error}).") from error
    return plannable(config, path)


def plannable(config: Any, path: str) -> Architecture:
    """Sizes from a transformers config.

    Raises:
        ConfigError: a decoder with experts, or a vision tower whose memory the plan does not know.
    """
    sizes = from_config(config, path)
    if sizes.experts:
        raise ConfigError(f"model.path: {path!r} has experts; the plan knows dense decoders only.")
    if sizes.tower is not None and not config.model_type.startswith(("qwen2_5_vl", "qwen3_vl")):
        raise ConfigError(f"model.path: the plan does not know the vision tower of {config.model_type!r}.")
    return sizes
