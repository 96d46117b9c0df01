"""Outcomes of requests on disk, so that a run that goes on, or is repeated, need not ask again."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from visd.judge.client import Outcome
from visd.types import VisdError

COLUMNS = tuple(f.name for f in fields(Outcome) if f.name != "replayed")
WRITE_AFTER = 0.02
"""s that an outcome may wait for others that are written with it; as much is lost of a process that is killed."""


class AnswerCache:
    """A SQLite file of outcomes by request key. Safe for several threads, and for several processes of one machine."""

    def __init__(self, path: Path, read_only: bool):
        """Raises VisdError where the file cannot be used."""
        self.path = path
        self._lock = threading.Lock()
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            # A killed process loses nothing that was written. No fsync for each transaction, the log is enough.
            self._db = sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute(f"CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, {', '.join(COLUMNS)})")
            self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM answers LIMIT 1")
            # Most requests are new, and a look at the file for each would hold up those under way.
            self._keys = {key for (key,) in self._db.execute("SELECT key FROM answers")}
        except (sqlite3.Error, OSError) as error:
            raise VisdError(
                f"{path}: judge answers cannot be kept there ({error}); delete the file or set judge.cache_dir."
            ) from error

    def get(self, key: str) -> Outcome | None:
        """What was written before this was opened, or by it."""
        if key not in self._keys:
            return None
        with self._lock:
            row = self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM answers WHERE key = ?", (key,)).fetchone()
        return Outcome(**dict(zip(COLUMNS, row, strict=True)), replayed=True)

    def put(self, outcomes: Mapping[str, Outcome]) -> None:
        """Write outcomes, all or none. Raises VisdError where the disk is full."""
        rows = [(key, *(getattr(outcome, name) for name in COLUMNS)) for key, outcome in outcomes.items()]
        marks = ", ".join("?" * (1 + len(COLUMNS)))
        try:
            with self._lock, self._db:  # one transaction
                self._db.executemany(
                    f"INSERT OR REPLACE INTO answers (key, {', '.join(COLUMNS)}) VALUES ({marks})", rows
                )
        except sqlite3.Error as error:
            raise VisdError(f"{self.path}: a judge's answer could not be written ({error}); free space.") from error
        self._keys.update(outcomes)

    def close(self) -> None:
        with self._lock:
            self._db.close()


class CacheWriter:
    """Writes outcomes together and in another thread, so that nobody waits for a disk. Used by one event loop."""

    def __init__(self, cache: AnswerCache):
        self._cache = cache
        self._unwritten: dict[str, Outcome] = {}
        self._task: asyncio.Task[None] | None = None

    def put(self, key: str, outcome: Outcome) -> None:
        """Write it soon."""
        self._unwritten[key] = outcome
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_later())

    async def flush(self) -> None:
        """Returns when all that was put is on disk. Raises VisdError where it could not be written."""
        while self._unwritten:
            await self._write()

    async def _write_later(self) -> None:
        with suppress(VisdError):  # `flush` will try again, and tell
            while self._unwritten:
                await asyncio.sleep(WRITE_AFTER)
                await self._write()

    async def _write(self) -> None:
        batch = dict(self._unwritten)
        await asyncio.to_thread(self._cache.put, batch)
        for key, outcome in batch.items():  # not before: who is cancelled here leaves them to `flush`
            if self._unwritten.get(key) is outcome:
                del self._unwritten[key]
