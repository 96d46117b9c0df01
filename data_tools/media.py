"""What media files are: their size from the header, and all that can be known by opening them and decoding a few frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data_tools.fingerprints import FRAMES, frame_hash, hash_text
from visd.media.backends import read_frames
from visd.media.container import Deadline, FrameIndex, check_file, index_frames, open_video
from visd.media.errors import DecodeError
from visd.types import MediaKind

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
HEADER_SECONDS = 20.0
"""s, longest that opening a file may take."""
QUARTER_TURNED = (5, 6, 7, 8)
"""Values of an image's EXIF orientation that exchange width and height."""


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, as it is shown: after the rotation that the file asks for.

    Raises:
        DecodeError: the file cannot be opened.
    """
    check_file(path)
    if path.suffix.lower() in IMAGES:
        return _image_size(path)
    with open_video(path, Deadline(path, HEADER_SECONDS)) as (_, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
    return int(width), int(height)


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) in QUARTER_TURNED
            return (image.height, image.width) if turned else (image.width, image.height)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DecodeError("unreadable", path, f"this is no image file ({error}).") from error


@dataclass(frozen=True)
class Facts:
    """What a sound media file is."""

    duration: float  # s; 0 of an image
    fps: float  # declared frames per second; measured where none is declared
    frames: int
    width: int  # pixels, as it is shown
    height: int
    codec: str
    keyframes: int  # frames that decoding can start from
    keyframe_gap: float  # s, the longest way from one of them to the next, or to the end
    fingerprint: str  # of its first, middle and last frame


def probe_file(path: Path, kind: MediaKind, seconds: float, frames: int = 3) -> Facts:
    """Open a file and decode some of its frames.

    Args:
        seconds: longest time it may take, checked between packets and frames.
        frames: of a video, how many are decoded, evenly from the first to the last; 0 decodes all.

    Raises:
        DecodeError: it is broken, or a frame cannot be decoded.
    """
    check_file(path)
    return _probe_image(path) if kind == "image" else _probe_video(path, Deadline(path, seconds), frames)


def _probe_image(path: Path) -> Facts:
    try:
        with Image.open(path) as image:
            codec = (image.format or "").lower()
            shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "truncated" if "truncated" in str(error) else "unreadable"
        raise DecodeError(reason, path, f"the image cannot be decoded ({error}).") from error
    height, width = shown.shape[:2]
    return Facts(0.0, 0.0, 1, width, height, codec, 1, 0.0, hash_text([frame_hash(shown)] * FRAMES))


def _probe_video(path: Path, deadline: Deadline, frames: int) -> Facts:
    with open_video(path, deadline) as (container, stream):
        index = index_frames(container, stream, deadline)
        codec = str(stream.codec_context.name)
    count = len(index.times)
    if not index.complete:
        raise DecodeError("truncated", path, f"the file breaks off at {index.end:.3f} s; get it whole.")
    if index.damaged:
        raise DecodeError("unreadable", path, f"the data of {len(index.damaged)} of {count} frames is damaged.")
    ends = sorted({0, count // 2, count - 1})
    numbers = sorted({*ends, *np.linspace(0, count - 1, frames or count).round().astype(int).tolist()})
    hashes, width, height = [], 0, 0
    for number, pixels in zip(numbers, read_frames("pyav", index, numbers, deadline), strict=True):
        height, width = pixels.shape[:2]
        if number in ends:
            hashes.append(frame_hash(pixels))
    return Facts(
        duration=index.end,
        fps=index.rate or count / index.end,
        frames=count,
        width=width,
        height=height,
        codec=codec,
        keyframes=len(index.keyframes),
        keyframe_gap=_longest_gap(index),
        fingerprint=hash_text([*hashes, *hashes[-1:] * (FRAMES - len(hashes))]),
    )


def _longest_gap(index: FrameIndex) -> float:
    """s; 0 of a file without key frames, which cannot be decoded anyway."""
    by_stamp = dict(zip(index.stamps, index.times, strict=True))
    starts = [by_stamp[stamp] for stamp in index.keyframes]
    return max((b - a for a, b in zip(starts, [*starts[1:], index.end])), default=0.0)
