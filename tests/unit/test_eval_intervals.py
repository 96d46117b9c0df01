from __future__ import annotations

import math

import numpy as np
import pytest

from eval.intervals import Interval, bootstrap, paired_difference, t_interval


def test_bootstrap_is_seeded_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    interval = bootstrap(values, seed=3)
    assert interval == bootstrap(values, seed=3)
    assert interval != bootstrap(values, seed=4)
    assert interval.low is not None and interval.high is not None
    assert interval.mean == pytest.approx(np.mean(values))
    assert interval.low < interval.mean < interval.high


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        interval = bootstrap((rng.random(60) < 0.4).astype(float).tolist(), seed=trial)
        assert interval.low is not None and interval.high is not None
        hits += interval.low <= 0.4 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_more_questions_make_a_narrower_interval() -> None:
    def width(n: int) -> float:
        interval = bootstrap([float(i % 2) for i in range(n)])
        assert interval.low is not None and interval.high is not None
        return interval.high - interval.low

    assert width(400) < 0.6 * width(100)


def test_a_paired_difference_sees_what_two_intervals_do_not() -> None:
    hard = {f"q{i}": i / 100 for i in range(100)}
    better = {key: value + 0.05 for key, value in hard.items()}
    difference = paired_difference(hard, better)
    assert difference.low == pytest.approx(0.05) and difference.high == pytest.approx(0.05)
    with pytest.raises(ValueError, match="1 questions are on one side only, the first is 'q0'"):
        paired_difference(hard, {key: 0.0 for key in list(hard)[1:]})


def test_t_interval_against_a_table() -> None:
    interval = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])  # s = sqrt(2.5), t = 2.776
    assert interval.high == pytest.approx(3 + 2.776 * math.sqrt(2.5 / 5))
    assert t_interval([0.0, 1.0] * 20).high == pytest.approx(0.5 + 1.96 * math.sqrt(10 / 39 / 40))


def test_too_little_data() -> None:
    assert bootstrap([0.5]) == t_interval([0.5]) == Interval(0.5, None, None, 1)
    assert str(Interval(0.5, None, None, 1)) == "0.500"
    with pytest.raises(ValueError, match="at least one"):
        bootstrap([])
