"""Scores of benchmarks as pure functions of readings and truths. All are in 0-1."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from visd.reward.rules import temporal_iou
from visd.types import Window

MRA_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def mean_relative_accuracy(value: float | None, truth: float) -> float:
    """Share of the thresholds 0.50, 0.55, ..., 0.95 with |value - truth| / |truth| <= 1 - threshold (VSI-Bench, arXiv
    2412.14171, with its published code's <=); 0 without a value.

    A truth of 0 has no relative error: then only 0 itself counts.
    """
    if value is None:
        return 0.0
    if truth == 0:
        return float(value == 0)
    error = abs(value - truth) / abs(truth)
    # Errors and thresholds come from decimals: 0.05 and 1 - 0.95 must meet.
    return sum(error <= 1 - threshold + 1e-9 for threshold in MRA_THRESHOLDS) / len(MRA_THRESHOLDS)


def window_iou(window: Window | None, truth: Window) -> float:
    """Temporal IoU over the hull; 0 without a window."""
    return temporal_iou(window, truth) if window is not None else 0.0


def best_window_iou(window: Window | None, truths: Sequence[Window]) -> float:
    """The largest IoU with any of several true windows (NExT-GQA, arXiv 2309.01327)."""
    return max((window_iou(window, truth) for truth in truths), default=0.0)


def window_iop(window: Window | None, truth: Window) -> float:
    """Intersection over prediction: which share of the answered window lies in the true one.

    A window of no length counts 1 where it lies in the true one and else 0.
    """
    if window is None or window[1] < window[0]:
        return 0.0
    overlap = max(0.0, min(window[1], truth[1]) - max(window[0], truth[0]))
    length = window[1] - window[0]
    if length == 0:
        return float(truth[0] <= window[0] <= truth[1])
    return overlap / length


def best_window_iop(window: Window | None, truths: Sequence[Window]) -> float:
    """The largest intersection over prediction with any of several true windows."""
    return max((window_iop(window, truth) for truth in truths), default=0.0)


def recall_at(iou: float, threshold: float) -> float:
    """R@1 of one query: whether its IoU reaches the threshold."""
    return float(iou >= threshold)


def grounded_accuracy(right: bool, iop: float, threshold: float = 0.5) -> float:
    """Acc@GQA of NExT-GQA: answered right and grounded with an IoP of at least `threshold`."""
    return float(right and iop >= threshold)


def arithmetic_mean(answer: float, temporal: float, spatial: float) -> float:
    """AM of one chain of V-STaR (arXiv 2503.11495); arguments in 0-1."""
    return (answer + temporal + spatial) / 3


def log_geometric_mean(answer: float, temporal: float, spatial: float) -> float:
    """LGM of one chain of V-STaR: -mean(ln(1 - value)); infinite where a value is 1."""
    values = (answer, temporal, spatial)
    return math.inf if 1.0 in values else -math.fsum(math.log(1 - v) for v in values) / 3


def pass_at_k(right: int, n: int, k: int) -> float:
    """Unbiased chance that one of k answers, drawn from n of which `right` are right, is right (arXiv 2107.03374).

    Raises:
        ValueError: k is not within 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= n, there are {n} answers")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(values: Sequence[Hashable | None]) -> Hashable | None:
    """The most frequent reading; unread answers have no vote, the earlier of two equally frequent ones wins."""
    counts = Counter(value for value in values if value is not None)
    return max(counts, key=lambda value: counts[value]) if counts else None


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test.

    Args:
        only_first, only_second: items that one run alone has right.
    """
    n, few = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, i) for i in range(few + 1))
    return min(1.0, 2 * tail / 2**n)
