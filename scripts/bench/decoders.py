"""Frames per second by decoding backend and kind of file, as ratios to PyAV, and whether the frames are the right ones.

    python scripts/bench/decoders.py [--seconds 20] [--kinds "with sound" "sound only"]

torchcodec takes part where it can be loaded. In an environment made by `make env`, without an FFmpeg of its own:

    export LD_LIBRARY_PATH="$(.venv/bin/python scripts/setup/ffmpeg_links.py .venv/ffmpeg)"
    PYTHONPATH=.venv/torchcodec .venv/bin/python scripts/bench/decoders.py

Makes H.264 files, without sound if not said otherwise, and reads from each the frames that training takes: two a second, and 16 of the whole. What is measured
is from opening the file to the last RGB frame, without the index of frames, which all backends share. Best of three. A
frame is right if it is closer to that frame of a plain decoding from the first to the last than to its neighbours.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.bench.frames import write_clip
from visd.config import ConfigError
from visd.media.backends import load_backend, read_frames
from visd.media.backends.pyav import upright
from visd.media.container import Deadline, FrameIndex, index_frames, open_video
from visd.media.errors import DecodeError

FPS = 25
USUAL: dict[str, Any] = {"size": (640, 360), "options": {"g": "250"}}
KINDS: dict[str, dict[str, Any]] = {
    "short groups (12)": {"options": {"g": "12"}},
    "long groups (250)": {},
    "1080p": {"size": (1920, 1080)},
    "variable rate": {"gaps": (20, 60, 35, 45)},
    "B-frames": {"options": {"g": "50", "bf": "3"}},
    "rotated": {"rotation": 90},
    "odd size": {"size": (641, 361), "pixel_format": "yuv444p"},
    "10-bit": {"pixel_format": "yuv420p10le"},
    "open groups": {"options": {"x264-params": "open-gop=1:scenecut=0:keyint=50:min-keyint=50:bframes=3"}},
    "intra refresh": {"options": {"x264-params": "intra-refresh=1:keyint=50:bframes=3"}},
    "trimmed copy": {"options": {"g": "50"}},
    "with sound": {},
    "no index (MPEG-TS)": {},
    "index lost (MP4)": {},
    "sound only": {},
}
BACKENDS = ("pyav", "decord", "torchcodec")
THUMBNAIL = 4
"""Only every so many rows and columns are compared."""


def trim(path: Path) -> None:
    """Cut the first ten frames off as `ffmpeg -ss 0.4 -c copy` does: they stay, and an edit list hides them."""
    whole = path.rename(path.with_name("whole.mp4"))
    hiding = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(whole)) as source, av.open(str(path), "w", options=hiding) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(10 / FPS / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)


def add_sound(path: Path, picture: bool = True) -> None:
    """Silence beside the picture, or in its place."""
    mute = path.rename(path.with_name("mute.mp4"))
    with av.open(str(mute)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        seconds = float(stream.duration * stream.time_base)
        copy = target.add_stream_from_template(stream) if picture else None
        sound = target.add_stream("aac", rate=16000)
        packets = [packet for packet in source.demux(stream) if packet.dts is not None] if copy else []
        for start in range(0, int(seconds * 16000), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            packets += sound.encode(frame)
        for packet in sorted([*packets, *sound.encode()], key=lambda packet: packet.dts * packet.time_base):
            if packet.stream is stream:
                packet.stream = copy
            target.mux(packet)


def into_stream(path: Path) -> None:
    """The same packets as they are broadcast, in a file that says nowhere where its frames are."""
    whole = path.rename(path.with_name("whole.mp4"))
    with av.open(str(whole)) as source, av.open(str(path), "w", format="mpegts") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)


def lose_index(path: Path) -> None:
    """What a recording that was broken off leaves: frames without the table that stands after them."""
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])


CHANGES: dict[str, Callable[[Path], None]] = {
    "trimmed copy": trim,
    "with sound": add_sound,
    "sound only": lambda path: add_sound(path, picture=False),
    "no index (MPEG-TS)": into_stream,
    "index lost (MP4)": lose_index,
}
"""What is done to a file of some kinds once it is written."""


def plain_decoding(path: Path) -> list[NDArray[np.int16]]:
    """Thumbnails of all frames."""
    converter = VideoReformatter()
    with av.open(str(path)) as container:
        return [thumbnail(upright(frame, converter)) for frame in container.decode(video=0)]


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    return pixels[::THUMBNAIL, ::THUMBNAIL].astype(np.int16)


def is_right(pixels: NDArray[np.uint8], number: int, everything: list[NDArray[np.int16]]) -> bool:
    small = thumbnail(pixels)
    if small.shape != everything[number].shape:
        return False
    near = range(max(0, number - 2), min(len(everything), number + 3))
    distances = {other: float(np.abs(small - everything[other]).mean()) for other in near}
    return min(distances, key=distances.__getitem__) == number


def measure(
    backend: str, path: Path, index: FrameIndex, numbers: list[int], everything: list[NDArray[np.int16]]
) -> tuple[float, int]:
    """Seconds that the backend took, and how many frames were right."""
    right, spent, began = 0, 0.0, time.perf_counter()
    for slot, pixels in enumerate(read_frames(backend, index, numbers, Deadline(path, 60))):
        spent += time.perf_counter() - began
        right += is_right(pixels, numbers[slot], everything)
        began = time.perf_counter()
    return spent + time.perf_counter() - began, right


def compare(
    backends: list[str], path: Path, index: FrameIndex, numbers: list[int], everything: list[NDArray[np.int16]]
) -> list[str]:
    """A cell a backend. They take turns, so that what else the machine does falls on all of them."""
    best: dict[str, float] = {}
    verdict: dict[str, str] = {}
    for _ in range(3):
        for backend in backends:
            try:
                seconds, right = measure(backend, path, index, numbers, everything)
            except DecodeError as error:
                verdict[backend] = f"refused: {error.reason}"
                continue
            best[backend] = min(best.get(backend, seconds), seconds)
            verdict[backend] = f"{right} of {len(numbers)}"
    base = best[backends[0]]
    return [f"{base / best[b]:.2f}, {verdict[b]}" if b in best else verdict[b] for b in backends]


def loadable(console: Console) -> list[str]:
    found = []
    for backend in BACKENDS:
        try:
            load_backend(backend)
            found.append(backend)
        except ConfigError as error:
            console.print(f"Left out: {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20, help="length of the files")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of files; default: all")
    args = parser.parse_args()
    console = Console()
    backends = loadable(console)
    table = Table("file", "frames", *(f"{backend}, right" for backend in backends))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for kind in args.kinds:
            write_clip(path, 0, seconds=args.seconds, fps=FPS, **{**USUAL, **KINDS[kind]})
            CHANGES.get(kind, lambda path: None)(path)
            try:
                with open_video(path, deadline := Deadline(path, 60)) as (container, stream):
                    index = index_frames(container, stream, deadline)
            except DecodeError as error:
                table.add_row(kind, "any", *[f"refused: {error.reason}"] * len(backends))
                continue
            everything = plain_decoding(path)
            for label, count in (("2 a second", 2 * args.seconds), ("16 of all", 16)):
                numbers = np.linspace(0, len(everything) - 1, count).round().astype(int).tolist()
                table.add_row(kind, label, *compare(backends, path, index, numbers, everything))
    console.print(table)


if __name__ == "__main__":
    main()
