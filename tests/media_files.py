"""Real video files for tests, written by real encoders."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)


def painted(count: int, width: int, height: int) -> list[NDArray[np.uint8]]:
    """RGB frames whose grey level tells their number (20 + 4 a frame, from anew after 58), with a red corner at the top left."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 20 + 4 * (number % 58), np.uint8)
        frame[: height // 4, : width // 4] = (255, 0, 0)
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    count: int = 16,
    fps: Fraction | int = 8,
    size: tuple[int, int] = (64, 48),
    *,
    stamps: Sequence[int] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    audio: bool = False,
    noise: bool = False,
) -> Path:
    """A file with `painted` frames, or with `noise`; `stamps` (ms) makes its frame rate variable."""
    width, height = size
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.options = options or {}
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16000) if audio else None
        if stamps is not None:
            stream.codec_context.time_base = MILLISECOND
            stream.time_base = MILLISECOND
        for number, pixels in enumerate(painted(count, width, height)):
            shown = random.integers(0, 255, pixels.shape, np.uint8) if noise else pixels
            frame = av.VideoFrame.from_ndarray(shown, "rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            container.mux(_silence(sound, float(count / Fraction(fps))))
    return path


def write_trimmed(path: Path) -> Path:
    """Frames 10 to 59 of a file, cut as `ffmpeg -ss -c copy` does: those before stay, and an edit list hides them."""
    whole = write_video(path.with_suffix(".mov"), 60, 25, options={"g": "30", "bf": "0"})
    hiding = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(whole)) as source, av.open(str(path), "w", options=hiding) as target:
        stream = source.streams.video[0]
        assert stream.time_base is not None
        copy, shift = target.add_stream_from_template(stream), round(10 / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    return path


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    """A file with audio only."""
    with av.open(str(path), "w") as container:
        container.mux(_silence(container.add_stream("aac", rate=16000), seconds))
    return path


def frame_number(pixels: NDArray[np.uint8]) -> float:
    """Which of the `painted` frames this is, by its grey level (lossy coding moves it by a fraction)."""
    height, width = pixels.shape[:2]
    return float((pixels[height // 2 :, width // 2 :].mean() - 20) / 4)


def _silence(stream: av.AudioStream, seconds: float) -> list[av.Packet]:
    packets = []
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        packets += stream.encode(frame)
    return packets + stream.encode()
