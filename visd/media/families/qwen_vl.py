"""What Qwen2.5-VL and Qwen3-VL share: patches of frame pairs, merged 2 x 2, and positions in time, height and width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visd.media.families.base import Family, MediumSize, expanded_tokens, side
from visd.media.positions import IMAGE, VIDEO
from visd.types import Frames, Media, VisdError, VisionInputs


@dataclass(frozen=True)
class QwenVL(Family):
    """Base of the Qwen families with vision."""

    patch_size: int = 0  # pixels
    temporal_patch_size: int = 0  # frames
    merge_size: int = 0  # patches merged along each side into one token
    image_token_id: int = 0
    video_token_id: int = 0
    vision_start_token_id: int = 0
    vision_end_token_id: int = 0

    def check_processor(self, hf: Any, model_path: str) -> None:
        for part in (hf.video_processor, hf.image_processor):
            for name in ("patch_size", "temporal_patch_size", "merge_size"):
                if getattr(part, name) != getattr(self, name):
                    raise VisdError(
                        f"model.path: {model_path!r} has {name} = {getattr(self, name)} in its config but "
                        f"{getattr(part, name)} in its {type(part).__name__}; the folder mixes two models."
                    )
            if hasattr(part, "cap_pixels_per_frame"):
                part.cap_pixels_per_frame = False  # sizes are ours; left open it warns about its own resizing

    def video_metadata(self, frames: Frames) -> dict[str, Any]:
        """What a processor or an engine must be told of frames that are already sampled: the sampled rate.

        It is the number of frames over the clip's duration.
        """
        return {
            "fps": frames.source_fps,
            "frames_indices": list(frames.indices),
            "total_num_frames": round(frames.duration * frames.source_fps),
        }

    def process(
        self, hf: Any, text: str, media: Sequence[Media], frames: Sequence[Frames]
    ) -> tuple[Tensor, Tensor, VisionInputs]:
        videos = [item for medium, item in zip(media, frames, strict=True) if medium.kind == "video"]
        images = [item for medium, item in zip(media, frames, strict=True) if medium.kind == "image"]
        extra: dict[str, Any] = {}
        if videos:
            extra["videos"] = [channels_first(item) for item in videos]
            extra["videos_kwargs"] = {
                "do_resize": False,
                "do_sample_frames": False,
                "video_metadata": [self.video_metadata(item) for item in videos],
            }
        if images:
            extra["images"] = [channels_first(item)[0] for item in images]
            extra["images_kwargs"] = {"do_resize": False}
        inputs = hf(text=[text], text_kwargs={"add_special_tokens": False}, return_tensors="pt", **extra)
        seconds = inputs.get("second_per_grid_ts")
        vision = VisionInputs(
            pixel_values_videos=inputs.get("pixel_values_videos"),
            video_grid_thw=inputs.get("video_grid_thw"),
            second_per_grid_ts=() if seconds is None else tuple(torch.as_tensor(seconds).tolist()),
            pixel_values=inputs.get("pixel_values"),
            image_grid_thw=inputs.get("image_grid_thw"),
        )
        return inputs["input_ids"][0].long(), inputs["mm_token_type_ids"][0].int(), vision

    def cells(self, frames: int) -> int:
        return math.ceil(frames / self.temporal_patch_size)

    def visual_tokens(self, size: MediumSize) -> int:
        area = (size.height // self.pixel_factor) * (size.width // self.pixel_factor)
        return self.cells(len(size.times)) * area

    def prompt_tokens(self, text: str, sizes: Sequence[MediumSize], tokenizer: Any) -> int:
        image, video, start, end = tokenizer.convert_ids_to_tokens(
            [self.image_token_id, self.video_token_id, self.vision_start_token_id, self.vision_end_token_id]
        )

        def expansion(size: MediumSize) -> tuple[str, int]:
            pad, tokens = image if size.kind == "image" else video, self.visual_tokens(size)
            if not (self.timestamps_in_text and size.kind == "video"):
                return pad, tokens - 1
            stamps = cell_times(size.times, self.temporal_patch_size)
            return "".join(f"<{stamp:.1f} seconds>{start}{pad}{end}" for stamp in stamps), tokens - len(stamps)

        return expanded_tokens(text, (image, video), [expansion(size) for size in sizes], tokenizer)

    def encode(
        self, modules: Sequence[nn.Module], media: Sequence[VisionInputs], token_types: Sequence[Tensor]
    ) -> list[tuple[Tensor, ...]]:
        (tower,) = modules
        pixels, grids = [], []
        for item in media:
            for values, grid in (
                (item.pixel_values, item.image_grid_thw),
                (item.pixel_values_videos, item.video_grid_thw),
            ):
                if values is not None and grid is not None:
                    pixels.append(values)
                    grids.append(grid)
        parameter = next(tower.parameters())
        output = tower(
            torch.cat(pixels).to(parameter.device, parameter.dtype),
            grid_thw=torch.cat(grids).to(parameter.device),
            return_dict=True,
        )
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        counts = [int((types > 0).sum()) for types in token_types]
        split = [torch.split(level, counts) for level in levels]
        orders = [_placeholder_order(types).to(parameter.device) for types in token_types]
        return [tuple(level[i][order] for level in split) for i, order in enumerate(orders)]

    def image_text(self, tokenizer: Any) -> str:
        ids = [self.vision_start_token_id, self.image_token_id, self.vision_end_token_id]
        return "".join(tokenizer.convert_ids_to_tokens(ids))

    def dummy_media(self) -> tuple[VisionInputs, Tensor]:
        patches = self.merge_size
        media = VisionInputs(
            pixel_values_videos=torch.zeros(patches**2, 3 * self.temporal_patch_size * self.patch_size**2),
            video_grid_thw=torch.tensor([[1, patches, patches]]),
            second_per_grid_ts=(1.0,),
        )
        return media, torch.full((1,), VIDEO)


def qwen_facts(config: Any) -> dict[str, Any]:
    """Fields of `QwenVL` that stand in a config."""
    vision = config.vision_config
    patch = side(vision.patch_size, "patch_size")
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {
        "model_type": config.model_type,
        "language_module": "model.language_model",
        "vision_modules": ("model.visual",),
        "four_rows": True,
        "pixel_factor": patch * vision.spatial_merge_size,
        "patch_size": patch,
        "temporal_patch_size": side(vision.temporal_patch_size, "temporal_patch_size"),
        "merge_size": vision.spatial_merge_size,
        "banned_ids": tuple(sorted(getattr(config, name) for name in ids)),
        **{name: getattr(config, name) for name in ids},
    }


def cell_times(times: Sequence[float], patch: int) -> list[float]:
    """s, of each temporal patch: the middle of its first and last frame; the last frame fills up the last patch."""
    firsts = range(0, len(times), patch)
    return [(times[first] + times[min(first + patch, len(times)) - 1]) / 2 for first in firsts]


def channels_first(frames: Frames) -> Tensor:
    """[N, 3, H, W] uint8."""
    return torch.from_numpy(frames.pixels).permute(0, 3, 1, 2)


def _placeholder_order(types: Tensor) -> Tensor:
    """The tower was given images before videos; where each placeholder, in prompt order, finds its feature."""
    kinds = types[types > 0]
    order = torch.empty(len(kinds), dtype=torch.long)
    images = kinds == IMAGE
    order[images] = torch.arange(int(images.sum()))
    order[~images] = torch.arange(int(images.sum()), len(kinds))
    return order
