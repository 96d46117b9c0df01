"""One record a model family: what the rest of visd must know about an architecture, from its config alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visd.types import VisdError

SPECIAL_TO_BAN = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Tokens that open a turn or stand for media; an answer that holds one cannot be scored."""


@dataclass(frozen=True)
class Family:
    """What an architecture looks like from outside. Media fields are 0, None or empty where `has_media` is False."""

    name: str  # qwen2_5_vl, qwen3_vl or text
    model_type: str  # the config's model_type
    has_media: bool
    language_module: str  # path of the decoder inside the Hugging Face model
    vision_module: str = ""  # path of the vision tower
    projector_modules: tuple[str, ...] = ()  # children of the tower that map to the language model's width
    image_token_id: int | None = None
    video_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None
    patch_size: int = 0  # pixels
    temporal_patch_size: int = 0  # frames
    merge_size: int = 0  # patches merged along each side into one token
    tokens_per_second: float | None = None  # temporal positions a second; None: time is not in the positions
    deepstack: bool = False  # the tower also feeds inner layers of the decoder
    timestamps_in_text: bool = False  # each temporal patch is preceded by its time in words
    banned_ids: tuple[int, ...] = ()  # ids impossible to sample

    @property
    def pixel_factor(self) -> int:
        """Both sides of a frame are multiples of this many pixels."""
        return self.patch_size * self.merge_size


def family_from_config(hf_config: Any, tokenizer: Any = None) -> Family:
    """The family of a Hugging Face config.

    Args:
        hf_config: a transformers config object of the whole model.
        tokenizer: adds the ids of tokens that the config does not name (the opening of a turn) to `banned_ids`.

    Raises:
        VisdError: the architecture is not supported.
    """
    model_type = getattr(hf_config, "model_type", None)
    if model_type in _MEDIA_FAMILIES:
        family = _MEDIA_FAMILIES[model_type](hf_config)
    elif any(hasattr(hf_config, part) for part in ("vision_config", "audio_config", "thinker_config")):
        raise VisdError(
            f"model.path: the architecture {model_type!r} is not supported; "
            f"take one of {', '.join(_MEDIA_FAMILIES)} or a text-only causal language model."
        )
    else:
        family = Family(name="text", model_type=str(model_type), has_media=False, language_module="model")
    return with_banned_tokens(family, tokenizer) if tokenizer is not None else family


def with_banned_tokens(family: Family, tokenizer: Any) -> Family:
    """The family with the ids that only its tokenizer knows added to `banned_ids`."""
    known = tokenizer.get_vocab()
    ids = set(family.banned_ids) | {known[token] for token in SPECIAL_TO_BAN if token in known}
    return Family(**{**family.__dict__, "banned_ids": tuple(sorted(ids))})


def _qwen2_5_vl(config: Any) -> Family:
    return Family(
        name="qwen2_5_vl",
        tokens_per_second=config.vision_config.tokens_per_second,
        projector_modules=("merger",),
        **_qwen_common(config),
    )


def _qwen3_vl(config: Any) -> Family:
    return Family(
        name="qwen3_vl",
        projector_modules=("merger", "deepstack_merger_list"),
        deepstack=True,
        timestamps_in_text=True,
        **_qwen_common(config),
    )


def _qwen_common(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    media_ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {
        "model_type": config.model_type,
        "has_media": True,
        "language_module": "model.language_model",
        "vision_module": "model.visual",
        "patch_size": _scalar(vision.patch_size, "patch_size"),
        "temporal_patch_size": _scalar(vision.temporal_patch_size, "temporal_patch_size"),
        "merge_size": vision.spatial_merge_size,
        "banned_ids": tuple(sorted(getattr(config, name) for name in media_ids)),
        **{name: getattr(config, name) for name in media_ids},
    }


def _scalar(value: int | list[int] | tuple[int, ...], name: str) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise VisdError(f"model.path: vision_config.{name} = {value} is not square, which is not supported.")
    return value[0]


_MEDIA_FAMILIES: dict[str, Callable[[Any], Family]] = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}
