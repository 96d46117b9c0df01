"""Sizes of media files, read from their headers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from visd.media.container import Deadline, check_file, open_video
from visd.media.errors import DecodeError

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
