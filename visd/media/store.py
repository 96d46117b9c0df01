"""Decoded frames on disk, shared by processes and runs: each video is decoded once, not once a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from visd.config import VideoSection
from visd.media.hashes import FileHashes
from visd.media.video import sampling_key
from visd.types import Frames, Media, VisdError

VERSION = 1
"""Raise it with every change of what `decode` gives for the same file and settings."""

ROOM = 0.9
"""Share of the limit that is left filled when the oldest entries go."""

RECORD_BYTES = 128
"""Length of the file that says how large the folder is."""

LEFT_OVER = 3600.0
"""s after which a temporary file belongs to no running process. As often the folder is looked through for them."""


@dataclass(frozen=True)
class StoreSettings:
    """Which store."""

    folder: Path
    limit_bytes: int


class FrameStore:
    """A folder of safetensors files, one for each (bytes of the file, clip, sampling), memory-mapped when read.

    Entries are written under another name and renamed, so a reader sees a whole entry or none, whatever dies when.
    What has not been used longest goes first once the folder is over its limit. A reader keeps its frames even if
    their entry is deleted meanwhile. The folder's size stands in a file of its own that every writer adds to, so that
    no process has to look at all entries; it is counted anew whenever room is made, and once an hour.
    """

    def __init__(self, settings: StoreSettings):
        self.folder = settings.folder
        self.limit_bytes = settings.limit_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hashes = FileHashes(self.folder / "hashes")

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
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            try:
                save_file({"pixels": torch.from_numpy(frames.pixels)}, temporary, {"facts": json.dumps(facts)})
                self._add(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise VisdError(
                f"data.frames.store: {self.folder} cannot be written ({error}); "
                "free space, lower data.frames.store_gb or name another folder."
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of every entry."""
        for path in self.folder.glob("??/*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process may be making room
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _add(self, temporary: Path, path: Path) -> None:
        """Give an entry its name. Its size is counted first: a process that dies in between leaves a size too large."""
        with FileLock(self.folder / "lock"):
            record = self._record()
            if record is None or time.time() - record["swept"] > LEFT_OVER:
                record = self._swept()
            record["bytes"] += temporary.stat().st_size
            self._write(record)
            temporary.rename(path)
            if record["bytes"] > self.limit_bytes:
                self._make_room(record["swept"])

    def _record(self) -> dict[str, Any] | None:
        """Bytes of all entries, and when the folder was last looked through (s); None where that is not known."""
        try:
            record = json.loads((self.folder / "size.json").read_text(encoding="ascii"))
            return {"bytes": int(record["bytes"]), "swept": float(record["swept"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None  # the first writer, or one was killed while it wrote: the entries themselves tell

    def _write(self, record: dict[str, Any]) -> None:
        """In place and always as long: file systems that guard against lost data flush a file that is replaced."""
        handle = os.open(self.folder / "size.json", os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(handle, json.dumps(record).ljust(RECORD_BYTES).encode("ascii"), 0)
        finally:
            os.close(handle)

    def _swept(self) -> dict[str, Any]:
        """Delete what killed processes and forgotten files left; the size of what remains."""
        now = time.time()
        for temporary in self.folder.glob("??/*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if now - temporary.stat().st_mtime > LEFT_OVER:
                    temporary.unlink()
        self.hashes.forget_old()
        return {"bytes": sum(size for _, size, _ in self._entries()), "swept": now}

    def _make_room(self, swept: float) -> None:
        entries = sorted(self._entries())
        held = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if held <= ROOM * self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            held -= size
        self._write({"bytes": held, "swept": swept})


@lru_cache(maxsize=8)
def open_store(settings: StoreSettings) -> FrameStore:
    """This process's view of a store."""
    return FrameStore(settings)


def entry_key(path: Path, media: Media, settings: VideoSection, factor: int, hashes: FileHashes) -> str:
    """Names an entry by all that decides its frames. The file's name is not part of it.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashes.digest(path)
    clip = (media.kind, media.start, media.end, media.fps)
    parts = (VERSION, digest, *clip, *sampling_key(settings, factor), *media.also)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
