"""Tiny Qwen2.5-VL, Qwen3-VL and InternVL models with random weights, saved as ordinary Hugging Face folders."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from data_tools.synth.corpus import texts
from data_tools.tiny.template import CHAT_TEMPLATE, INTERNVL_CHAT_TEMPLATE
from data_tools.tiny.tokenizer import END_OF_TEXT, END_OF_TURN, INTERNVL_TOKENS, LARGEST_VOCABULARY, train_tokenizer
from visd.types import VisdError

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl")
TILE, TILE_PATCH = 56, 14
"""Pixels of an InternVL tile and of its patches, along each side."""
MAX_FRAME_TOKENS = 64
"""Merged visual tokens of the largest frame the processors make."""


@dataclass(frozen=True)
class TinySettings:
    """Sizes of a tiny model."""

    family: str = "qwen2_5_vl"
    seed: int = 0
    text_layers: int = 4
    text_width: int = 128
    text_heads: int = 4
    text_kv_heads: int = 4
    text_mlp: int = 384
    vision_layers: int = 2
    vision_width: int = 96
    vision_heads: int = 4
    vision_mlp: int = 256
    rope_theta: float = 10000.0
    init_range: float = 0.06  # standard deviation of the initial weights
    vocabulary: int = LARGEST_VOCABULARY  # most tokens beside the special ones; few split words and numbers into pieces


def make_tiny_model(out: Path, settings: TinySettings) -> int:
    """Write a model folder (weights, config, generation config, tokenizer, chat template, processors).

    Returns:
        The number of parameters.

    Raises:
        VisdError: unknown family, sizes that do not fit together, or `out` exists.
    """
    _check(out, settings)
    named = INTERNVL_TOKENS if settings.family == "internvl" else None
    tokenizer = train_tokenizer(texts(), named, settings.vocabulary)
    torch.manual_seed(settings.seed)
    model = _model(settings, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=[_id(tokenizer, END_OF_TURN), _id(tokenizer, END_OF_TEXT)],
        pad_token_id=_id(tokenizer, END_OF_TEXT),
    )
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    _processor(settings.family, tokenizer).save_pretrained(partial)
    os.replace(partial, out)
    return sum(p.numel() for p in model.parameters())


def _model(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> Any:
    if settings.family == "qwen2_5_vl":
        return Qwen2_5_VLForConditionalGeneration(_qwen2_5_vl(settings, tokenizer))
    if settings.family == "qwen3_vl":
        return Qwen3VLForConditionalGeneration(_qwen3_vl(settings, tokenizer))
    return InternVLForConditionalGeneration(_internvl(settings, tokenizer))


def _check(out: Path, settings: TinySettings) -> None:
    if settings.family not in FAMILIES:
        raise VisdError(f"family: {settings.family!r} is not one of {', '.join(FAMILIES)}")
    for width, heads in (("text_width", "text_heads"), ("vision_width", "vision_heads")):
        if getattr(settings, width) % (4 * getattr(settings, heads)):
            raise VisdError(f"{width}: {getattr(settings, width)} must be a multiple of 4 x {heads}")
    if settings.text_heads % settings.text_kv_heads:
        raise VisdError(f"text_heads: {settings.text_heads} must be a multiple of text_kv_heads")
    if out.exists():
        raise VisdError(f"{out} exists; choose another folder or delete it")


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _common(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
        "tie_word_embeddings": True,
    }


def _text(settings: TinySettings, tokenizer: PreTrainedTokenizerFast, mrope: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": settings.text_mlp,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_heads,
        "num_key_value_heads": settings.text_kv_heads,
        "max_position_embeddings": 32768,
        "initializer_range": settings.init_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": settings.rope_theta, **mrope},
        "bos_token_id": _id(tokenizer, END_OF_TEXT),
        "eos_token_id": _id(tokenizer, END_OF_TURN),
        "pad_token_id": _id(tokenizer, END_OF_TEXT),
    }


def _vision(settings: TinySettings) -> dict[str, Any]:
    return {
        "depth": settings.vision_layers,
        "hidden_size": settings.vision_width,
        "intermediate_size": settings.vision_mlp,
        "num_heads": settings.vision_heads,
        "out_hidden_size": settings.text_width,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": settings.init_range,
    }


def _qwen2_5_vl(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Windows of 2 x 2 merged patches, and a last vision layer that sees whole frames."""
    half = settings.text_width // settings.text_heads // 2
    side = half * 3 // 8
    vision = {
        **_vision(settings),
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [settings.vision_layers - 1],
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=_text(settings, tokenizer, {"mrope_section": [half - 2 * side, side, side]}),
        vision_config=vision,
        **_common(settings, tokenizer),
    )


def _qwen3_vl(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Deepstack features from every vision layer but the last."""
    half = settings.text_width // settings.text_heads // 2
    side = half // 3
    mrope = {"mrope_section": [half - 2 * side, side, side], "mrope_interleaved": True}
    vision = {
        **_vision(settings),
        "patch_size": 16,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": list(range(min(3, settings.vision_layers - 1))),
    }
    text = {**_text(settings, tokenizer, mrope), "head_dim": settings.text_width // settings.text_heads}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_common(settings, tokenizer))


def _internvl(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    """Tiles of four tokens, and Qwen3 for the text."""
    text = {**_text(settings, tokenizer, {}), "head_dim": settings.text_width // settings.text_heads}
    vision = {
        "hidden_size": settings.vision_width,
        "intermediate_size": settings.vision_mlp,
        "num_hidden_layers": settings.vision_layers,
        "num_attention_heads": settings.vision_heads,
        "image_size": [TILE, TILE],
        "patch_size": [TILE_PATCH, TILE_PATCH],
        "initializer_range": settings.init_range,
    }
    return InternVLConfig(
        text_config={**text, "model_type": "qwen3", "tie_word_embeddings": True},
        vision_config=vision,
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=_tile_tokens(),
        tie_word_embeddings=True,
    )


def _tile_tokens() -> int:
    return (TILE // TILE_PATCH // 2) ** 2


def _internvl_processor(tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    size = {"height": TILE, "width": TILE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=_tile_tokens(),
        chat_template=INTERNVL_CHAT_TEMPLATE,
    )


def _processor(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> Qwen2_5_VLProcessor | Qwen3VLProcessor | InternVLProcessor:
    if family == "internvl":
        return _internvl_processor(tokenizer)
    patch = 14 if family == "qwen2_5_vl" else 16
    factor = 2 * patch
    size = {"shortest_edge": 4 * factor**2, "longest_edge": MAX_FRAME_TOKENS * factor**2}
    shape = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    parts: dict[str, Any] = {
        "image_processor": Qwen2VLImageProcessor(size=size, **shape),
        "tokenizer": tokenizer,
        "chat_template": CHAT_TEMPLATE,
    }
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(video_processor=Qwen2VLVideoProcessor(size=size, **shape), **parts)
    clip = {"shortest_edge": size["shortest_edge"], "longest_edge": 768 * size["longest_edge"]}
    return Qwen3VLProcessor(video_processor=Qwen3VLVideoProcessor(size=clip, **shape), **parts)
