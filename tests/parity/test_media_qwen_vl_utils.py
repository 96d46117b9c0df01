"""Our frames against qwen_vl_utils' `fetch_video` and `fetch_image` on the same files: choice, size, pixels, rate."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import vision_process

from tests.media_files import write_video
from visd.config import VideoSection
from visd.media.video import decode, decode_image


def read_everything(ele: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """A reader for qwen_vl_utils: decodes all frames in order, then takes those its own functions choose."""
    with av.open(ele["video"]) as container:
        rate = float(container.streams.video[0].average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    start, end, total = vision_process.calculate_video_frame_range(ele, len(frames), rate)
    count = vision_process.smart_nframes(ele, total_frames=total, video_fps=rate)
    chosen = torch.linspace(start, end, count).round().long().tolist()
    video = torch.from_numpy(np.stack([frames[i] for i in chosen])).permute(0, 3, 1, 2)
    metadata = {"fps": rate, "frames_indices": chosen, "total_num_frames": total, "video_backend": "all"}
    return video, metadata, count / total * rate


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "all", read_everything)
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "all")


FILES: dict[str, dict[str, Any]] = {
    "plain": {"count": 40, "fps": 8},
    "ntsc": {"count": 100, "fps": Fraction(24000, 1001), "options": {"g": "12", "bf": "2"}},
    "odd size": {"count": 30, "fps": 30, "size": (333, 187), "pixel_format": "yuv444p"},
    "long and small": {"count": 300, "fps": 25, "size": (32, 32)},
}
SETTINGS = {
    "usual": VideoSection(fps=2, min_frames=4, max_frames=32, min_pixels=784, max_pixels=40 * 784),
    "dense": VideoSection(fps=6.5, min_frames=6, max_frames=14, min_pixels=784, max_pixels=9 * 784),
    "enlarged": VideoSection(fps=1, min_frames=4, max_frames=768, min_pixels=120 * 784, max_pixels=400 * 784),
    "tight budget": VideoSection(fps=4, min_frames=4, max_frames=64, min_pixels=784, total_pixels=30 * 784),
}


@pytest.mark.parametrize("clip", [(None, None), (0.5, None), (0.25, 2.0)])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("file", FILES)
def test_video(tmp_path: Path, reader: None, file: str, settings: str, clip: tuple[float, float]) -> None:
    if file == "odd size" and clip[1] is not None:
        clip = (0.25, 0.75)
    path, section = write_video(tmp_path / "clip.mp4", **FILES[file]), SETTINGS[settings]
    names = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")
    ele = {"video": str(path), **{name: getattr(section, name) for name in names}}
    ele |= {key: value for key, value in zip(("video_start", "video_end"), clip) if value is not None}
    (expected, metadata), rate = vision_process.fetch_video(
        ele, image_patch_size=14, return_video_sample_fps=True, return_video_metadata=True
    )
    found = decode(path, start=clip[0], end=clip[1], fps=None, settings=section, factor=28)
    assert list(found.indices) == metadata["frames_indices"]
    assert np.array_equal(found.pixels, expected.permute(0, 2, 3, 1).numpy())
    assert found.source_fps == metadata["fps"]
    assert round(found.duration * found.source_fps) == metadata["total_num_frames"]
    assert len(found.times) / found.duration == pytest.approx(rate)
    assert found.times == pytest.approx([i / metadata["fps"] for i in found.indices], abs=1e-9)


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (123, 77)), ("RGBA", (50, 300)), ("L", (640, 480)), ("LA", (90, 90))]
)
def test_image(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 4), np.uint8)
    Image.fromarray(noise, "RGBA").convert(mode).save(tmp_path / "picture.png")
    section = VideoSection(min_pixels=784, max_pixels=100 * 784)
    expected = vision_process.fetch_image(
        {"image": str(tmp_path / "picture.png"), "min_pixels": section.min_pixels, "max_pixels": section.max_pixels}
    )
    found = decode_image(tmp_path / "picture.png", settings=section, factor=28)
    assert np.array_equal(found.pixels[0], np.asarray(expected))
