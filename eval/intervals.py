"""95 % intervals: bootstrap over questions, Student's t over the few seeds of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visd.seeding import generator

RESAMPLES = 2000
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the bounds are None where there is too little data for any."""

    mean: float
    low: float | None
    high: float | None
    n: int  # questions or seeds behind it

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of one value a question.

    Raises:
        ValueError: no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        raise ValueError("an interval needs at least one value")
    if len(data) == 1:
        return Interval(float(data[0]), None, None, 1)
    picks = generator("bootstrap", seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(data[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_difference(before: Mapping[str, float], after: Mapping[str, float], seed: int = 0) -> Interval:
    """Bootstrap of the mean of `after - before` over the same questions, by id.

    Raises:
        ValueError: the two do not cover the same questions.
    """
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"{len(odd)} questions are on one side only, the first is {odd[0]!r}: evaluate the same manifest"
        )
    return bootstrap([after[key] - before[key] for key in sorted(before)], seed)


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of independent values, one a seed.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = (T_975[n - 2] if n - 2 < len(T_975) else 1.96) * spread
    return Interval(mean, mean - reach, mean + reach, n)
