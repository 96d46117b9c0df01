"""What `probe` found out about files, looked up by path in little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.fingerprints import FRAMES
from data_tools.io.rows import check_input, read_rows
from data_tools.io.shards import id_hash
from visd.data.fields import ManifestError

ROW = np.dtype(
    [("path", "u8"), ("sound", "?"), ("duration", "f8"), ("fps", "f4"), ("frames", "i4"), ("width", "i4")]
    + [("height", "i4"), ("fingerprint", "u8", (FRAMES,))]
)


@dataclass(frozen=True)
class File:
    """One file, as far as samples need to know it."""

    sound: bool
    duration: float  # s; infinite of an image
    fps: float
    frames: int
    width: int  # pixels
    height: int
    fingerprint: tuple[int, ...]


class Probed:
    """Files by path, 56 bytes each."""

    def __init__(self, rows: NDArray[Any]):
        self._rows = np.sort(rows, order="path")

    def get(self, path: str) -> File | None:
        """What is known of a file; None where it was not probed."""
        key = np.uint64(id_hash(path))
        place = int(np.searchsorted(self._rows["path"], key))
        if place == len(self._rows) or self._rows["path"][place] != key:
            return None
        row = self._rows[place]
        return File(
            bool(row["sound"]),
            float(row["duration"]) or math.inf,
            float(row["fps"]),
            int(row["frames"]),
            int(row["width"]),
            int(row["height"]),
            tuple(row["fingerprint"].tolist()),
        )

    def fingerprints(self, keys: NDArray[np.uint64], out: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Write the fingerprints of sound files, by hashes of their paths, to `out` [N, 3]; which rows these are."""
        places = np.searchsorted(self._rows["path"], keys).clip(max=max(len(self._rows) - 1, 0))
        if not len(self._rows):
            return np.empty(0, np.int64)
        known = np.flatnonzero((self._rows["path"][places] == keys) & self._rows["sound"][places])
        out[known] = self._rows["fingerprint"][places[known]]
        return known


@lru_cache(maxsize=2)
def load_probed(paths: tuple[Path, ...]) -> Probed:
    """The OUT files of `probe`.

    Raises:
        ManifestError: one cannot be read or is something else.
    """
    return Probed(np.concatenate([np.empty(0, ROW), *(_load(path) for path in paths)]))


def _load(path: Path) -> NDArray[Any]:
    check_input(path)
    rows: list[tuple[Any, ...]] = []
    parts: list[NDArray[Any]] = []
    for where, line in read_rows(path):
        try:
            rows.append(_row(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{where}: is no line of `probe` ({error!r}); give its OUT file") from error
        if len(rows) == 10_000:
            parts.append(np.array(rows, ROW))
            rows = []
    return np.concatenate([*parts, np.array(rows, ROW)])


def _row(line: Any) -> tuple[Any, ...]:
    key = id_hash(line["path"])
    if line["status"] != "ok":
        return (key, False, 0.0, 0.0, 0, 0, 0, (0,) * FRAMES)
    text = line["fingerprint"]
    fingerprint = tuple(int(text[i : i + 16], 16) for i in range(0, 16 * FRAMES, 16))
    facts = tuple(line[name] for name in ("duration", "fps", "frames", "width", "height"))
    return (key, True, *facts, fingerprint)


def probed_arguments(paths: Sequence[Path] | None) -> tuple[Path, ...]:
    """Checked values of --probe."""
    for path in paths or ():
        check_input(path)
    return tuple(paths or ())
