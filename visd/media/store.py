"""Decoded frames on disk, shared by processes and runs: each video is decoded once, not once a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from visd.config import VideoSection
from visd.media.video import sampling_key
from visd.types import Frames, Media, VisdError

VERSION = 1
"""Raise it with every change of what `decode` gives for the same file and settings."""

ROOM = 0.9
"""Share of the limit that is left filled when the oldest entries go."""


@dataclass(frozen=True)
class StoreSettings:
    """Which store."""

    folder: Path
    limit_bytes: int


class FrameStore:
    """A folder of safetensors files, one for each (bytes of the file, clip, sampling), memory-mapped when read.

    Entries are written under another name and renamed, so a reader sees a whole entry or none, whatever dies when.
    What has not been used longest goes first once the folder is over its limit. A reader keeps its frames even if
    their entry is deleted meanwhile.
    """

    def __init__(self, settings: StoreSettings):
        self.folder = settings.folder
        self.limit_bytes = settings.limit_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._size = sum(size for _, size, _ in self._entries())  # of the folder, as far as this process knows

    def load(self, key: str) -> Frames | None:
        """The frames of an entry, mapped and not read, or None where there is no such entry."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                pixels = file.get_tensor("pixels").numpy()
            os.utime(path)
        except FileNotFoundError:
            return None
        except SafetensorError:
            # Nothing of ours is left half-written, so the disk lost it; what the video says is decoded anew.
            path.unlink(missing_ok=True)
            return None
        return Frames(pixels, tuple(facts["times"]), tuple(facts["indices"]), facts["source_fps"], facts["duration"])

    def save(self, key: str, frames: Frames) -> None:
        """Write an entry, and make room if there is too little.

        Raises:
            VisdError: the disk is full or the folder cannot be written.
        """
        path = self._path(key)
        facts = {
            "times": frames.times,
            "indices": frames.indices,
            "source_fps": frames.source_fps,
            "duration": frames.duration,
        }
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            try:
                save_file({"pixels": torch.from_numpy(frames.pixels)}, temporary, {"facts": json.dumps(facts)})
                self._size += temporary.stat().st_size
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise VisdError(
                f"data.frames.store: {self.folder} cannot be written ({error}); "
                "free space, lower data.frames.store_gb or name another folder."
            ) from error
        if self._size > self.limit_bytes:
            self._make_room()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of every entry."""
        for path in self.folder.glob("??/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process may be making room
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _make_room(self) -> None:
        with FileLock(self.folder / "lock"):
            entries = sorted(self._entries())
            self._size = sum(size for _, size, _ in entries)
            for _, size, path in entries:
                if self._size <= ROOM * self.limit_bytes:
                    break
                path.unlink(missing_ok=True)
                self._size -= size


@lru_cache(maxsize=8)
def open_store(settings: StoreSettings) -> FrameStore:
    """This process's view of a store."""
    return FrameStore(settings)


def entry_key(path: Path, media: Media, settings: VideoSection, factor: int) -> str:
    """Names an entry by all that decides its frames. The file's name is not part of it.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    digest = _digest(str(path), status.st_size, status.st_mtime_ns)
    parts = (VERSION, digest, media.kind, media.start, media.end, media.fps, *sampling_key(settings, factor))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=100_000)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file's bytes; size and time only say when it has to be read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
