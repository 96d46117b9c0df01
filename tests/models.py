"""Very small random models of each family, built from their configs, and prompts of made-up ids and pixels for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from visd.media.families import family_from_config
from visd.media.families.base import Family
from visd.media.families.internvl import InternVL
from visd.media.families.qwen_vl import QwenVL
from visd.policy.model import PolicyModel
from visd.policy.policy import Policy
from visd.policy.vision import multiply_patches, take_tower, vision_modules
from visd.types import Prompt, VisionInputs

EOS = 3
MEDIA_IDS = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
MEDIA_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "internvl")
FAMILIES = (*MEDIA_FAMILIES, "text")


class Numbers:
    """A tokenizer that writes ids as numbers."""

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(f"{i} " for i in ids if i != EOS)


def tiny_hf(family: str, seed: int = 0) -> Any:
    """A random model of a family, in float32, about 0.1 M parameters."""
    torch.manual_seed(seed)
    text: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    }
    if family == "text":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=16, **text)).eval()
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    common = {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": EOS, **MEDIA_IDS}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 2}
        config = Qwen2_5_VLConfig(text_config=text | {"rope_parameters": rope}, vision_config=vision, **common)
        return Qwen2_5_VLForConditionalGeneration(config).eval()
    if family == "internvl":
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": [28, 28], "patch_size": [7, 7]}
        config = InternVLConfig(
            text_config=text | {"model_type": "qwen3", "head_dim": 16},
            vision_config=vision,
            image_token_id=91,
            image_seq_length=4,
            tie_word_embeddings=True,
        )
        return InternVLForConditionalGeneration(config).eval()
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64, "patch_size": 16}
    text |= {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}}
    if family == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
        config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **common)
        return Qwen3VLMoeForConditionalGeneration(config).eval()
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **common)).eval()


def tiny_policy(family: str, *, tower_inside: bool = False, seed: int = 0) -> Policy:
    """A policy around `tiny_hf`; by default with the tower frozen and outside."""
    hf = tiny_hf(family, seed)
    record = family_from_config(hf.config)
    for module in vision_modules(hf, record):
        multiply_patches(module)
    tower = take_tower(hf, record) if record.has_media and not tower_inside else None
    return Policy(PolicyModel(hf, record, record.has_media and tower_inside), tower, "tiny", (EOS,))


def video_prompt(family: Family, sample_id: str, grids: int = 2, rule: str = "transformers") -> Prompt:
    """A prompt with one video of `grids` temporal cells of 2 x 2 tokens, or only text for a family without media."""
    seed = sum(map(ord, sample_id))
    numbers = torch.Generator().manual_seed(seed)
    opening, closing = [1, 2, 40 + seed % 7], [5, 6]
    if not family.has_media:
        ids, types = opening + list(range(10, 10 + grids)) + closing, []
    elif family.timestamps_in_text or isinstance(family, InternVL):
        ids, types = list(opening), [0] * len(opening)
        for cell in range(grids):
            ids += [10 + cell, 92, *[91] * 4, 93]
            types += [0, 0, *[2] * 4, 0]
        ids += closing
    else:
        ids = [*opening, 92, *[91] * 4 * grids, 93, *closing]
        types = [0] * (len(opening) + 1) + [2] * 4 * grids
    token_types = torch.tensor(types + [0] * (len(ids) - len(types)), dtype=torch.int)
    vision = VisionInputs()
    if isinstance(family, QwenVL):
        patch = 3 * family.temporal_patch_size * family.patch_size**2
        vision = VisionInputs(
            pixel_values_videos=torch.randn(grids * 16, patch, generator=numbers),
            video_grid_thw=torch.tensor([[grids, 4, 4]]),
            second_per_grid_ts=(1.0,),
        )
    elif isinstance(family, InternVL):
        vision = VisionInputs(pixel_values=torch.randn(grids, 3, 28, 28, generator=numbers))
    return Prompt(
        sample_id=sample_id,
        text="",
        input_ids=torch.tensor(ids),
        mm_token_type_ids=token_types,
        position_ids=family.positions(token_types, vision, rule),
        vision=vision,
        frame_times=((0.0,),) if family.has_media else (),
        suffix_start=len(ids) - 1,
    )
