"""Whoever reads the frames, they are the same frames; what a backend cannot be trusted with, it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scripts.setup.ffmpeg_links import library_path
from tests.backend_check import NOT_LOADED, SETTINGS, differences
from tests.media_files import write_video
from tests.tree import ROOT
from visd import config as config_module
from visd.config import ConfigError, FramesSection, VideoSection
from visd.media import backends
from visd.media.backends.shown import check_shown
from visd.media.cache import FrameCache
from visd.media.container import Deadline, FrameIndex
from visd.media.errors import DecodeError
from visd.types import Media

CLOSE = 0.5
"""Mean difference of pixels; frames of these files differ by 4 from one to the next."""


def check_files(found: dict[str, float | str], misread: set[str]) -> None:
    assert {name for name, what in found.items() if what == "unsupported"} == misread
    assert not {name: what for name, what in found.items() if name not in misread and not (what <= CLOSE)}  # type: ignore[operator]


def test_decord_shows_the_same_frames_or_none(tmp_path: Path) -> None:
    misread = {"rotated.mp4", "upside_down.mp4", "open_groups.mp4", "intra_refresh.mp4", "trimmed.mp4"}
    check_files(differences("decord", tmp_path), misread)


@pytest.mark.slow
def test_torchcodec_shows_the_same_frames_or_none(tmp_path: Path) -> None:
    """In a process of its own: its presence in this one would change what other libraries do."""
    places = [str(ROOT), str(Path(sys.prefix) / "torchcodec"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "LD_LIBRARY_PATH": library_path(tmp_path / "ffmpeg"),
    }
    command = [sys.executable, "-m", "tests.backend_check", "torchcodec", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    if ran.returncode == NOT_LOADED:
        pytest.skip(ran.stderr.strip().splitlines()[-1])
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    check_files(found["files"], {"intra_refresh.mp4", "trimmed.mp4"})
    assert found["fates"] == found["expected"]


def test_the_choice_reaches_the_frames_and_the_store(tmp_path: Path) -> None:
    """Ten bits become eight in different ways, so frames of one backend must not be taken for those of another."""
    write_video(tmp_path / "a.mp4", pixel_format="yuv420p10le")
    section = FramesSection(workers=0, store=str(tmp_path / "store"))
    caches = {name: FrameCache(tmp_path, replace(SETTINGS, backend=name), 28, section) for name in ("pyav", "decord")}
    pixels = {name: cache.get(Media("video", "a.mp4")).pixels for name, cache in caches.items()}
    assert [cache.counters.videos_decoded for cache in caches.values()] == [1, 1]
    assert not np.array_equal(pixels["pyav"], pixels["decord"])


def test_a_backend_that_is_not_there_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.delitem(sys.modules, "visd.media.backends.decord", raising=False)
    with pytest.raises(ConfigError, match=r"^prompt\.video\.backend: decord cannot be loaded .*extra `decord`"):
        FrameCache(tmp_path, VideoSection(backend="decord"), 28, FramesSection(workers=0))


def test_every_choice_has_a_module() -> None:
    modules = {path.stem for path in Path(backends.__file__).parent.glob("*.py")} - {"__init__", "shown"}
    assert set(config_module.CHOICES["prompt.video.backend"]) == modules


INDEX = FrameIndex(
    stamps=(0, 10, 12, 40),
    times=(0.0, 1.0, 1.2, 4.0),
    end=5.0,
    rate=1.0,
    keyframes=(0,),
    damaged=frozenset({12}),
    complete=True,
    stream=0,
    one_thread=True,
)
DEADLINE = Deadline(Path("a.mp4"), 3600)  # made when tests are collected


@pytest.mark.parametrize(
    ("number", "at"), [(0, 1.0), (1, 1.1), (1, 0.4), (2, 1.0), (3, 1.2), (3, 4.6), (1, float("nan"))]
)
def test_another_frame_than_asked_for_is_refused(number: int, at: float) -> None:
    check_shown("any", INDEX, number, INDEX.times[number] + 0.09, DEADLINE)
    with pytest.raises(DecodeError, match=r"a\.mp4.*prompt\.video\.backend=pyav") as caught:
        check_shown("any", INDEX, number, at, DEADLINE)
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize(
    ("given", "failure", "numbers", "error", "message"),
    [
        (1, None, [0, 3], DecodeError, "4.000 s.*ends before it"),
        (1, RuntimeError("broken"), [0, 1], DecodeError, "1.000 s.*broken"),
        (3, None, [0, 1, 2], DecodeError, "1.200 s.*damaged"),
        (0, RuntimeError("you can't allocate memory"), [0], MemoryError, "memory"),
        (0, ZeroDivisionError("of mine"), [0], ZeroDivisionError, "of mine"),
    ],
)
def test_never_fewer_frames_and_every_failure_is_told(
    monkeypatch: pytest.MonkeyPatch,
    given: int,
    failure: Exception | None,
    numbers: list[int],
    error: type[Exception],
    message: str,
) -> None:
    def frames(*_: object) -> Iterator[np.ndarray]:
        yield from [np.zeros((2, 2, 3), np.uint8)] * given
        if failure is not None:
            raise failure

    backend = SimpleNamespace(ERRORS=(RuntimeError,), read=frames)
    monkeypatch.setattr(backends, "load_backend", lambda name: backend)
    with pytest.raises(error, match=message):
        list(backends.read_frames("any", INDEX, numbers, DEADLINE))
