"""Counts of a stream of numbers in bins that grow with the numbers, so that shards add up in a fixed memory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PER_OCTAVE = 2
"""Bins from a number to twice as much."""


@dataclass
class Distribution:
    """How often numbers of about a size were seen."""

    bins: Counter[int] = field(default_factory=Counter)  # by `bin_of`
    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        self.bins[bin_of(value)] += 1
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def join(self, other: Distribution) -> None:
        self.bins.update(other.bins)
        self.count += other.count
        self.total += other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def quantile(self, share: float) -> float:
        """The upper end of the bin in which the quantile lies, at most the greatest number seen."""
        left = share * self.count
        for place, count in sorted(self.bins.items()):
            left -= count
            if left <= 0:
                return min(self.most, bounds(place)[1])
        return self.most

    def rows(self) -> list[tuple[str, int]]:
        """Label and count of each bin from the first to the last that holds any."""
        if not self.bins:
            return []
        places = range(min(self.bins), max(self.bins) + 1) if ZERO not in self.bins else self._with_zero()
        return [(label(place), self.bins[place]) for place in places]

    def _with_zero(self) -> list[int]:
        others = [place for place in self.bins if place != ZERO]
        return [ZERO, *range(min(others), max(others) + 1)] if others else [ZERO]

    def to_json(self) -> dict[str, Any]:
        fields = {"count": self.count, "total": self.total, "bins": dict(self.bins)}
        return {**fields, "least": self.least, "most": self.most} if self.count else fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Distribution:
        bins = Counter({int(place): count for place, count in fields["bins"].items()})
        ends = {name: fields[name] for name in ("least", "most") if name in fields}
        return cls(bins, fields["count"], fields["total"], **ends)


ZERO = -(10**6)
"""The bin of 0."""


def bin_of(value: float) -> int:
    """Which bin a number that is not negative belongs to."""
    return ZERO if value <= 0 else math.floor(PER_OCTAVE * math.log2(value) + 1e-9)


def bounds(place: int) -> tuple[float, float]:
    """The numbers of a bin: from the first up to, and without, the second."""
    return (0.0, 0.0) if place == ZERO else (2 ** (place / PER_OCTAVE), 2 ** ((place + 1) / PER_OCTAVE))


def label(place: int) -> str:
    low, high = bounds(place)
    return "0" if place == ZERO else f"{low:.3g} to {high:.3g}"
