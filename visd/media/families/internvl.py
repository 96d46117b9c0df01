"""InternVL3 and InternVL3.5 in their transformers form: every frame one tile of fixed size, positions in one row.

The processor writes `FrameN: ` before each frame. An image is one tile too: the tiling of large images
(`crop_to_patches`) is not used, so that an image costs what a frame costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from visd.config import VideoSection
from visd.media.families.base import Family, MediumSize, expanded_tokens, side
from visd.media.families.qwen_vl import channels_first
from visd.media.positions import IMAGE, VIDEO, text_only
from visd.types import Frames, Media, VisdError, VisionInputs


@dataclass(frozen=True)
class InternVL(Family):
    """InternVL."""

    image_token_id: int = 0  # stands for frames of videos and images alike
    tile_tokens: int = 0  # visual tokens of a tile
    shuffle: int = 0  # patches along each side that become one token
    skip: int = 0  # leading outputs of the tower that are no patches (its class token)

    def sizes(self, settings: VideoSection) -> VideoSection:
        pixels = self.pixel_factor**2  # exactly one cell of `pixel_factor`, so every frame is resized to it
        return replace(settings, min_pixels=pixels, max_pixels=pixels)

    def check_processor(self, hf: Any, model_path: str) -> None:
        if hf.image_seq_length != self.tile_tokens:
            raise VisdError(
                f"model.path: {model_path!r} has {self.tile_tokens} tokens a tile in its config but "
                f"{hf.image_seq_length} in its processor; the folder mixes two models."
            )

    def process(
        self, hf: Any, text: str, media: Sequence[Media], frames: Sequence[Frames]
    ) -> tuple[Tensor, Tensor, VisionInputs]:
        images = [channels_first(item)[0] for medium, item in zip(media, frames, strict=True) if medium.kind == "image"]
        videos = [channels_first(item) for medium, item in zip(media, frames, strict=True) if medium.kind == "video"]
        extra: dict[str, Any] = {}
        if images:
            extra |= {"images": images, "images_kwargs": {"do_resize": False, "crop_to_patches": False}}
        if videos:
            extra |= {"videos": videos, "videos_kwargs": {"do_resize": False, "do_sample_frames": False}}
        inputs = hf(text=[text], text_kwargs={"add_special_tokens": False}, return_tensors="pt", **extra)
        ids = inputs["input_ids"][0].long()
        types = torch.zeros(len(ids), dtype=torch.int)
        kinds = [kind for medium, item in zip(media, frames, strict=True) for kind in self._kinds(medium, item)]
        types[ids == self.image_token_id] = torch.tensor(kinds, dtype=torch.int).repeat_interleave(self.tile_tokens)
        return ids, types, VisionInputs(pixel_values=inputs.get("pixel_values"))

    def visual_tokens(self, size: MediumSize) -> int:
        return len(size.times) * self.tile_tokens

    def prompt_tokens(self, text: str, sizes: Sequence[MediumSize], tokenizer: Any) -> int:
        pad, video = tokenizer.context_image_token, tokenizer.video_token
        tile = f"{tokenizer.start_image_token}{pad}{tokenizer.end_image_token}"

        def expansion(size: MediumSize) -> tuple[str, int]:
            frames = len(size.times)
            written = "\n".join(f"Frame{number + 1}: {tile}" for number in range(frames))
            return tile if size.kind == "image" else written, self.visual_tokens(size) - frames

        return expanded_tokens(text, (pad, video), [expansion(size) for size in sizes], tokenizer)

    def _kinds(self, medium: Media, frames: Frames) -> list[int]:
        return [IMAGE if medium.kind == "image" else VIDEO] * len(frames.times)

    def positions(self, token_types: Tensor, vision: VisionInputs, rule: str) -> Tensor:
        return text_only(len(token_types))

    def encode(
        self, modules: Sequence[nn.Module], media: Sequence[VisionInputs], token_types: Sequence[Tensor]
    ) -> list[tuple[Tensor, ...]]:
        tower, projector = modules
        tiles = [item.pixel_values for item in media if item.pixel_values is not None]
        parameter = next(tower.parameters())
        pixels = torch.cat(tiles).to(parameter.device, parameter.dtype)
        patches = tower(pixel_values=pixels, return_dict=True).last_hidden_state[:, self.skip :]
        features = projector(pixel_shuffle(patches, self.shuffle)).flatten(0, 1)
        return [(part,) for part in torch.split(features, [len(item) * self.tile_tokens for item in tiles])]

    def dummy_media(self) -> tuple[VisionInputs, Tensor]:
        media = VisionInputs(pixel_values=torch.zeros(1, 3, self.pixel_factor, self.pixel_factor))
        return media, torch.full((self.tile_tokens,), IMAGE)


def pixel_shuffle(patches: Tensor, factor: int) -> Tensor:
    """[tiles, rows * rows, width] patches to [tiles, tokens, factor^2 * width]: each square of patches one token."""
    tiles, count, width = patches.shape
    rows = round(count**0.5) // factor
    squares = patches.reshape(tiles, rows, factor, rows, factor, width)
    return squares.permute(0, 1, 3, 2, 4, 5).reshape(tiles, rows * rows, factor * factor * width)


def _record(config: Any) -> Family:
    vision = config.vision_config
    tile, patch = side(vision.image_size, "image_size"), side(vision.patch_size, "patch_size")
    if config.vision_feature_layer != -1:
        raise VisdError(
            f"model.path: vision_feature_layer = {config.vision_feature_layer} is not supported, only the last (-1)."
        )
    shuffle = round(1 / config.downsample_ratio)
    return InternVL(
        name="internvl",
        model_type=config.model_type,
        language_module="model.language_model",
        vision_modules=("model.vision_tower", "model.multi_modal_projector"),
        projector_modules=("model.multi_modal_projector",),
        pixel_factor=tile,
        banned_ids=(config.image_token_id,),
        image_token_id=config.image_token_id,
        tile_tokens=(tile // patch // shuffle) ** 2,
        shuffle=shuffle,
        skip=1 if config.vision_feature_select_strategy == "default" else 0,
    )


MODEL_TYPES = {"internvl": _record}
