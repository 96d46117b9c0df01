"""Decoding in processes of its own, so that a file that hangs, crashes or eats memory costs one sample, not the run."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from visd.config import VideoSection
from visd.media.container import check_file
from visd.media.errors import DecodeError, is_out_of_memory
from visd.media.killable import KillableWorkers
from visd.media.store import StoreSettings, entry_key, open_store
from visd.media.video import decode, decode_image
from visd.types import Frames, Media

GRACE = 5.0
"""s beyond `prompt.video.timeout`, which the reading loops check themselves, until a process is ended."""


@dataclass(frozen=True)
class Decoded:
    """What became of a medium."""

    frames: Frames | None  # None: fetch them from the store
    entry: str | None  # their key in the store, if there is one
    fresh: bool  # decoded now; False: found in the store


@dataclass(frozen=True)
class DecodeTask:
    """All that decides the frames of a medium, and where they are kept."""

    path: Path
    media: Media
    settings: VideoSection
    factor: int  # both sides become multiples of this many pixels
    store: StoreSettings | None = None

    def run(self) -> Decoded:
        """Take the frames from the store, or decode them here and now and store them.

        Raises:
            DecodeError: the file cannot give the frames.
        """
        if self.store is None:
            return Decoded(self.decode(), None, True)
        check_file(self.path)
        store = open_store(self.store)
        try:
            entry = entry_key(self.path, self.media, self.settings, self.factor, store.hashes)
        except OSError as error:
            raise DecodeError("unreadable", self.path, f"the file cannot be read ({error.strerror}).") from error
        stored = store.load(entry)
        if stored is not None:
            return Decoded(stored, entry, False)
        frames = self.decode()
        store.save(entry, frames)
        return Decoded(frames, entry, True)

    def decode(self) -> Frames:
        media = self.media
        if media.kind == "image":
            return decode_image(self.path, settings=self.settings, factor=self.factor)
        clip = {"start": media.start, "end": media.end, "fps": media.fps}
        return decode(self.path, settings=self.settings, factor=self.factor, also=media.also, **clip)


class Decoders:
    """Processes that decode one file each at a time (`visd.media.killable`)."""

    def __init__(self, workers: int, memory_mb: int):
        self._workers = KillableWorkers(workers, memory_mb, __name__, "data.frames.memory_mb", _one_thread)

    def submit(self, task: DecodeTask) -> Future[Decoded]:
        """Have a file decoded soon."""
        return self._workers.submit(_run, task, task.settings.timeout + GRACE)

    def result(self, task: DecodeTask, future: Future[Decoded]) -> Decoded:
        """What became of a submitted task, waiting for it if need be; with its frames.

        Raises:
            DecodeError: the file cannot give the frames, or its process had to be ended, or ended itself.
        """
        decoded = self._workers.result(task.path, future, task.settings.timeout + GRACE)
        if decoded.frames is not None:
            return decoded
        assert task.store is not None and decoded.entry is not None
        frames = open_store(task.store).load(decoded.entry)
        if frames is None:  # another process has made room meanwhile
            plain = replace(task, store=None)
            return self.result(plain, self.submit(plain))
        return replace(decoded, frames=frames)

    def close(self) -> None:
        """End all processes."""
        self._workers.close()


@cache
def shared_decoders(workers: int, memory_mb: int) -> Decoders:
    """One set of processes for all that this process decodes."""
    return Decoders(workers, memory_mb)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(task: DecodeTask) -> Decoded:
    try:
        decoded = task.run()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise
    # Frames that lie in the store are mapped there by whoever wants them, instead of being sent.
    return replace(decoded, frames=None) if decoded.entry else decoded
