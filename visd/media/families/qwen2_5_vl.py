"""Qwen2.5-VL: time stands in the positions, by one of two rules (`visd.media.positions`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visd.media.families.base import Family
from visd.media.families.qwen_vl import QwenVL, qwen_facts
from visd.media.positions import plain_grids, qwen2_5_vl
from visd.types import VisionInputs


@dataclass(frozen=True)
class Qwen25VL(QwenVL):
    """Qwen2.5-VL."""

    tokens_per_second: float = 0.0  # temporal positions a second

    def positions(self, token_types: Tensor, vision: VisionInputs, rule: str) -> Tensor:
        return qwen2_5_vl(
            token_types.tolist(),
            plain_grids(vision.image_grid_thw),
            plain_grids(vision.video_grid_thw),
            vision.second_per_grid_ts,
            self.merge_size,
            self.tokens_per_second,
            rule,
        )


def _record(config: Any) -> Family:
    return Qwen25VL(
        name="qwen2_5_vl",
        even_frames=True,
        projector_modules=("model.visual.merger",),
        tokens_per_second=config.vision_config.tokens_per_second,
        **qwen_facts(config),
    )


MODEL_TYPES = {"qwen2_5_vl": _record}
