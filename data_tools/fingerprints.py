"""Fingerprints of videos that survive re-encoding and resizing, and the search for those that are alike.

A frame's fingerprint is the difference hash (Krawetz, Kind of Like That, 2013): of the frame in grey, 9 x 8, one bit for each
pair of neighbours in a row, set where the left one is brighter by more than `MARGIN`. The margin keeps the noise of coding
out of places of one colour. A video's fingerprint is that of its first, middle and last frame, 3 x 64 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MARGIN = 1.0
"""Grey levels."""
FRAMES = 3
BANDS = 12
"""Pieces of 16 bits of a video's fingerprint. Two that differ in fewer bits than this have a piece in common."""
NEAR = 11
"""Bits of the 3 x 64 in which two copies of one video may differ."""
LEAST = 16
"""Bits that must be set for a video to be known by them; fewer say that its frames show next to nothing."""
NEIGHBOURS = 64
"""Of the fingerprints with a common piece, how many next in order each is compared with."""


def frame_hash(pixels: NDArray[np.uint8]) -> int:
    """64 bits of an RGB frame [H, W, 3]; 0 where it shows nothing but one colour."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX), np.float64)
    bits = (grey[:, :-1] > grey[:, 1:] + MARGIN).ravel()
    return int(sum(1 << place for place, bit in enumerate(bits.tolist()) if bit))


def alike(hashes: NDArray[np.uint64], near: int = NEAR) -> NDArray[np.int64]:
    """Which videos are copies of each other.

    Args:
        hashes: [N, 3]; a row with fewer than `LEAST` bits set is of a video that is like no other.
        near: bits, less than `BANDS`.

    Returns:
        [N], the same number for all videos that are joined by a chain of pairs within `near` bits.
    """
    if near >= BANDS:
        raise ValueError(f"near {near} must be less than {BANDS}")
    groups = Groups(len(hashes))
    rows = np.flatnonzero(np.bitwise_count(hashes).sum(axis=1) >= LEAST)
    usable = np.ascontiguousarray(hashes[rows])
    pieces = usable.view(np.uint16).reshape(len(usable), BANDS)
    for band in range(BANDS):
        order = np.lexsort((*usable.T, pieces[:, band]))
        piece = pieces[order, band]
        for step in range(1, min(NEIGHBOURS + 1, len(order))):
            same = piece[step:] == piece[:-step]
            if not same.any():
                break
            left, right = order[:-step][same], order[step:][same]
            close = np.bitwise_count(usable[left] ^ usable[right]).sum(axis=1) <= near
            for a, b in zip(rows[left[close]].tolist(), rows[right[close]].tolist()):
                groups.join(a, b)
    return groups.labels()


class Groups:
    """Sets of numbers 0..count-1 that grow by joining."""

    def __init__(self, count: int):
        self._above = np.arange(count, dtype=np.int64)

    def find(self, item: int) -> int:
        """The number that stands for the item's set, its smallest."""
        root = item
        while self._above[root] != root:
            root = int(self._above[root])
        while self._above[item] != root:
            self._above[item], item = root, int(self._above[item])
        return root

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._above[max(a, b)] = min(a, b)

    def labels(self) -> NDArray[np.int64]:
        """[count], the number of each item's set."""
        return np.array([self.find(item) for item in range(len(self._above))], np.int64)


def hash_text(hashes: Sequence[int]) -> str:
    """A video's fingerprint as it is written."""
    return "".join(f"{value:016x}" for value in hashes)
