"""Outcomes of requests on disk, so that a run that goes on, or is repeated, need not ask again."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import fields
from pathlib import Path

from visd.judge.client import Outcome
from visd.types import VisdError

COLUMNS = tuple(f.name for f in fields(Outcome) if f.name != "replayed")


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
            # Autocommit: a killed process loses nothing that was answered. No fsync for each, the log is enough.
            self._db = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
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

    def put(self, key: str, outcome: Outcome) -> None:
        """Raises VisdError where the disk is full."""
        values = [key, *(getattr(outcome, name) for name in COLUMNS)]
        try:
            with self._lock:
                marks = ", ".join("?" * len(values))
                self._db.execute(f"INSERT OR REPLACE INTO answers (key, {', '.join(COLUMNS)}) VALUES ({marks})", values)
                self._keys.add(key)
        except sqlite3.Error as error:
            raise VisdError(f"{self.path}: a judge's answer could not be written ({error}); free space.") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()
