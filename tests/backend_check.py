"""What a decoding backend makes of real files. A program too, for a backend that may only be loaded in a process of its own.

python -m tests.backend_check torchcodec FOLDER       prints what it found as JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile_files import DIFFERENT_FATES, found_fates, write_hostile_folder
from tests.media_files import write_trimmed, write_video
from visd.config import ConfigError, VideoSection
from visd.media.backends import load_backend
from visd.media.decoders import Decoders
from visd.media.errors import DecodeError
from visd.media.video import decode
from visd.types import Frames

SETTINGS = VideoSection(fps=2, min_frames=4, max_frames=8, min_pixels=784, max_pixels=784 * 16, timeout=20)
NOT_LOADED = 3
"""Exit status."""


def _video(**options: Any) -> Callable[[Path], object]:
    return lambda path: write_video(path, **options)


FILES: dict[str, Callable[[Path], object]] = {
    "short.mp4": _video(count=100, fps=25, options={"g": "12", "bf": "0"}),
    "long.mp4": _video(count=300, fps=25, options={"g": "250", "bf": "0"}),
    "b_frames.mp4": _video(count=60, fps=25, options={"g": "25", "bf": "3"}),
    "variable.mp4": _video(count=8, stamps=[0, 10, 500, 510, 2000, 2010, 9000, 9010]),
    "rotated.mp4": _video(size=(66, 48), rotation=90),
    "upside_down.mp4": _video(size=(66, 48), rotation=180),
    "odd_size.mp4": _video(size=(67, 45), pixel_format="yuv444p"),
    "ten_bit.mp4": _video(pixel_format="yuv420p10le", audio=True),
    "large.mp4": _video(size=(1280, 720)),
    "matroska.mkv": _video(count=40, options={"bf": "2"}),
    "open_groups.mp4": _video(
        count=100, fps=25, options={"x264-params": "bframes=3:open-gop=1:scenecut=0:keyint=25:min-keyint=25"}
    ),
    "intra_refresh.mp4": _video(count=100, fps=25, options={"x264-params": "bframes=3:intra-refresh=1:keyint=25"}),
    "trimmed.mp4": write_trimmed,
}


def differences(backend: str, folder: Path) -> dict[str, float | str]:
    """By file, how far the pixels are from PyAV's on the mean in the worst frame, or why the backend refuses it."""
    found: dict[str, float | str] = {}
    for name, write in FILES.items():
        write(folder / name)
        own = read("pyav", folder / name)
        try:
            other = read(backend, folder / name)
        except DecodeError as error:
            found[name] = error.reason
            continue
        assert (own.indices, own.times) == (other.indices, other.times)
        found[name] = float(np.abs(own.pixels.astype(int) - other.pixels).mean(axis=(1, 2, 3)).max())
    return found


def read(backend: str, path: Path) -> Frames:
    return decode(path, start=None, end=None, fps=None, settings=replace(SETTINGS, backend=backend), factor=28)


def main() -> None:
    backend, folder = sys.argv[1], Path(sys.argv[2])
    try:
        load_backend(backend)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_LOADED)
    expected = write_hostile_folder(folder / "hostile") | DIFFERENT_FATES.get(backend, {})
    decoders = Decoders(2, 400)
    fates = found_fates(decoders, folder / "hostile", list(expected), replace(SETTINGS, backend=backend))
    decoders.close()
    print(json.dumps({"files": differences(backend, folder), "fates": fates, "expected": expected}))


if __name__ == "__main__":
    main()
