"""Decoded frames in memory, so that a run decodes each video once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

from visd.config import VideoSection
from visd.media.errors import DecodeError
from visd.media.video import DecodeCounter, decode, decode_image, sampling_key
from visd.types import Frames, Media


class FrameCache:
    """Frames by (file, its size and time of change, clip, sampling), least recently used out first.

    A file that could not be decoded is remembered too and is not tried again until it changes. Not shared between
    processes: each rank has its own.
    """

    def __init__(self, root: Path, settings: VideoSection, factor: int, capacity_bytes: int):
        self.root = root.resolve()
        self.settings = settings
        self.factor = factor
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self.counters = DecodeCounter()
        self._frames: OrderedDict[Hashable, Frames] = OrderedDict()
        self._failures: dict[Hashable, DecodeError] = {}
        self._seen: set[Hashable] = set()

    def get(self, media: Media) -> Frames:
        """Decoded frames of the medium.

        Raises:
            DecodeError: the file cannot give them.
        """
        path = self.resolve(media.path)
        key = self._key(path, media)
        if key in self._frames:
            self._frames.move_to_end(key)
            return self._frames[key]
        if key in self._failures:
            known = self._failures[key]
            raise DecodeError(known.reason, known.path, known.message)
        if media.kind == "video" and key not in self._seen:
            self._seen.add(key)
            self.counters.videos_seen += 1
        try:
            frames = self._decode(path, media)
        except DecodeError as error:
            self._failures[key] = error
            raise
        self._keep(key, frames)
        return frames

    def resolve(self, relative: str) -> Path:
        """The file's real path, which must lie below the root, symbolic links followed."""
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root):
            raise DecodeError(
                "outside_root",
                relative,
                f"the path leads out of {self.root}; set data.root to a folder above the file.",
            )
        return path

    def _key(self, path: Path, media: Media) -> Hashable:
        try:
            status = path.stat()
            identity: tuple[int, int] | None = (status.st_mtime_ns, status.st_size)
        except OSError:
            identity = None
        sampling = sampling_key(self.settings, self.factor)
        return (media.kind, str(path), identity, media.start, media.end, media.fps, sampling)

    def _decode(self, path: Path, media: Media) -> Frames:
        if media.kind == "image":
            return decode_image(path, settings=self.settings, factor=self.factor)
        frames = decode(
            path, start=media.start, end=media.end, fps=media.fps, settings=self.settings, factor=self.factor
        )
        self.counters.videos_decoded += 1
        return frames

    def _keep(self, key: Hashable, frames: Frames) -> None:
        self._frames[key] = frames
        self.held_bytes += frames.pixels.nbytes
        while self.held_bytes > self.capacity_bytes:
            _, oldest = self._frames.popitem(last=False)
            self.held_bytes -= oldest.pixels.nbytes
