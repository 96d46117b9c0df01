"""Videos as timestamped frames: every family's prompt is the one that its plain processor makes of images and text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_tools.tiny.model import TinySettings, make_tiny_model
from tests.media_files import write_video
from tests.runs import small_config, small_run
from visd.config import FramesSection, PromptSection, VideoSection
from visd.data.prompts import PromptBuilder
from visd.media.processor import PromptProcessor
from visd.policy.batch import Row
from visd.teacher.view import teacher_prompt
from visd.train.launch import run_stage
from visd.train.loop import sample_rollouts
from visd.types import DroppedSample, Media, Message, Prompt, ScoreNeeds

VIDEO = VideoSection(fps=4, min_frames=2, max_frames=12, min_pixels=784, max_pixels=112 * 112)
MEDIA = (Media("video", "a.mp4"), Media("image", "p.png"), Media("video", "a.mp4", 1.0, 2.5))
CHAT = (Message("system", "Look."), Message("user", "First <video>\nthen <image>, last <video>\nWhich way?"))
SPAN = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("media")
    write_video(root / "a.mp4", 24, 8, size=(112, 84))
    Image.new("RGB", (64, 96), (9, 99, 199)).save(root / "p.png")
    return root


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "internvl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param != "internvl":
        path: Path = request.getfixturevalue(f"tiny_{request.param}")
        return path
    out = tmp_path_factory.mktemp("models") / "tiny_internvl"
    make_tiny_model(out, TinySettings(family="internvl"))
    return out


def load(folder: Path, root: Path, **section: Any) -> PromptProcessor:
    settings = PromptSection(video=VIDEO, layout="timestamped_frames", **section)
    return PromptProcessor.load(str(folder), settings, root, FramesSection(workers=0))


def lines(times: tuple[float, ...], image: str) -> str:
    return "".join(f"Frame {number} at {time:.1f}s: {image}\n" for number, time in enumerate(times, 1))


def test_prompt_and_positions_equal_the_plain_processors(folder: Path, root: Path) -> None:
    ours, plain = load(folder, root), AutoProcessor.from_pretrained(folder)
    prompt = ours.process("s", CHAT, MEDIA)
    image = "<IMG_CONTEXT>\n" if ours.family.name == "internvl" else SPAN
    first, _, last = prompt.frame_times
    assert (len(first), len(last)) == (12, 6) and last[0] == 1.0
    text = f"<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\nFirst {lines(first, image)}then {image}, last "
    text += f"{lines(last, image)}Which way?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.text == text
    frames = [frame for medium in MEDIA for frame in ours.frames(medium).pixels]
    extra = {"crop_to_patches": False} if ours.family.name == "internvl" else {}
    expected = plain(
        text=[text], images=[Image.fromarray(f) for f in frames], do_resize=False, return_tensors="pt", **extra
    )
    assert torch.equal(prompt.input_ids, expected["input_ids"][0])
    assert prompt.vision.pixel_values_videos is None and prompt.vision.second_per_grid_ts == ()
    assert prompt.vision.pixel_values is not None
    assert torch.equal(prompt.vision.pixel_values, expected["pixel_values"])
    assert set(prompt.mm_token_type_ids.tolist()) == {0, 1}
    if ours.family.four_rows:
        assert len(prompt.vision.image_grid_thw) == len(frames)  # type: ignore[arg-type]
        hf = AutoModelForImageTextToText.from_pretrained(folder)
        index, _ = hf.model.get_rope_index(
            prompt.input_ids[None], prompt.mm_token_type_ids[None], expected["image_grid_thw"], None
        )
        assert torch.equal(prompt.position_ids[1:], index[:, 0])


def test_a_prompt_over_its_limit_gets_fewer_or_smaller_frames(folder: Path, root: Path) -> None:
    media, chat = MEDIA[:1], (Message("user", "<video>Which way?"),)
    whole = load(folder, root).process("s", chat, media)
    limit = len(whole) * 3 // 4
    prompt = load(folder, root, max_tokens=limit, over_budget="frames").process("s", chat, media)
    assert prompt.reduced == "frames" and limit // 2 < len(prompt) <= limit
    assert prompt.text.count("Frame ") == len(prompt.frame_times[0]) < 12
    smaller = load(folder, root, max_tokens=limit, over_budget="pixels")
    if smaller.family.name == "internvl":  # all its frames have one size
        with pytest.raises(DroppedSample, match="frames of one size only"):
            smaller.process("s", chat, media)
        return
    prompt = smaller.process("s", chat, media)
    assert prompt.reduced == "pixels" and limit // 2 < len(prompt) <= limit and len(prompt.frame_times[0]) == 12


def plain_logp(folder: Path, prompt: Prompt, response: tuple[int, ...], banned: tuple[int, ...]) -> torch.Tensor:
    """[R] by transformers' own forward and positions."""
    hf = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.cat([prompt.input_ids, torch.tensor(response)])[None]
    extra: dict[str, Any] = {}
    if prompt.vision.image_grid_thw is not None:
        types = torch.cat([prompt.mm_token_type_ids, torch.zeros(len(response), dtype=torch.int)])
        extra = {"image_grid_thw": prompt.vision.image_grid_thw, "mm_token_type_ids": types[None]}
    with torch.no_grad():
        output = hf(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=prompt.vision.pixel_values, **extra
        )
    logits = output.logits[0, len(prompt) - 1 : -1].float()
    logits[:, list(banned)] = float("-inf")
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]


def test_engine_student_teacher_and_evaluation_agree(folder: Path, small_world: Path, tmp_path: Path) -> None:
    run = small_run(small_world, folder, tmp_path, "prompt.layout=timestamped_frames", "rollout.max_new_tokens=4",
                    "prompt.max_tokens=1024", "data.train=[train.jsonl]", "train.prompts_per_step=1")  # fmt: skip
    (group,) = sample_rollouts(run, run.prompts(run.sampler.batch(0)), 0)
    prompt, rollout = group.prompt, group.rollouts[0]
    assert "Frame 2 at " in prompt.text and prompt.vision.pixel_values_videos is None
    other = PromptProcessor.load(str(folder), run.config.prompt, small_world, run.config.data.frames)
    again = PromptBuilder(other, run.config.prompt).build(group.sample.question())  # as evaluation makes it
    assert torch.equal(again.input_ids, prompt.input_ids) and torch.equal(again.position_ids, prompt.position_ids)
    told = teacher_prompt(run.processor, prompt, "\nThe answer is 7.")
    assert torch.equal(told.position_ids[:, : prompt.suffix_start], prompt.position_ids[:, : prompt.suffix_start])
    engine = torch.tensor(rollout.logp)
    (features,) = run.policy.encode([prompt])
    for view in (prompt, told):
        row = Row(view, rollout.token_ids, features)
        ours = run.policy.score([row], temperature=1.0, needs=ScoreNeeds()).logp[0].detach()
        plain = plain_logp(folder, view, rollout.token_ids, run.policy.family.banned_ids)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
        assert torch.allclose(ours, engine, atol=1e-5) == (view is prompt)


def test_it_trains(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    overrides = ("prompt.layout=timestamped_frames", "prompt.max_tokens=1024", "train.steps=1")
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path / "run", *overrides)) == 0
