"""Mergeable accumulators: a metric's value does not depend on how its data was split over micro-batches and ranks.

Sums are kept exactly (as a short expansion of floats, J. R. Shewchuk 1997) and rounded once at the end, so that even the
last bit is independent of the split. Quantiles come from a bounded sample that is the whole data while it is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

SAMPLE_SIZE = 4096
"""Most values kept for quantiles; the standard error of a reported quantile's rank is then below 0.8 %."""

Gather = Callable[[Any], list[Any]]
"""`Backend.all_gather_object`: one entry a rank."""


def exact_sum(values: Iterable[float]) -> tuple[float, ...]:
    """Floats whose exact sum is the exact sum of `values`; `math.fsum` of them rounds it correctly."""
    rest = [float(value) for value in values]
    if not all(map(math.isfinite, rest)):
        return (sum(value for value in rest if not math.isfinite(value)),)  # inf or NaN, whatever the order
    parts: list[float] = []
    while (head := math.fsum(rest)) != 0.0:
        parts.append(head)
        rest.append(-head)
    return tuple(parts)


class Accumulator(Protocol):
    """One metric's data so far."""

    def merge(self, other: Self) -> Self: ...

    def finish(self, name: str) -> dict[str, float]:
        """Flat values by name; empty where there was no data."""


@dataclass(frozen=True)
class Mean:
    """Mean of all values."""

    parts: tuple[float, ...] = ()  # exact sum
    count: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        values = [float(value) for value in values]
        return cls(exact_sum(values), len(values))

    def merge(self, other: Mean) -> Mean:
        return Mean(exact_sum(self.parts + other.parts), self.count + other.count)

    def finish(self, name: str) -> dict[str, float]:
        return {name: math.fsum(self.parts) / self.count} if self.count else {}


@dataclass(frozen=True)
class Std:
    """Population standard deviation of all values."""

    values: Mean = Mean()
    squares: Mean = Mean()

    @classmethod
    def of(cls, values: Iterable[float]) -> Std:
        values = [float(value) for value in values]
        return cls(Mean.of(values), Mean.of(value * value for value in values))

    def merge(self, other: Std) -> Std:
        return Std(self.values.merge(other.values), self.squares.merge(other.squares))

    def finish(self, name: str) -> dict[str, float]:
        if not self.values.count:
            return {}
        mean = self.values.finish(name)[name]
        return {name: math.sqrt(max(0.0, self.squares.finish(name)[name] - mean * mean))}


@dataclass(frozen=True)
class Sum:
    """Sum of all values; 0 is reported."""

    parts: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Iterable[float]) -> Sum:
        return cls(exact_sum(values))

    def merge(self, other: Sum) -> Sum:
        return Sum(exact_sum(self.parts + other.parts))

    def finish(self, name: str) -> dict[str, float]:
        return {name: math.fsum(self.parts)}


@dataclass(frozen=True)
class Ratio:
    """Sum of numerators over the sum of denominators; nothing where that is 0."""

    above: Sum = Sum()
    below: Sum = Sum()

    @classmethod
    def of(cls, above: Iterable[float], below: Iterable[float]) -> Ratio:
        return cls(Sum.of(above), Sum.of(below))

    def merge(self, other: Ratio) -> Ratio:
        return Ratio(self.above.merge(other.above), self.below.merge(other.below))

    def finish(self, name: str) -> dict[str, float]:
        below = math.fsum(self.below.parts)
        return {name: math.fsum(self.above.parts) / below} if below else {}


@dataclass(frozen=True)
class Max:
    """Largest value."""

    value: float = -math.inf

    @classmethod
    def of(cls, values: Iterable[float]) -> Max:
        return cls(max((float(value) for value in values), default=-math.inf))

    def merge(self, other: Max) -> Max:
        return Max(max(self.value, other.value))

    def finish(self, name: str) -> dict[str, float]:
        return {} if self.value == -math.inf else {name: self.value}


@dataclass(frozen=True)
class Quantiles:
    """The 0.1, 0.5 and 0.9 quantiles, as `<name>_q10`, `<name>_q50` and `<name>_q90`.

    Each value comes with a uniform key that depends only on what the value belongs to. The values with the smallest
    keys are kept: a uniform sample without replacement, the same for every split; all data up to `SAMPLE_SIZE` values.
    """

    keys: np.ndarray = field(default_factory=lambda: np.empty(0))  # [N], ascending, in [0, 1)
    values: np.ndarray = field(default_factory=lambda: np.empty(0))  # [N]

    @classmethod
    def of(cls, keys: np.ndarray, values: np.ndarray) -> Quantiles:
        order = np.lexsort((values, keys))[:SAMPLE_SIZE]
        return cls(keys[order].astype(np.float64), values[order].astype(np.float64))

    def merge(self, other: Quantiles) -> Quantiles:
        return Quantiles.of(np.concatenate([self.keys, other.keys]), np.concatenate([self.values, other.values]))

    def finish(self, name: str) -> dict[str, float]:
        if not len(self.values):
            return {}
        return {f"{name}_q{round(100 * q)}": float(np.quantile(self.values, q)) for q in (0.1, 0.5, 0.9)}


class Metrics:
    """Accumulators by name."""

    def __init__(self, items: Mapping[str, Any] | None = None):
        self._items: dict[str, Any] = dict(items or {})

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def add(self, name: str, accumulator: Any) -> None:
        """Merge into `name`.

        Raises:
            TypeError: `name` already holds another kind of accumulator.
        """
        held = self._items.get(name)
        if held is None:
            self._items[name] = accumulator
            return
        if type(held) is not type(accumulator):
            raise TypeError(f"metric {name!r} is a {type(held).__name__}, cannot add a {type(accumulator).__name__}")
        self._items[name] = held.merge(accumulator)

    def mean(self, name: str, values: Iterable[float]) -> None:
        self.add(name, Mean.of(values))

    def sum(self, name: str, *values: float) -> None:
        self.add(name, Sum.of(values))

    def max(self, name: str, *values: float) -> None:
        self.add(name, Max.of(values))

    def update(self, other: Metrics) -> None:
        for name, accumulator in other._items.items():
            self.add(name, accumulator)

    def values(self) -> dict[str, float]:
        """This process's data alone, sorted by name."""
        flat: dict[str, float] = {}
        for name in sorted(self._items):
            flat.update(self._items[name].finish(name))
        return flat


def merged(many: Sequence[Metrics]) -> Metrics:
    whole = Metrics()
    for metrics in many:
        whole.update(metrics)
    return whole


def reduce(metrics: Metrics, gather: Gather) -> dict[str, float]:
    """Flat values over all ranks; every rank must call it and gets the same values."""
    return merged(gather(metrics)).values()
