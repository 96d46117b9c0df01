"""Positions and timestamps against the golden files, which `tests.golden_positions` wrote without visd."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import golden_positions as golden
from visd.media.families.base import Family
from visd.media.families.qwen2_5_vl import Qwen25VL
from visd.media.families.qwen3_vl import Qwen3VL
from visd.media.families.qwen_vl import cell_times
from visd.types import VisionInputs

QWEN25 = Qwen25VL("qwen2_5_vl", "", merge_size=golden.MERGE, tokens_per_second=golden.TOKENS_PER_SECOND)
QWEN3 = Qwen3VL("qwen3_vl", "", merge_size=golden.MERGE)
CASES = range(len(golden.cases()))


def found(family: Family, case: golden.Case, rule: str) -> torch.Tensor:
    types, vision = golden_inputs(case, family is QWEN3)
    return family.positions(types, vision, rule)


def golden_inputs(case: golden.Case, cells_apart: bool) -> tuple[torch.Tensor, VisionInputs]:
    """Token types and grids of a case; `cells_apart` as Qwen3-VL writes videos."""
    types: list[int] = []
    for part in case.parts:
        cells, rows, columns = part.grid
        tokens = rows * columns // golden.MERGE**2
        if part.kind == "text":
            types += [0] * part.text
        elif part.kind == "image":
            types += [1] * tokens
        elif cells_apart:
            types += [*[0] * golden.STAMP, *[2] * tokens, *[0] * golden.CLOSE] * cells
        else:
            types += [2] * tokens * cells
    images, videos = ([p for p in case.parts if p.kind == kind] for kind in ("image", "video"))
    return torch.tensor(types), VisionInputs(
        video_grid_thw=torch.tensor([p.grid for p in videos]) if videos else None,
        second_per_grid_ts=tuple(golden.CELL_FRAMES / float(p.fps) for p in videos),
        image_grid_thw=torch.tensor([p.grid for p in images]) if images else None,
    )


def check(positions: torch.Tensor, expected: dict[str, Any]) -> None:
    assert positions[0].tolist() == list(range(positions.shape[1]))
    for row, axis in zip(positions[1:].tolist(), ("time", "height", "width"), strict=True):
        assert " ".join(map(str, row)) == expected[axis], axis


def test_the_files_are_what_the_script_writes() -> None:
    assert {path.name: path.read_text() for path in golden.FOLDER.iterdir()} == golden.files()


@pytest.mark.parametrize("index", CASES)
@pytest.mark.parametrize("rule", ["vllm", "transformers"])
def test_qwen2_5_vl(index: int, rule: str) -> None:
    expected = golden.read(f"qwen2_5_vl_{rule}")[index]
    check(found(QWEN25, golden.cases()[index], rule), expected)


@pytest.mark.parametrize("index", CASES)
@pytest.mark.parametrize("rule", ["vllm", "transformers"])
def test_qwen3_vl(index: int, rule: str) -> None:
    case, expected = golden.cases()[index], golden.read("qwen3_vl")[index]
    check(found(QWEN3, case, rule), expected)
    videos = [part for part in case.parts if part.kind == "video"]
    for part, stamps in zip(videos, expected["stamps"], strict=True):
        times = [frame / float(part.fps) for frame in range(part.grid[0] * golden.CELL_FRAMES)]
        assert [f"<{t:.1f} seconds>" for t in cell_times(times, golden.CELL_FRAMES)] == stamps


def test_every_rate_and_place_of_text_is_there() -> None:
    parts = [case.parts for case in golden.cases()]
    assert {part.fps for of in parts for part in of if part.kind == "video"} == set(golden.RATES)
    kinds = {tuple(part.kind for part in of) for of in parts}
    assert {("text", "video", "text"), ("video", "text"), ("text", "video")} <= kinds
    assert ("text", "video", "text", "video", "text") in kinds and ("video", "image", "video", "text") in kinds
