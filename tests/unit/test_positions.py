"""Positions by hand-computed values: what each rule does with time, size and the text around media."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3_5Config, Qwen3_5TextConfig, Qwen3NextConfig

from visd.config import FramesSection, PromptSection
from visd.media.families import family_from_config
from visd.media.families.base import Family
from visd.media.families.qwen2_5_vl import Qwen25VL
from visd.media.families.qwen3_vl import Qwen3VL
from visd.media.positions import qwen2_5_vl, qwen3_vl, text_only
from visd.media.processor import PromptProcessor
from visd.types import VisdError, VisionInputs


def video_types(before: int, tokens: int, after: int, kind: int = 2) -> list[int]:
    return [0] * before + [kind] * tokens + [0] * after


def rope(types: list[int], grid: list[int], seconds: float, rule: str, images: list[list[int]] | None = None) -> list:
    videos = [grid] if grid else []
    found = qwen2_5_vl(types, images or [], videos, [seconds] if grid else [], 2, 2, rule)
    assert found[0].tolist() == list(range(len(types)))
    return found[1:].tolist()


def test_a_minute_at_two_frames_a_second() -> None:
    """60 temporal cells of 24 x 24 patches, one second each: the two rules part by more than a hundred positions."""
    types = video_types(15, 60 * 12 * 12, 4)
    assert rope(types, [60, 24, 24], 1.0, "transformers")[0][-4:] == [27, 28, 29, 30]
    assert rope(types, [60, 24, 24], 1.0, "vllm")[0][-4:] == [134, 135, 136, 137]


@pytest.mark.parametrize("rule", ["vllm", "transformers"])
def test_small_video_whole(rule: str) -> None:
    time, height, width = rope(video_types(2, 12, 2), [2, 4, 6], 1.0, rule)
    # Two cells, two positions apart, of 2 x 3 tokens; the text goes on after the largest (2 + 2) or the widest (2 + 3).
    assert time == [0, 1, *[2] * 6, *[4] * 6, 5, 6]
    assert height == [0, 1, *[2, 2, 2, 3, 3, 3] * 2, 5, 6]
    assert width == [0, 1, *[2, 3, 4] * 4, 5, 6]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (0.5, [0, 8, 16, 24, 32, 40]),
        (1.0, [0, 4, 8, 12, 16, 20]),
        (2.0, [0, 2, 4, 6, 8, 10]),
        (4.0, [0, 1, 2, 3, 4, 5]),
        (5.0, [0, 0, 1, 2, 3, 4]),
        (8.0, [0, 0, 1, 1, 2, 2]),
        (23.976, [0, 0, 0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("rule", ["vllm", "transformers"])
def test_time_at_several_rates(fps: float, expected: list[int], rule: str) -> None:
    """Cell k is at trunc(k * 2 / fps * 2): the product is truncated, never the seconds."""
    assert rope(video_types(0, 6, 0), [6, 2, 2], 2 / fps, rule)[0] == expected


def test_the_rules_round_as_their_engines() -> None:
    """0.7 s as float32 is a little less than 0.7, which float64 keeps and float32 loses on the way to cell 5."""
    assert rope(video_types(0, 6, 0), [6, 2, 2], 0.7, "vllm")[0][-1] == 6
    assert rope(video_types(0, 6, 0), [6, 2, 2], 0.7, "transformers")[0][-1] == 7


@pytest.mark.parametrize("rule", ["vllm", "transformers"])
def test_image_beside_video(rule: str) -> None:
    types = [0, *[1] * 4, 0, *[2] * 2, 0]
    time, height, width = rope(types, [2, 2, 2], 0.5, rule, images=[[1, 4, 4]])
    assert time == [0, 1, 1, 1, 1, 3, 4, 5, 6 if rule == "vllm" else 5]
    assert height == [0, 1, 1, 2, 2, 3, 4, 4, time[-1]]
    assert width == [0, 1, 2, 1, 2, 3, 4, 4, time[-1]]


def test_adjacent_videos_are_told_apart_by_their_grids() -> None:
    found = qwen2_5_vl([2, 2, 2, 0], [], [[1, 2, 2], [2, 2, 2]], [1.0, 1.0], 2, 2, "vllm")
    assert found[1].tolist() == [0, 1, 3, 4]


def test_qwen3_vl_cells_are_blocks_of_their_own() -> None:
    types = [0, 0, *[2] * 4, 0, 0, *[2] * 4, 0]
    found = qwen3_vl(types, [], [[2, 4, 4]], 2)
    assert found[0].tolist() == list(range(13))
    assert found[1].tolist() == [0, 1, 2, 2, 2, 2, 4, 5, 6, 6, 6, 6, 8]
    assert found[2].tolist() == [0, 1, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8]
    assert found[3].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 6, 7, 8]


def test_text_only() -> None:
    assert torch.equal(text_only(3), torch.tensor([[0, 1, 2]] * 4))


@pytest.mark.parametrize(
    ("types", "images", "videos", "seconds", "message"),
    [
        ([2, 2], [], [], [], "no grid"),
        ([2, 0, 2], [], [[1, 4, 2]], [1.0], "fewer placeholders"),
        ([0, 2], [], [[1, 4, 2]], [1.0], "fewer placeholders"),
        ([0, 0], [[1, 2, 2]], [], [], "more image grids"),
        ([2], [], [[1, 2, 2]], [], "seconds per grid"),
    ],
)
def test_placeholders_must_fit(types: list, images: list, videos: list, seconds: list, message: str) -> None:
    with pytest.raises(VisdError, match=message):
        qwen2_5_vl(types, images, videos, seconds, 2, 2, "vllm")


def test_unknown_rule() -> None:
    with pytest.raises(VisdError, match=r"prompt\.position_rule"):
        qwen2_5_vl([0], [], [], [], 2, 2, "mine")


class TestDispatch:
    TEXT = Family("text", "qwen3")

    def test_by_family(self) -> None:
        qwen25 = Qwen25VL("qwen2_5_vl", "", merge_size=2, tokens_per_second=2)
        qwen3 = Qwen3VL("qwen3_vl", "", merge_size=2)
        types, grid = torch.tensor([0, 2, 2, 0]), torch.tensor([[2, 2, 2]])
        vision = VisionInputs(video_grid_thw=grid, second_per_grid_ts=(1.0,))
        assert qwen25.positions(types, vision, "vllm")[1].tolist() == [0, 1, 3, 4]
        assert qwen3.positions(types, vision, "vllm")[1].tolist() == [0, 1, 2, 3]
        assert torch.equal(self.TEXT.positions(torch.tensor([0, 0]), VisionInputs(), "vllm"), text_only(2))

    def test_text_model_refuses_media(self) -> None:
        with pytest.raises(VisdError, match="no media"):
            self.TEXT.positions(torch.tensor([0, 2]), VisionInputs(), "vllm")


class TestFamily:
    def test_other_multimodal_models_are_refused(self) -> None:
        config = SimpleNamespace(model_type="llava", vision_config=SimpleNamespace())
        with pytest.raises(VisdError, match="'llava' is not supported"):
            family_from_config(config)

    @pytest.mark.parametrize(
        ("config", "name"),
        [(Qwen3_5Config, "qwen3_5"), (Qwen3_5TextConfig, "qwen3_5_text"), (Qwen3NextConfig, "qwen3_next")],
    )
    def test_linear_attention_is_refused_with_its_reason(self, config: Any, name: str, tmp_path: Path) -> None:
        """Qwen3.5 and Qwen3-Next by the installed transformers' own configs."""
        config().save_pretrained(tmp_path)
        with pytest.raises(
            VisdError, match=f"'{name}' has layers of the kind linear_attention, which keep one running"
        ):
            PromptProcessor.load(str(tmp_path), PromptSection(), tmp_path, FramesSection())

    def test_a_decoder_of_attention_alone_is_not(self) -> None:
        layers = ["full_attention", "sliding_attention"]
        assert family_from_config(SimpleNamespace(model_type="gemma3_text", layer_types=layers)).name == "text"

    def test_text_model(self) -> None:
        family = family_from_config(SimpleNamespace(model_type="llama"))
        assert (family.name, family.has_media, family.banned_ids) == ("text", False, ())

    @pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
    def test_qwen(self, model_type: str) -> None:
        vision = SimpleNamespace(
            patch_size=[16, 16], temporal_patch_size=2, spatial_merge_size=2, tokens_per_second=4, window_size=112
        )
        config = SimpleNamespace(
            model_type=model_type,
            vision_config=vision,
            image_token_id=11,
            video_token_id=12,
            vision_start_token_id=13,
            vision_end_token_id=14,
        )
        tokenizer = SimpleNamespace(get_vocab=lambda: {"<|im_start|>": 3, "<|vision_pad|>": 15, "word": 1})
        family = family_from_config(config, tokenizer)
        assert family.banned_ids == (3, 11, 12, 13, 14, 15)
        assert family_from_config(config).banned_ids == (11, 12, 13, 14)
        assert (family.pixel_factor, family.four_rows) == (32, True)
        assert getattr(family, "tokens_per_second", None) == (4 if model_type == "qwen2_5_vl" else None)
        assert family.timestamps_in_text == (model_type == "qwen3_vl")
        assert family.projector_modules[0] == "model.visual.merger"
