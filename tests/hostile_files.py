"""A folder of files as users have them: odd ones that can be read, and broken ones that cannot."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from PIL import Image

from tests.media_files import write_sound, write_video
from visd.config import FramesSection, VideoSection
from visd.media.cache import FrameCache
from visd.media.decoders import Decoders
from visd.media.errors import DecodeError
from visd.types import Media


def write_hostile_folder(folder: Path) -> dict[str, str]:
    """Write the files; what is to become of each: `ok` or a reason of `visd.media.errors`."""
    folder.mkdir(parents=True)
    whole = write_video(folder / "whole.mp4", 40, 8, size=(320, 240), noise=True)
    (folder / "deeper").mkdir()
    for name, (write, _) in FILES.items():
        write(folder / name)
    for share in (2, 10, 50, 90):
        data = whole.read_bytes()
        (folder / f"cut_{share}.mp4").write_bytes(data[: len(data) * share // 100])
    cuts = {f"cut_{share}.mp4": "unreadable" for share in (2, 10, 50, 90)}  # the index stands at the end of the file
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    return {name: fate for name, (_, fate) in FILES.items()} | cuts | {"whole.mp4": "ok", "dangling.mp4": "missing"}


def found_fates(decoders: Decoders, folder: Path, names: list[str], settings: VideoSection) -> dict[str, str]:
    """What becomes of each file in processes of its own, as in training."""
    cache = FrameCache(folder, settings, 28, FramesSection(workers=0))
    cache._decoders = decoders
    media = {name: Media("video", name) for name in names}
    cache.prefetch(media.values())
    found = {}
    for name, item in media.items():
        try:
            found[name] = "ok" if len(cache.get(item).times) >= settings.min_frames else "too few"
        except DecodeError as error:
            assert Path(error.path) == (folder / name).resolve()
            found[name] = error.reason
    return found


def _bytes(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _video(count: int = 16, fps: Fraction | int = 8, **options: object) -> Callable[[Path], object]:
    return lambda path: write_video(path, count, fps, **options)  # type: ignore[arg-type]


def _faststart_cut(share: float) -> Callable[[Path], object]:
    """The index stands at the beginning and promises more than is there."""

    def write(path: Path) -> None:
        write_video(path, 40, 8, size=(320, 240), noise=True, container_options={"movflags": "faststart"})
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return write


def _in_header(box: bytes, skip: int, value: bytes) -> Callable[[Path], object]:
    """A video whose header says something untrue `skip` bytes into its box."""

    def write(path: Path) -> None:
        write_video(path, 16, 8)
        data = bytearray(path.read_bytes())
        at = data.index(box) + len(box) + skip
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return write


def _hole(path: Path) -> None:
    write_video(path, 40, 8, size=(320, 240), options={"g": "250"}, noise=True)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 4000 : middle + 4000] = b"\xff" * 8000
    path.write_bytes(data)


def _playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:10,\nwhole.mp4\n#EXT-X-ENDLIST\n")


def _picture(path: Path) -> None:
    Image.new("RGB", (64, 48), (200, 10, 10)).save(path, "JPEG")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero.mp4": (_bytes(b""), "empty"),
    "one_byte.mp4": (_bytes(b"\0"), "unreadable"),
    "noise.mp4": (_bytes(bytes(range(256)) * 64), "unreadable"),
    "zeros.mp4": (_bytes(bytes(100_000)), "unreadable"),
    "header_only.mp4": (_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"), "unreadable"),
    "page.mp4": (_bytes(b"<html><body>404 not found</body></html>"), "unreadable"),
    "playlist.mp4": (_playlist, "unreadable"),
    "picture.mp4": (_picture, "unreadable"),
    "faststart_cut_20.mp4": (_faststart_cut(0.2), "truncated"),
    "faststart_cut_60.mp4": (_faststart_cut(0.6), "truncated"),
    "faststart_cut_99.mp4": (_faststart_cut(0.99), "truncated"),
    "cut.mkv": (_faststart_cut(0.5), "truncated"),
    "cut.ts": (_faststart_cut(0.01), "too_short"),
    "hole.mp4": (_hole, "unreadable"),
    "huge_claim.mp4": (
        _in_header(b"avc1", 24, struct.pack(">HH", 65535, 65535)),
        "ok",
    ),  # the stream itself says 64 x 48
    "long_claim.mp4": (_in_header(b"mvhd", 16, struct.pack(">I", 0x7FFFFFFF)), "ok"),  # the stamps of the frames count
    "no_clock.mp4": (
        _in_header(b"mdhd", 12, struct.pack(">I", 0)),
        "too_short",
    ),  # by stamps of no unit, most frames are hidden
    "one_frame.mp4": (_video(1), "too_short"),
    "sound.mp4": (write_sound, "no_video_stream"),
    "slow.mp4": (_video(8, Fraction(1, 10)), "ok"),
    "fast.mp4": (_video(240, 240), "ok"),
    "variable.mp4": (_video(8, 8, stamps=[0, 10, 500, 510, 2000, 2010, 9000, 9010]), "ok"),
    "odd_size.mp4": (_video(size=(67, 45), pixel_format="yuv444p"), "ok"),
    "sliver.mp4": (_video(size=(2000, 4)), "bad_size"),
    "rotated.mp4": (_video(rotation=90), "ok"),
    "deep.mp4": (_video(pixel_format="yuv420p10le"), "ok"),
    "wrong_extension.txt": (lambda path: write_video(path.with_suffix(".mp4")).rename(path), "ok"),
    "deeper/space and ümläut 影.mp4": (_video(), "ok"),
    "-dash.mp4": (_video(), "ok"),
    "file:colon.mp4": (_video(), "ok"),
}

DIFFERENT_FATES = {"decord": {"rotated.mp4": "unsupported"}}
"""By backend, where they are others than PyAV's."""
