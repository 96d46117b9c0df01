"""Which split a scene or a problem belongs to, decided by what happens in it and by nothing else.

No two splits, of whatever sizes and seeds, can therefore share a scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from visd.seeding import generator

SHARES = {"careful_train": 25, "sft_train": 20, "train": 35, "validation": 10, "test": 10}


class Signed(Protocol):
    def signature(self) -> str: ...


T = TypeVar("T", bound=Signed)


def split_of(signature: str) -> str:
    """The split of a scene, from its hexadecimal signature."""
    place = int(signature[:8], 16) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("shares sum to 100")


def draw(
    split: str, seed: int, kind: str, make: Callable[[np.random.Generator], T]
) -> Iterator[tuple[T, np.random.Generator]]:
    """Different items of a split without end, each with a private generator for what else is random about it."""
    seen: set[str] = set()
    attempt = 0
    while True:
        rng = generator("synth", kind, seed, split, attempt)
        item = make(rng)
        attempt += 1
        signature = item.signature()
        if split_of(signature) == split and signature not in seen:
            seen.add(signature)
            yield item, rng
