"""Prompts over their limit: counted ahead, dropped or built again from fewer or smaller frames, never cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.media_files import write_video
from visd.config import FramesSection, PromptSection, VideoSection
from visd.media.families.base import MediumSize
from visd.media.families.qwen_vl import QwenVL, cell_times
from visd.media.processor import PromptProcessor
from visd.types import DroppedSample, Media, Message, Prompt, VisdError

VIDEO = VideoSection(fps=4, min_frames=4, max_frames=48, min_pixels=1024, max_pixels=96 * 96)
SECTION = PromptSection(video=VIDEO, max_tokens=4096)
CLIP = (Media("video", "clip.mp4"),)
SEVERAL = (Media("video", "clip.mp4", 2.0, 9.0), Media("image", "picture.png"), Media("video", "wide.mp4"))
CHATS: dict[tuple[Media, ...], str] = {
    CLIP: "<video>\nWhich way does the square move?",
    (Media("video", "uneven.mp4"),): "First <video> then say what it is.",
    (Media("video", "wide.mp4", fps=1.0),): "<video>",
    (Media("image", "picture.png"),): "Look: <image> What is it?",
    SEVERAL: "<video>\nthen <image> then\n<video>\nWhat differs?",
    (): "What is one plus two?",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", 96, 8, (160, 120))  # 12 s: times with one digit and with two
    write_video(folder / "wide.mp4", 40, 10, (192, 64))
    write_video(folder / "uneven.mp4", 24, 8, (64, 96), stamps=[n * 100 + (9000 if n > 15 else 0) for n in range(24)])
    Image.new("RGB", (300, 210), (0, 128, 255)).save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"tiny_{request.param}"))


def processor(model: str, root: Path, **section: Any) -> PromptProcessor:
    video = section.pop("video", {})
    return PromptProcessor.load(
        model, replace(SECTION, video=replace(VIDEO, **video), **section), root, FramesSection(workers=0)
    )


def ask(asked: PromptProcessor, media: tuple[Media, ...] = CLIP) -> Prompt:
    return asked.process("s-1", (Message("user", CHATS[media]),), media)


def dropped(asked: PromptProcessor, media: tuple[Media, ...] = CLIP) -> str:
    with pytest.raises(DroppedSample) as caught:
        ask(asked, media)
    assert caught.value.reason == "prompt_too_long"
    return str(caught.value)


@pytest.mark.parametrize("max_pixels", [1024, 64 * 64, 200 * 100])
@pytest.mark.parametrize("media", CHATS, ids=lambda media: "+".join(m.path for m in media) or "text")
def test_the_count_is_what_the_processor_makes(
    media: tuple[Media, ...], max_pixels: int, model: str, root: Path
) -> None:
    asked = processor(model, root, video={"max_pixels": max_pixels})
    prompt = ask(asked, media)
    family = asked.family
    assert isinstance(family, QwenVL)
    merged = family.merge_size**2
    assert asked._frames is not None
    frames = [asked._frames.get(item) for item in media]
    shapes = [family.visual_tokens(MediumSize.of(item, shown)) for item, shown in zip(media, frames, strict=True)]
    grids = [g for g in (prompt.vision.image_grid_thw, prompt.vision.video_grid_thw) if g is not None]
    assert sum(shapes) == sum(int(grid.prod(-1).sum()) // merged for grid in grids)
    assert sum(shapes) == int((prompt.mm_token_type_ids > 0).sum())
    sizes = [MediumSize.of(item, shown) for item, shown in zip(media, frames, strict=True)]
    assert asked.count_tokens((Message("user", CHATS[media]),), sizes) == len(prompt)


def test_a_wrong_count_stops_the_run(tiny_qwen3_vl: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = processor(str(tiny_qwen3_vl), root)
    monkeypatch.setattr(asked, "family", replace(asked.family, timestamps_in_text=False))
    with pytest.raises(VisdError, match="sample 's-1': its prompt was counted as"):
        ask(asked)


def test_times_of_cells() -> None:
    assert cell_times((0.0, 1.0, 2.0, 4.0), 2) == [0.5, 3.0]
    assert cell_times((0.0, 1.0, 2.0), 2) == [0.5, 2.0]
    assert cell_times((7.0,), 2) == [7.0]


def test_a_long_prompt_is_dropped_by_default(model: str, root: Path) -> None:
    tokens = len(ask(processor(model, root)))
    assert ask(processor(model, root, max_tokens=tokens)).reduced == ""
    said = dropped(processor(model, root, max_tokens=tokens - 1))
    assert f"has {tokens} tokens, more than prompt.max_tokens = {tokens - 1}; lower prompt.video.fps" in said


@pytest.mark.parametrize("share", [0.95, 0.7, 0.4])
@pytest.mark.parametrize("total_pixels", [90316800, 48 * 64 * 64])
def test_fewer_frames_are_as_many_as_fit(share: float, total_pixels: int, model: str, root: Path) -> None:
    video = {"total_pixels": total_pixels}
    whole = ask(processor(model, root, video=video))
    limit = int(len(whole) * share)
    asked = processor(model, root, video=video, max_tokens=limit, over_budget="frames")
    prompt = ask(asked)
    frames = len(prompt.frame_times[0])
    assert prompt.reduced == "frames" and len(prompt) <= limit and frames % 2 == 0
    assert whole.vision.video_grid_thw is not None and prompt.vision.video_grid_thw is not None
    size = prompt.vision.video_grid_thw[0, 1:]
    assert size.tolist() == whole.vision.video_grid_thw[0, 1:].tolist(), "frames keep their size"
    pixels = min(VIDEO.max_pixels, total_pixels // len(whole.frame_times[0]) * 2)
    same = processor(model, root, video=video | {"max_frames": frames, "max_pixels": pixels})
    assert ask(same).input_ids.tolist() == prompt.input_ids.tolist(), "as if the video had been asked for so"
    assert ask(same).frame_times == prompt.frame_times
    more = {"max_frames": frames + 2, "max_pixels": pixels}
    assert len(ask(processor(model, root, video=video | more))) > limit
    assert (asked.counters.videos_decoded, asked.counters.videos_seen) == (2, 2)
    ask(asked)
    assert asked.counters.videos_decoded == 2, "reduced frames are kept like others"


def test_frames_are_taken_from_all_videos_in_proportion(model: str, root: Path) -> None:
    whole = ask(processor(model, root), SEVERAL)
    prompt = ask(processor(model, root, max_tokens=len(whole) * 2 // 3, over_budget="frames"), SEVERAL)
    before, after = ([len(times) for times in p.frame_times] for p in (whole, prompt))
    assert after[1] == 1
    for was, now in ((before[0], after[0]), (before[2], after[2])):
        assert now < was and now == pytest.approx(was * after[0] / before[0], abs=2)


def test_an_uneven_file_still_fits(tiny_qwen3_vl: Path, root: Path) -> None:
    media = (Media("video", "uneven.mp4"),)
    model, video = str(tiny_qwen3_vl), {"fps": 8}
    whole = len(ask(processor(model, root, video=video), media))
    least = len(ask(processor(model, root, video=video | {"max_frames": 4}), media))
    for limit in range(least, whole, 7):
        prompt = ask(processor(model, root, video=video, max_tokens=limit, over_budget="frames"), media)
        assert len(prompt) <= limit and prompt.reduced == "frames"


def test_frames_stop_at_their_least(model: str, root: Path) -> None:
    least = len(ask(processor(model, root, video={"max_frames": 4})))
    fits = processor(model, root, max_tokens=least, over_budget="frames")
    assert len(ask(fits).frame_times[0]) == 4
    said = dropped(processor(model, root, max_tokens=least - 1, over_budget="frames"))
    assert f"and still {least} with prompt.video.min_frames = 4" in said


@pytest.mark.parametrize("share", [0.95, 0.8, 0.7])
def test_fewer_pixels_fit(share: float, model: str, root: Path) -> None:
    whole = ask(processor(model, root), SEVERAL)
    limit = int(len(whole) * share)
    prompt = ask(processor(model, root, max_tokens=limit, over_budget="pixels"), SEVERAL)
    assert prompt.reduced == "pixels" and limit // 2 < len(prompt) <= limit
    assert prompt.frame_times == whole.frame_times
    assert not np.array_equal(prompt.vision.video_grid_thw, whole.vision.video_grid_thw)


def test_pixels_stop_at_their_least(model: str, root: Path) -> None:
    least = len(ask(processor(model, root, video={"max_pixels": 1024})))
    assert len(ask(processor(model, root, max_tokens=least, over_budget="pixels"))) == least
    said = dropped(processor(model, root, max_tokens=least - 1, over_budget="pixels"))
    assert f"and still {least} with prompt.video.min_pixels = 1024" in said


@pytest.mark.parametrize(
    ("rule", "media", "why"),
    [
        ("frames", (Media("image", "picture.png"),), "no video to take frames from"),
        ("frames", (), "no video to take frames from"),
        ("pixels", (), "no media to make smaller"),
    ],
)
def test_what_cannot_be_reduced_is_dropped(
    rule: str, media: tuple[Media, ...], why: str, tiny_qwen2_5_vl: Path, root: Path
) -> None:
    assert why in dropped(processor(str(tiny_qwen2_5_vl), root, max_tokens=10, over_budget=rule), media)
