"""Our prompts against the plain Hugging Face processor on the same frames, and on the files by its own sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor

from tests.media_files import write_video
from visd.config import FramesSection, PromptSection, VideoSection
from visd.media.families.qwen2_5_vl import Qwen25VL
from visd.media.processor import PromptProcessor
from visd.types import Frames, Media, Message, Prompt

SECTION = PromptSection(video=VideoSection(fps=2, min_frames=4, max_frames=16, min_pixels=784, max_pixels=96 * 96))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"tiny_{request.param}")
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("media")
    write_video(root / "a.mp4", 40, 8, size=(112, 84))
    write_video(root / "b.mp4", 90, 30, size=(60, 100))
    return root


@pytest.fixture(scope="module")
def ours(folder: Path, root: Path) -> PromptProcessor:
    return PromptProcessor.load(str(folder), SECTION, root, FramesSection(workers=0))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def frames_of(ours: PromptProcessor, media: Media) -> Frames:
    assert ours._frames is not None
    return ours._frames.get(media)


def described(frames: Frames) -> dict[str, Any]:
    """Metadata as a reader of constant-rate files states it: numbers in the file and the file's own rate."""
    return {
        "fps": frames.source_fps,
        "frames_indices": list(frames.indices),
        "total_num_frames": round(frames.duration * frames.source_fps),
    }


def check(prompt: Prompt, expected: Any) -> None:
    assert torch.equal(prompt.input_ids, expected["input_ids"][0])
    assert torch.equal(prompt.mm_token_type_ids, expected["mm_token_type_ids"][0].int())
    for name in ("pixel_values_videos", "video_grid_thw", "pixel_values", "image_grid_thw"):
        found = getattr(prompt.vision, name)
        assert (found is None) == (name not in expected)
        assert found is None or torch.equal(found, expected[name])
    if "second_per_grid_ts" in expected:
        assert list(prompt.vision.second_per_grid_ts) == torch.as_tensor(expected["second_per_grid_ts"]).tolist()


def test_template_and_frames_in_one_call(ours: PromptProcessor, plain: Any) -> None:
    media = Media("video", "a.mp4")
    frames = frames_of(ours, media)
    conversation = [
        {"role": "system", "content": "Look closely."},
        {"role": "user", "content": [{"type": "video", "video": frames.pixels}, {"type": "text", "text": "Which?"}]},
    ]
    expected = plain.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"do_resize": False, "do_sample_frames": False, "video_metadata": [described(frames)]},
    )
    messages = (Message("system", "Look closely."), Message("user", "<video>Which?"))
    check(ours.process("s", messages, (media,)), expected)


def test_several_videos_and_an_image(ours: PromptProcessor, plain: Any, root: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (9, 99, 199)).save(root / "p.png")
    media = (Media("video", "a.mp4"), Media("image", "p.png"), Media("video", "b.mp4", 0.5, 2.5))
    one, picture, two = (frames_of(ours, item) for item in media)
    span = "<|vision_start|><|{}_pad|><|vision_end|>".format
    text = f"<|im_start|>user\n{span('video')}first{span('image')} {span('video')}?<|im_end|>\n<|im_start|>assistant\n"
    expected = plain(
        text=[text],
        images=[Image.fromarray(picture.pixels[0])],
        videos=[one.pixels, two.pixels],
        video_metadata=[described(one), described(two)],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )
    check(ours.process("s", (Message("user", "<video>first<image> <video>?"),), media), expected)


def test_text_only(ours: PromptProcessor, plain: Any) -> None:
    expected = plain(text=["<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"], return_tensors="pt")
    check(ours.process("s", (Message("user", "How many?"),), ()), expected)


def test_positions_match_the_models_own(ours: PromptProcessor, folder: Path, root: Path) -> None:
    """End to end: what a transformers forward without explicit positions would use."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    theirs = PromptProcessor.load(
        str(folder), PromptSection(video=SECTION.video, position_rule="transformers"), root, FramesSection(workers=0)
    )
    prompt = theirs.process("s", (Message("user", "<video>Which?"),), (Media("video", "a.mp4"),))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    extra = (
        {"second_per_grid_ts": torch.tensor(prompt.vision.second_per_grid_ts)}
        if isinstance(theirs.family, Qwen25VL)
        else {}
    )
    expected, _ = model.model.get_rope_index(
        prompt.input_ids[None], prompt.mm_token_type_ids[None], None, prompt.vision.video_grid_thw, **extra
    )
    assert torch.equal(prompt.position_ids[1:], expected[:, 0])
