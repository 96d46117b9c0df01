"""How long a step waits for frames: decoded when needed, decoded ahead by processes, or read from the store.

    python scripts/bench/frames.py [--videos 12] [--workers 2] [--busy 2.0]

Makes 1080p H.264 files of 20 s and asks for 40 frames of each, as `prompt.video.fps=2` does, in steps of four videos.
Between steps the process is busy for a while, as training on a GPU is: it sleeps. What is measured is the time in which
`FrameCache.get` makes it wait; ratios are to decoding when needed, in the same run. Best of three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from visd.config import FramesSection, VideoSection
from visd.media.cache import FrameCache
from visd.types import Media

SECONDS, FPS, SIZE = 20, 24, (1920, 1080)
STEP = 4
"""Videos a step."""
SETTINGS = VideoSection(fps=2.0, max_pixels=448 * 448)
FACTOR = 28
MILLISECOND = Fraction(1, 1000)


def write_clip(
    path: Path,
    seed: int,
    *,
    seconds: int = SECONDS,
    fps: int = FPS,
    size: tuple[int, int] = SIZE,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    gaps: Sequence[int] = (),
) -> None:
    """Noise that drifts, so that frames differ and motion costs what it costs in real clips.

    `gaps` (ms) from each frame to the next, over and over, make the frame rate variable.
    """
    width, height = size
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    shown, clock = cycle(gaps), 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.options = {"preset": "ultrafast", "crf": "28", **(options or {})}
        if rotation:
            stream.set_display_rotation(rotation)
        if gaps:
            stream.codec_context.time_base = stream.time_base = MILLISECOND
        for number in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * number, 1), "rgb24")
            if gaps:
                frame.pts, frame.time_base, clock = clock, MILLISECOND, clock + next(shown)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def waited(cache: FrameCache, media: list[Media], busy: float) -> float:
    """Seconds spent waiting for frames over all steps after the first, which has nothing to hide behind."""
    total = 0.0
    for start in range(0, len(media), STEP):
        cache.prefetch(media[start : start + 2 * STEP])
        began = time.perf_counter()
        for item in media[start : start + STEP]:
            cache.get(item).pixels.sum()  # a mapped frame is read only when it is used
        if start:
            total += time.perf_counter() - began
        time.sleep(busy)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--busy", type=float, default=2.0, help="s of training between two steps")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        media = [Media("video", f"{number}.mp4") for number in range(args.videos)]
        for number, item in enumerate(media):
            write_clip(root / item.path, number)
        store = str(root / "store")

        def fresh(**fields: object) -> Callable[[], FrameCache]:
            return lambda: FrameCache(root, SETTINGS, FACTOR, FramesSection(**fields))  # type: ignore[arg-type]

        ways = {
            "decoded when needed": fresh(workers=0),
            f"decoded ahead by {args.workers} processes": fresh(workers=args.workers),
            "read from the store": fresh(workers=0, store=store),
        }
        waited(ways["read from the store"](), media, 0.0)  # fills it
        waited(fresh(workers=args.workers)(), media[:STEP], 0.0)  # starts the processes
        times = {name: min(waited(make(), media, args.busy) for _ in range(3)) for name, make in ways.items()}
    base = times["decoded when needed"]
    table = Table("frames", "wait a video, ms", "share of decoding when needed")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds / (args.videos - STEP) * 1000:.1f}", f"{seconds / base:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
