"""The installed transformers on the golden cases, and by name each place where it disagrees with a rule of visd."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import golden_positions as golden
from tests.parity.test_positions_transformers import qwen2_5_vl, qwen3_vl, truncates_seconds
from tests.unit.test_positions_golden import QWEN25, check, golden_inputs
from visd.media.families.qwen3_vl import Qwen3VL
from visd.types import Frames

__all__ = ["qwen2_5_vl", "qwen3_vl"]  # fixtures

CASES = golden.cases()
each_case = pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])


def library(model: Any, case: golden.Case, cells_apart: bool) -> torch.Tensor:
    """[4, P] of the installed transformers."""
    types, vision = golden_inputs(case, cells_apart)
    extra = {} if cells_apart else {"second_per_grid_ts": torch.tensor(vision.second_per_grid_ts)}
    index, _ = model.get_rope_index(
        torch.zeros_like(types)[None], types[None], vision.image_grid_thw, vision.video_grid_thw, **extra
    )
    return torch.cat([torch.arange(len(types))[None], index[:, 0]])


def followed(model: Any) -> str:
    """The golden rule that the installed transformers follows for Qwen2.5-VL."""
    return "transformers_whole_seconds" if truncates_seconds(model) else "transformers"


@each_case
def test_transformers_follows_its_golden_file(qwen2_5_vl: Any, qwen3_vl: Any, index: int) -> None:
    case = CASES[index]
    check(library(qwen2_5_vl, case, cells_apart=False), golden.read(f"qwen2_5_vl_{followed(qwen2_5_vl)}")[index])
    check(library(qwen3_vl, case, cells_apart=True), golden.read("qwen3_vl")[index])


@each_case
def test_each_difference_from_our_rules_is_named(qwen2_5_vl: Any, index: int) -> None:
    case, rule = CASES[index], followed(qwen2_5_vl)
    types, vision = golden_inputs(case, cells_apart=False)
    theirs = library(qwen2_5_vl, case, cells_apart=False)[1:].T.tolist()
    of_vllm, of_transformers = (
        golden.differences(case, QWEN25.positions(types, vision, own)[1:].T.tolist(), theirs)
        for own in ("vllm", "transformers")
    )
    assert of_vllm == golden.read("qwen2_5_vl_differences")[index][rule]
    if rule == "transformers":
        assert of_transformers == []
    else:  # it cuts off fractions of seconds, and does nothing else
        assert all(name.endswith("(video) differs in time") for name in of_transformers)


@pytest.mark.parametrize("fps", golden.RATES)
def test_the_processor_writes_the_golden_times(fps: str) -> None:
    """Qwen3-VL's own computing of timestamps, from what we tell it of frames."""
    from transformers import Qwen3VLProcessor

    case = next(i for i, case in enumerate(CASES) if case.name == f"text around, {fps} fps")
    (expected,) = golden.read("qwen3_vl")[case]["stamps"]
    times = tuple(frame / float(fps) for frame in range(len(expected) * golden.CELL_FRAMES))
    told = Qwen3VL("qwen3_vl", "").video_metadata(Frames(None, times, tuple(range(len(times))), 30.0, times[-1]))
    found = Qwen3VLProcessor._calculate_timestamps(None, told["frames_indices"], told["fps"], golden.CELL_FRAMES)
    assert [f"<{time:.1f} seconds>" for time in found] == expected
