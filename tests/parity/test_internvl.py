"""A family of another lineage through the whole path: InternVL's frames are tiles, its positions one row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_tools.tiny.model import TinySettings, make_tiny_model
from tests.media_files import write_video
from tests.runs import small_config
from visd.config import FramesSection, PromptSection, VideoSection
from visd.media.families.internvl import pixel_shuffle
from visd.media.processor import PromptProcessor
from visd.train.launch import run_stage
from visd.types import Media, Message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tiny_internvl"
    make_tiny_model(out, TinySettings(family="internvl"))
    return out


def test_prompt_of_two_videos_equals_the_plain_processors(folder: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 40, 8, size=(112, 84))
    section = PromptSection(video=VideoSection(fps=1, min_frames=4, max_frames=4))
    processor = PromptProcessor.load(str(folder), section, tmp_path, FramesSection(workers=0))
    media = [Media("video", "a.mp4"), Media("video", "a.mp4", start=1.0, end=4.0)]
    prompt = processor.process("s", [Message("user", "<video><video>what moves")], media)
    plain = AutoProcessor.from_pretrained(folder)
    frames = [processor.frames(item) for item in media]
    assert all(item.pixels.shape == (4, 56, 56, 3) for item in frames)
    inputs = plain(
        text=[prompt.text],
        videos=[torch.from_numpy(item.pixels).permute(0, 3, 1, 2) for item in frames],
        videos_kwargs={"do_resize": False},
        return_tensors="pt",
    )
    assert prompt.input_ids.tolist() == inputs["input_ids"][0].tolist()
    assert torch.equal(prompt.vision.pixel_values, inputs["pixel_values"])
    assert (prompt.mm_token_type_ids == 2).sum() == 8 * 4
    assert torch.equal(prompt.mm_token_type_ids > 0, prompt.input_ids == plain.image_token_id)
    assert prompt.position_ids.tolist() == [list(range(len(prompt)))] * 4


def test_patches_become_tokens_as_in_transformers(folder: Path) -> None:
    hf = AutoModelForImageTextToText.from_pretrained(folder)
    patches = torch.randn(2, 16, 8)
    theirs = hf.model.pixel_shuffle(patches.reshape(2, 4, 4, 8), scale_factor=0.5).reshape(2, 4, 32)
    assert torch.equal(pixel_shuffle(patches, 2), theirs)


def test_it_trains(folder: Path, small_world: Path, tmp_path: Path) -> None:
    config = small_config(small_world, folder, tmp_path / "run", "train.steps=1")
    assert run_stage(config) == 0
    assert (tmp_path / "run" / "model" / "config.json").exists()
