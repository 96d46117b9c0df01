"""Qwen3-VL, dense and with experts: each temporal cell's time is written as text, and features enter inner layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visd.media.families.base import Family
from visd.media.families.qwen_vl import QwenVL, qwen_facts
from visd.media.positions import plain_grids, qwen3_vl
from visd.types import Frames, VisionInputs


@dataclass(frozen=True)
class Qwen3VL(QwenVL):
    """Qwen3-VL."""

    def video_metadata(self, frames: Frames) -> dict[str, Any]:
        """The processor computes times as frame number / fps.

        At 1 frame a second the number is the time itself, which is exact for variable frame rates too.
        """
        return {"fps": 1.0, "frames_indices": list(frames.times), "total_num_frames": len(frames.times)}

    def positions(self, token_types: Tensor, vision: VisionInputs, rule: str) -> Tensor:
        images, videos = plain_grids(vision.image_grid_thw), plain_grids(vision.video_grid_thw)
        return qwen3_vl(token_types.tolist(), images, videos, self.merge_size)


def _record(config: Any) -> Family:
    return Qwen3VL(
        name="qwen3_vl",
        projector_modules=("model.visual.merger", "model.visual.deepstack_merger_list"),
        timestamps_in_text=True,
        **qwen_facts(config),
    )


MODEL_TYPES = {"qwen3_vl": _record, "qwen3_vl_moe": _record}
