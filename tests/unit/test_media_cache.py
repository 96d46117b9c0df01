"""The frame cache: one decode a video, bounded memory, replaced files noticed, paths kept below the root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.media_files import write_video
from visd.config import FramesSection, VideoSection
from visd.media import decoders as decoders_module
from visd.media.cache import FrameCache
from visd.media.errors import DecodeError
from visd.types import Media

SETTINGS = VideoSection(fps=2, min_frames=4, max_frames=4, min_pixels=784, max_pixels=784)
ONE_VIDEO = 4 * 28 * 28 * 3
"""Bytes of four frames of 28 x 28."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    for name in "abc":
        write_video(root / f"{name}.mp4", 16, 8)
    return root


def cache_of(root: Path, capacity_bytes: int) -> FrameCache:
    cache = FrameCache(root, SETTINGS, 28, FramesSection(workers=0))
    cache.capacity_bytes = capacity_bytes
    return cache


def video(name: str) -> Media:
    return Media("video", f"{name}.mp4")


def test_decodes_once_and_counts(root: Path) -> None:
    cache = cache_of(root, 10 * ONE_VIDEO)
    first = cache.get(video("a"))
    assert cache.get(video("a")) is first
    cache.get(video("b"))
    cache.get(Media("video", "a.mp4", 0.0, 1.0))
    cache.get(Media("video", "a.mp4", fps=4.0))
    assert (cache.counters.videos_decoded, cache.counters.videos_seen) == (4, 4)
    assert cache.held_bytes == 4 * ONE_VIDEO


def test_least_recently_used_goes_first(root: Path) -> None:
    cache = cache_of(root, 2 * ONE_VIDEO)
    for name in "abac":
        cache.get(video(name))
    assert cache.held_bytes == 2 * ONE_VIDEO
    cache.get(video("a"))
    assert cache.counters.videos_decoded == 3
    cache.get(video("b"))
    assert (cache.counters.videos_decoded, cache.counters.videos_seen) == (4, 3)


def test_larger_than_the_cache_still_works(root: Path) -> None:
    cache = cache_of(root, ONE_VIDEO - 1)
    assert len(cache.get(video("a")).times) == 4 and cache.held_bytes == 0


def test_a_replaced_file_is_decoded_again(root: Path) -> None:
    cache = cache_of(root, 10 * ONE_VIDEO)
    old = cache.get(video("a"))
    write_video(root / "a.mp4", 24, 4)
    assert cache.get(video("a")).times != old.times
    os.utime(root / "a.mp4", ns=(0, 0))
    cache.get(video("a"))
    assert cache.counters.videos_decoded == 3


def test_a_bad_file_is_tried_once_until_it_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "bad.mp4").write_bytes(b"noise" * 100)
    attempts: list[Path] = []
    original = decoders_module.decode

    def counting(path: Path, **options: object) -> object:
        attempts.append(path)
        return original(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoders_module, "decode", counting)
    cache = cache_of(root, ONE_VIDEO)
    for _ in range(3):
        with pytest.raises(DecodeError, match=r"bad\.mp4") as caught:
            cache.get(video("bad"))
        assert caught.value.reason == "unreadable"
    assert len(attempts) == 1
    assert (cache.counters.videos_decoded, cache.counters.videos_seen) == (0, 1)
    write_video(root / "bad.mp4", 16, 8)
    assert len(cache.get(video("bad")).times) == 4


def test_a_file_that_appears_later(root: Path) -> None:
    cache = cache_of(root, ONE_VIDEO)
    with pytest.raises(DecodeError) as caught:
        cache.get(video("late"))
    assert caught.value.reason == "missing"
    write_video(root / "late.mp4", 16, 8)
    assert len(cache.get(video("late")).times) == 4


def test_images_are_not_videos(root: Path) -> None:
    Image.new("RGB", (30, 30)).save(root / "p.png")
    cache = cache_of(root, ONE_VIDEO)
    assert cache.get(Media("image", "p.png")).pixels.shape == (1, 28, 28, 3)
    assert (cache.counters.videos_decoded, cache.counters.videos_seen) == (0, 0)


@pytest.mark.parametrize("path", ["../outside.mp4", "a/../../outside.mp4", "link.mp4", "folder/outside.mp4"])
def test_paths_stay_below_the_root(root: Path, path: str) -> None:
    write_video(root.parent / "outside.mp4", 16, 8)
    (root / "link.mp4").symlink_to(root.parent / "outside.mp4")
    (root / "folder").symlink_to(root.parent)
    with pytest.raises(DecodeError, match=r"data\.root") as caught:
        cache_of(root, ONE_VIDEO).get(Media("video", path))
    assert caught.value.reason == "outside_root"


def test_links_inside_the_root_share_frames(root: Path) -> None:
    (root / "again.mp4").symlink_to(root / "a.mp4")
    cache = cache_of(root, ONE_VIDEO)
    assert cache.get(video("again")) is cache.get(video("a"))
