"""Decoding in other processes: the same frames, and whatever a file does to them costs that file only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.hostile_files import DIFFERENT_FATES, found_fates, write_hostile_folder
from tests.media_files import write_video
from tests.runs import small_run
from tests.tree import ROOT
from visd.config import FramesSection, VideoSection
from visd.media import decoders as decoders_module
from visd.media.cache import FrameCache
from visd.media.decoders import Decoders, DecodeTask
from visd.media.errors import DecodeError
from visd.media.video import decode
from visd.types import Frames, Media

SETTINGS = VideoSection(fps=2, min_frames=4, max_frames=8, min_pixels=784, max_pixels=784 * 16, timeout=20)


class Hanging(DecodeTask):
    """A call into a decoder that never returns."""

    def decode(self) -> Frames:
        time.sleep(600)
        raise AssertionError


class Crashing(DecodeTask):
    """A decoder with a bug."""

    def decode(self) -> Frames:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class Greedy(DecodeTask):
    """A decoder that believes a header."""

    def decode(self) -> Frames:
        pixels = np.ones((400, 1000, 1000), np.uint8)
        raise AssertionError(pixels.sum())


class Resizing(DecodeTask):
    """As torch fails where numpy would raise MemoryError."""

    def decode(self) -> Frames:
        raise AssertionError(torch.empty(400, 1000, 1000, dtype=torch.uint8).shape)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    started = Decoders(2, 200)
    yield started
    started.close()


def task(path: Path, kind: type[DecodeTask] = DecodeTask) -> DecodeTask:
    return kind(path, Media("video", path.name), SETTINGS, 28)


def cache_with(decoders: Decoders, root: Path) -> FrameCache:
    cache = FrameCache(root, SETTINGS, 28, FramesSection(workers=0))
    cache._decoders = decoders
    return cache


def test_the_same_frames_as_here(decoders: Decoders, tmp_path: Path) -> None:
    tasks = [task(write_video(tmp_path / f"{n}.mp4", 20 + n, 8)) for n in range(5)]
    for one, future in [(one, decoders.submit(one)) for one in tasks]:
        frames, here = decoders.result(one, future).frames, one.decode()
        assert frames is not None
        assert np.array_equal(frames.pixels, here.pixels)
        assert (frames.times, frames.indices, frames.duration) == (here.times, here.indices, here.duration)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Hanging, "timeout"), (Crashing, "crashed"), (Greedy, "memory"), (Resizing, "memory")]
)
def test_what_a_file_does_costs_that_file_only(
    decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[DecodeTask], reason: str
) -> None:
    good, bad = write_video(tmp_path / "good.mp4"), tmp_path / "bad.mp4"
    monkeypatch.setattr(decoders_module, "GRACE", 1.0 - SETTINGS.timeout)
    evil = decoders.submit(task(bad, kind))
    monkeypatch.undo()
    others = [decoders.submit(task(good)) for _ in range(4)]
    began = time.monotonic()
    with pytest.raises(DecodeError, match=r"bad\.mp4") as caught:
        decoders.result(task(bad), evil)
    assert caught.value.reason == reason and time.monotonic() - began < 15
    done = [decoders.result(task(good), future).frames for future in others]
    assert all(frames is not None and len(frames.times) == 4 for frames in done)


def test_frames_are_decoded_ahead_and_once(decoders: Decoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = [Media("video", write_video(tmp_path / f"{n}.mp4").name) for n in range(3)]
    cache = cache_with(decoders, tmp_path)
    sent: list[DecodeTask] = []
    original = decoders.submit
    monkeypatch.setattr(decoders, "submit", lambda one: sent.append(one) or original(one))  # type: ignore[func-returns-value]
    cache.prefetch([*media[:2], Media("video", "../outside.mp4"), Media("video", "missing.mp4")])
    cache.prefetch(media[:2])
    assert len(sent) == 3 and cache.counters.videos_decoded == 0
    for item in media:
        assert len(cache.get(item).times) == 4
    assert len(sent) == 4 and cache.counters.videos_decoded == 3
    cache.prefetch(media)
    assert len(sent) == 4
    with pytest.raises(DecodeError, match=r"missing\.mp4"):
        cache.get(Media("video", "missing.mp4"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("hostile") / "files"
    return folder, write_hostile_folder(folder)


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_every_file_of_a_hostile_folder_is_decoded_or_refused_by_its_reason(
    decoders: Decoders, hostile: tuple[Path, dict[str, str]], backend: str
) -> None:
    folder, fates = hostile
    assert len(fates) >= 25
    expected = fates | DIFFERENT_FATES.get(backend, {})
    assert found_fates(decoders, folder, list(fates), replace(SETTINGS, backend=backend)) == expected


def test_memory_stays_flat_over_500_decodes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 40, 8, size=(320, 240))
    process = psutil.Process()
    held = []
    for number in range(500):
        decode(path, start=None, end=None, fps=None, settings=SETTINGS, factor=28)
        if number % 100 == 99:
            held.append(process.memory_info().rss)
    assert held[-1] - held[0] < 8 * 2**20, held


def test_a_killed_run_leaves_no_process_behind(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    script = (
        "import os, sys; from pathlib import Path; from tests.unit.test_media_decoders import *\n"
        "d = Decoders(2, 500)\n"
        f"t = task(Path({str(tmp_path / 'a.mp4')!r}))\n"
        "for _ in range(4): f = d.submit(t)\n"
        "d.result(t, f)\n"
        "print(*[c.pid for c in psutil.Process().children(recursive=True)], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    children = [int(pid) for pid in ran.stdout.split()]
    assert len(children) >= 3, ran.stderr
    alive = psutil.wait_procs([psutil.Process(p) for p in children if psutil.pid_exists(p)], timeout=20)[1]
    assert not alive


def test_training_sees_the_same_prompts(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    here = small_run(small_world, tiny_qwen2_5_vl, tmp_path / "a")
    there = small_run(small_world, tiny_qwen2_5_vl, tmp_path / "b", "data.frames.workers=2")
    for (one, mine), (other, theirs) in zip(here.step_prompts(0), there.step_prompts(0), strict=True):
        assert one.id == other.id and mine.frame_times == theirs.frame_times
        assert mine.vision.pixel_values_videos is not None and theirs.vision.pixel_values_videos is not None
        assert mine.vision.pixel_values_videos.equal(theirs.vision.pixel_values_videos)
