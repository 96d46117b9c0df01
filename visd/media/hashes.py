"""SHA-256 of files' bytes, remembered in a folder, so that no process reads again what another has hashed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from functools import lru_cache
from pathlib import Path

SETTLED = 2.0
"""s that a file must have been left alone before its hash is remembered: times of change are no finer than that on
some file systems, so a younger file could change again under the same time."""

KEPT = 30 * 86400.0
"""s after which a remembered hash is deleted and, where the file is still in use, made anew."""


class FileHashes:
    """A folder with one small file for each hash. Any number of processes may share it.

    A hash is remembered under the file's path, size, inode and times of modification and change, so that a file whose
    bytes have changed is read again, also where a copy has kept the time of modification.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def digest(self, path: Path) -> str:
        """SHA-256 of the file's bytes, in hexadecimal.

        Raises:
            OSError: the file cannot be read.
        """
        status = path.stat()
        identity = (str(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        record = self._record(identity)
        with contextlib.suppress(OSError):
            known = record.read_text(encoding="ascii")
            if len(known) == 64:
                return known
        found = file_digest(*identity)
        if time.time() - status.st_ctime > SETTLED:
            self._remember(record, found)
        return found

    def forget_old(self) -> None:
        """Delete what was written longer ago than `KEPT`, unfinished files included."""
        for record in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - record.stat().st_mtime > KEPT:
                    record.unlink()

    def _record(self, identity: tuple[str, int, int, int, int]) -> Path:
        name = hashlib.sha256("\x1f".join(map(str, identity)).encode()).hexdigest()
        return self.folder / name[:2] / name

    def _remember(self, record: Path, digest: str) -> None:
        """A hash that cannot be written is only not remembered."""
        part = record.with_name(f"{record.name}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(digest, encoding="ascii")
            os.replace(part, record)


@lru_cache(maxsize=100_000)
def file_digest(path: str, size: int, inode: int, mtime_ns: int, ctime_ns: int) -> str:
    """SHA-256 of a file's bytes; the other arguments only say when it has to be read again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
