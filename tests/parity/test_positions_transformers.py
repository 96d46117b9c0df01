"""Our positions against the `get_rope_index` of the installed transformers, and against vLLM's arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen3VLConfig, Qwen3VLModel

from visd.media.families import family_from_config
from visd.media.families.base import Family
from visd.types import VisionInputs

TOKENS_PER_SECOND = 2
LAYOUTS: dict[str, list[tuple[str, list[int]]]] = {
    "one video": [("text", [5]), ("video", [6, 8, 12]), ("text", [7])],
    "video first": [("video", [3, 4, 4]), ("text", [2])],
    "video last": [("text", [2]), ("video", [3, 4, 4])],
    "two videos": [("text", [1]), ("video", [9, 4, 8]), ("text", [3]), ("video", [2, 20, 4]), ("text", [2])],
    "image beside video": [("text", [3]), ("image", [1, 6, 10]), ("text", [1]), ("video", [12, 4, 4]), ("text", [4])],
    "video, image, video": [
        ("text", [1]), ("video", [4, 4, 4]), ("text", [2]), ("image", [1, 8, 4]), ("text", [1]), ("video", [7, 8, 8]), ("text", [9])
    ],
    "images": [("text", [1]), ("image", [1, 8, 4]), ("text", [2]), ("image", [1, 4, 4]), ("text", [1])],
    "text": [("text", [11])],
}  # fmt: skip


def laid_out(layout: list[tuple[str, list[int]]], cells_apart: bool) -> tuple[torch.Tensor, Any, Any]:
    """Token types and grids of a layout; `cells_apart` puts two text tokens before each temporal cell."""
    types: list[int] = []
    grids: dict[str, list[list[int]]] = {"image": [], "video": []}
    for kind, value in layout:
        if kind == "text":
            types += [0] * value[0]
            continue
        cell = [1 if kind == "image" else 2] * (value[1] * value[2] // 4)
        types += ([0, 0, *cell] if cells_apart else cell) * value[0]
        grids[kind].append(value)
    images, videos = (torch.tensor(grids[kind]) if grids[kind] else None for kind in ("image", "video"))
    return torch.tensor(types), images, videos


def positions(family: Family, rule: str, types: Any, images: Any, videos: Any, seconds: Any = ()) -> torch.Tensor:
    vision = VisionInputs(image_grid_thw=images, video_grid_thw=videos, second_per_grid_ts=tuple(seconds))
    return family.positions(types, vision, rule)


@pytest.fixture(scope="module")
def qwen2_5_vl() -> Any:
    config = Qwen2_5_VLConfig(vision_config={"depth": 1, "hidden_size": 32, "tokens_per_second": TOKENS_PER_SECOND})
    config.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        return Qwen2_5_VLModel(config)


@pytest.fixture(scope="module")
def qwen3_vl() -> Any:
    config = Qwen3VLConfig(vision_config={"depth": 1, "hidden_size": 32, "deepstack_visual_indexes": [0]})
    config.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        return Qwen3VLModel(config)


def truncates_seconds(model: Any) -> bool:
    """transformers before 5.18 or so cuts seconds per grid to whole seconds; see the docstring of positions.py."""
    index, _ = model.get_rope_index(
        torch.zeros((1, 3), dtype=torch.long),
        torch.tensor([[2, 2, 2]]),
        video_grid_thw=torch.tensor([[3, 2, 2]]),
        second_per_grid_ts=torch.tensor([0.5]),
    )
    return index[0, 0].tolist() != [0, 1, 2]


@pytest.mark.parametrize("seconds", [1.0, 2.0, 4.0, 0.5, 0.25, 0.7, 2 / 23.976, 1.3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_qwen2_5_vl(qwen2_5_vl: Any, name: str, seconds: float) -> None:
    types, images, videos = laid_out(LAYOUTS[name], cells_apart=False)
    if videos is not None and seconds % 1 and truncates_seconds(qwen2_5_vl):
        pytest.skip("the installed transformers truncates fractional seconds per grid, which visd does not")
    count = 0 if videos is None else len(videos)
    expected, _ = qwen2_5_vl.get_rope_index(
        torch.zeros_like(types)[None],
        types[None],
        images,
        videos,
        torch.tensor([seconds] * count) if count else None,
    )
    family = family_from_config(qwen2_5_vl.config)
    found = positions(family, "transformers", types, images, videos, [seconds] * count)
    assert torch.equal(found[1:], expected[:, 0])
    assert found[0].tolist() == list(range(len(types)))


@pytest.mark.parametrize("rule", ["vllm", "transformers"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_qwen3_vl(qwen3_vl: Any, name: str, rule: str) -> None:
    types, images, videos = laid_out(LAYOUTS[name], cells_apart=True)
    expected, _ = qwen3_vl.get_rope_index(torch.zeros_like(types)[None], types[None], images, videos)
    found = positions(family_from_config(qwen3_vl.config), rule, types, images, videos)
    assert torch.equal(found[1:], expected[:, 0])


@pytest.mark.parametrize("seconds", [1.0, 0.5, 0.7, 2 / 23.976, 1.3])
@pytest.mark.parametrize("name", LAYOUTS)
def test_vllm(qwen2_5_vl: Any, name: str, seconds: float) -> None:
    types, images, videos = laid_out(LAYOUTS[name], cells_apart=False)
    count = 0 if videos is None else len(videos)
    family = family_from_config(qwen2_5_vl.config)
    found = positions(family, "vllm", types, images, videos, [seconds] * count)
    assert found[1:].tolist() == as_vllm(LAYOUTS[name], seconds).tolist()


def test_where_the_rules_differ(qwen2_5_vl: Any) -> None:
    """Only after a video that lasts longer, in positions, than it is wide and high; never before or inside one."""
    family = family_from_config(qwen2_5_vl.config)
    types, _, videos = laid_out([("text", [2]), ("video", [6, 4, 4]), ("text", [2])], cells_apart=False)
    ours, theirs = (positions(family, rule, types, None, videos, [1.0]) for rule in ("vllm", "transformers"))
    assert (ours != theirs).any(dim=0).nonzero().flatten().tolist() == [len(types) - 2, len(types) - 1]
    assert (ours[1, -1] - theirs[1, -1]).item() == 11 - 2
    short = torch.tensor([[1, 4, 4]])
    types = torch.tensor([0, *[2] * 4, 0])
    assert torch.equal(*(positions(family, rule, types, None, short, [1.0]) for rule in ("vllm", "transformers")))


def as_vllm(layout: list[tuple[str, list[int]]], seconds: float) -> np.ndarray:
    """vLLM 0.32's arithmetic for Qwen2.5-VL: float32 seconds, float64 products, text after the largest position."""
    pieces: list[np.ndarray] = []
    for kind, value in layout:
        start = int(pieces[-1].max()) + 1 if pieces else 0
        if kind == "text":
            pieces.append(np.tile(np.arange(value[0]), (3, 1)) + start)
            continue
        block = np.indices((value[0], value[1] // 2, value[2] // 2))
        if kind == "video":
            block[0] = (block[0] * (float(np.float32(seconds)) * TOKENS_PER_SECOND)).astype(np.int64)
        pieces.append(block.reshape(3, -1) + start)
    return np.concatenate(pieces, axis=1)
