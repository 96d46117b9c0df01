"""Decoded frames in memory, so that a run decodes each video once, and ahead of need where processes do it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from pathlib import Path

from visd.config import FramesSection, VideoSection
from visd.media.backends import load_backend
from visd.media.container import below_root
from visd.media.decoders import Decoded, DecodeTask, shared_decoders
from visd.media.errors import DecodeError
from visd.media.store import StoreSettings
from visd.media.video import DecodeCounter, sampling_key
from visd.types import Frames, Media


class FrameCache:
    """Frames by (file, its size and time of change, clip, sampling), least recently used out first.

    A file that could not be decoded is remembered too and is not tried again until it changes. Not shared between
    processes: each rank has its own.
    """

    def __init__(self, root: Path, settings: VideoSection, factor: int, section: FramesSection):
        load_backend(settings.backend)  # refused at the start, not at the first video
        self.root = root.resolve()
        self.settings = settings
        self.factor = factor
        self.capacity_bytes = section.cache_mb * 2**20
        self.held_bytes = 0
        self.counters = DecodeCounter()
        self._decoders = shared_decoders(section.workers, section.memory_mb) if section.workers else None
        self._store = (
            StoreSettings(Path(section.store).resolve(), int(section.store_gb * 2**30)) if section.store else None
        )
        self._pending: dict[Hashable, Future[Decoded]] = {}
        self._frames: OrderedDict[Hashable, Frames] = OrderedDict()
        self._failures: dict[Hashable, DecodeError] = {}
        self._seen: set[Hashable] = set()

    def get(self, media: Media, settings: VideoSection | None = None) -> Frames:
        """Decoded frames of the medium.

        Args:
            settings: instead of the cache's own, for a prompt that has to become shorter.

        Raises:
            DecodeError: the file cannot give them.
        """
        task = self._task(media, settings)
        key = self._key(task)
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
            decoded = self._decode(key, task)
        except DecodeError as error:
            self._failures[key] = error
            raise
        if media.kind == "video" and decoded.fresh:
            self.counters.videos_decoded += 1
        assert decoded.frames is not None
        self._keep(key, decoded.frames)
        return decoded.frames

    def prefetch(self, media: Iterable[Media]) -> None:
        """Have what will be asked for next decoded meanwhile; without processes to do it, nothing happens.

        An unusable file is told of by `get`, not here.
        """
        if self._decoders is None:
            return
        for item in media:
            try:
                task = self._task(item)
            except DecodeError:
                continue
            key = self._key(task)
            if not (key in self._frames or key in self._failures or key in self._pending):
                self._pending[key] = self._decoders.submit(task)

    def resolve(self, relative: str) -> Path:
        """The file's real path, which must lie below the root, symbolic links followed."""
        return below_root(self.root, relative)

    def _task(self, media: Media, settings: VideoSection | None = None) -> DecodeTask:
        return DecodeTask(self.resolve(media.path), media, settings or self.settings, self.factor, self._store)

    def _key(self, task: DecodeTask) -> Hashable:
        media = task.media
        try:
            status = task.path.stat()
            identity: tuple[int, int] | None = (status.st_mtime_ns, status.st_size)
        except OSError:
            identity = None
        sampling = sampling_key(task.settings, self.factor)
        return (media.kind, str(task.path), identity, media.start, media.end, media.fps, media.also, sampling)

    def _decode(self, key: Hashable, task: DecodeTask) -> Decoded:
        if self._decoders is None:
            return task.run()
        future = self._pending.pop(key, None) or self._decoders.submit(task)
        return self._decoders.result(task, future)

    def _keep(self, key: Hashable, frames: Frames) -> None:
        self._frames[key] = frames
        self.held_bytes += frames.pixels.nbytes
        while self.held_bytes > self.capacity_bytes:
            _, oldest = self._frames.popitem(last=False)
            self.held_bytes -= oldest.pixels.nbytes
