"""Metrics against cases worked out by hand and published tables."""

from __future__ import annotations

import math

import pytest

from eval import metrics as m
from eval.vstar import Columns, Row, columns_of, mean_am, mean_lgm, when_iou, where_iou

PUBLISHED = {  # what, when 1, when 2, where 1, where 2, mAM, mLGM as printed, per cent
    "Qwen2.5-VL-7B": (33.5, 15.4, 13.8, 17.0, 2.5, 19.3, 22.4),
    "GPT-4o": (60.8, 16.7, 12.8, 6.5, 3.0, 26.8, 38.2),
    "Gemini-2-Flash": (53.0, 24.5, 23.8, 4.6, 2.2, 26.9, 35.6),
    "Open-o3-Video 7B": (61.0, 24.5, 24.0, 25.4, 6.0, 33.7, 46.6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables_come_out(name: str) -> None:
    what, when_1, when_2, where_1, where_2, am, lgm = (value / 100 for value in PUBLISHED[name])
    columns = Columns(what, when_1, when_2, where_1, where_2)
    assert mean_am(columns) == pytest.approx(am, abs=6e-4)  # the table is rounded to 0.1
    assert mean_lgm(columns) == pytest.approx(lgm, abs=1.1e-3)


def test_the_arithmetic_of_one_published_row() -> None:
    """61.0 / 24.5 / 25.4 and 61.0 / 24.0 / 6.0, every step written out.

    AM   (61.0 + 24.5 + 25.4) / 3 = 36.966667, (61.0 + 24.0 + 6.0) / 3 = 30.333333, mean 33.65.
    LGM  -ln 0.390 = 0.941609, -ln 0.755 = 0.281038, -ln 0.746 = 0.293030: mean 0.505225;
         -ln 0.390 = 0.941609, -ln 0.760 = 0.274437, -ln 0.940 = 0.061875: mean 0.425974; mean of both 0.465599.
    """
    assert m.arithmetic_mean(0.61, 0.245, 0.254) == pytest.approx(0.36966667, abs=1e-6)
    assert m.arithmetic_mean(0.61, 0.24, 0.06) == pytest.approx(0.30333333, abs=1e-6)
    assert m.log_geometric_mean(0.61, 0.245, 0.254) == pytest.approx(0.505225, abs=1e-6)
    assert m.log_geometric_mean(0.61, 0.24, 0.06) == pytest.approx(0.425974, abs=1e-6)
    columns = Columns(0.61, 0.245, 0.24, 0.254, 0.06)
    assert mean_am(columns) == pytest.approx(0.3365, abs=1e-6)
    assert mean_lgm(columns) == pytest.approx(0.465599, abs=1e-6)
    assert m.log_geometric_mean(1.0, 0.5, 0.5) == math.inf


def test_a_missing_answer_raises_compatible_means_and_lowers_strict_ones() -> None:
    rows = [Row(True, True, (0.5, 0.4), (0.2, 0.1)), Row(False, False, (0.0, 0.0), (0.0, 0.0))]
    assert columns_of(rows, "strict") == Columns(0.5, 0.25, 0.2, 0.1, 0.05)
    assert columns_of(rows, "compatible") == Columns(0.5, 0.5, 0.4, 0.2, 0.1)


def test_windows_of_vstar() -> None:
    truth = (2.0, 6.0)
    assert when_iou("From <t>2</t>s to <t>4</t>s", truth, "strict") == pytest.approx(0.5)
    assert when_iou("2 ... 4", truth, "compatible") == pytest.approx(0.5)
    assert when_iou("2 ... 4", truth, "strict") == 0.0  # two numbers, but no window
    assert when_iou("0:02 - 0:04, that is 2 seconds", truth, "compatible") == 0.0  # three numbers
    assert when_iou(None, truth, "compatible") == when_iou(None, truth, "strict") == 0.0


def test_boxes_of_vstar() -> None:
    truth = {3.0: (0.0, 0.0, 100.0, 100.0), 4.0: (0.0, 0.0, 100.0, 100.0)}
    answer = {3.0: [(0.0, 0.0, 5.0, 10.0), (0.0, 0.0, 10.0, 10.0)]}  # half, then all of it, in tenths
    assert where_iou(answer, truth, (10.0, 10.0), "strict") == pytest.approx(0.25)
    assert where_iou(answer, truth, (10.0, 10.0), "compatible") == pytest.approx(0.5)
    assert where_iou(None, truth, (1.0, 1.0), "compatible") == 0.0


@pytest.mark.parametrize(
    ("value", "truth", "expected"),
    [
        (10.0, 10.0, 1.0),
        (9.5, 10.0, 1.0),  # error 0.05 passes every threshold
        (9.4, 10.0, 0.9),  # error 0.06 fails 0.95
        (8.0, 10.0, 0.7),  # error 0.2 passes 0.50 to 0.80
        (5.0, 10.0, 0.1),  # error 0.5 passes 0.50 alone
        (4.9, 10.0, 0.0),
        (15.0, 10.0, 0.1),
        (None, 10.0, 0.0),
        (0.0, 0.0, 1.0),
        (1.0, 0.0, 0.0),
    ],
)
def test_mean_relative_accuracy(value: float | None, truth: float, expected: float) -> None:
    assert m.mean_relative_accuracy(value, truth) == pytest.approx(expected)


def test_windows() -> None:
    assert m.window_iou((2.0, 6.0), (4.0, 8.0)) == pytest.approx(2 / 6)
    assert m.window_iou((0.0, 1.0), (4.0, 8.0)) == m.window_iou(None, (4.0, 8.0)) == 0.0
    assert m.window_iop((2.0, 6.0), (4.0, 8.0)) == pytest.approx(0.5)
    assert m.window_iop((4.0, 5.0), (4.0, 8.0)) == 1.0
    assert m.window_iop((5.0, 5.0), (4.0, 8.0)) == 1.0 and m.window_iop((9.0, 9.0), (4.0, 8.0)) == 0.0
    assert m.best_window_iop((2.0, 6.0), [(0.0, 1.0), (3.0, 6.0)]) == pytest.approx(0.75)
    assert m.best_window_iou((2.0, 6.0), [(0.0, 1.0), (3.0, 6.0)]) == pytest.approx(0.75)
    assert [m.recall_at(0.5, t) for t in (0.3, 0.5, 0.7)] == [1.0, 1.0, 0.0]
    assert m.grounded_accuracy(True, 0.5) == 1.0
    assert m.grounded_accuracy(True, 0.49) == m.grounded_accuracy(False, 1.0) == 0.0


def test_several_answers() -> None:
    assert m.pass_at_k(1, 4, 1) == pytest.approx(0.25)
    assert m.pass_at_k(1, 4, 2) == pytest.approx(0.5)  # 1 - C(3,2) / C(4,2)
    assert m.pass_at_k(0, 4, 4) == 0.0 and m.pass_at_k(4, 4, 1) == 1.0
    with pytest.raises(ValueError, match="pass@5"):
        m.pass_at_k(1, 4, 5)
    assert m.majority(["A", None, "B", "B", None, None]) == "B"
    assert m.majority(["B", "A"]) == "B" and m.majority([None]) is None


def test_mcnemar() -> None:
    assert m.mcnemar(0, 0) == 1.0 and m.mcnemar(5, 5) == 1.0
    assert m.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert m.mcnemar(0, 8) == pytest.approx(2 / 256)
