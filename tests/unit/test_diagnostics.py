"""Probes of answers, and the ratio of teacher and reward, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.unit.method_data import batch_of
from visd.observe.accumulate import Metrics, Ratio
from visd.observe.diagnostics import copied_share, deliberation_markers, mentions_privileged
from visd.observe.metrics import token_metrics
from visd.teacher.layout import HEADER, LAYOUTS
from visd.train.diagnose import context_metrics, magnitude_metrics
from visd.types import Term, TokenCredit, TokenScores


def test_deliberation_markers_are_counted_as_words() -> None:
    assert deliberation_markers("Wait, maybe it waits. Alternatively, let me check: it is red.") == 4
    assert deliberation_markers("The waiter is red.") == 0


def test_mentions_of_privileged_text() -> None:
    assert mentions_privileged("As the solution states, it is red.") and mentions_privileged(
        "by the Verified  facts".replace("  ", " ")
    )
    assert not mentions_privileged("The solution: it is red. The reference frame moves.")
    quoted = [
        HEADER,
        *(
            label
            for layout in LAYOUTS.values()
            for name, label in layout.labels.items()
            if name not in ("answer", "window")
        ),
    ]
    assert not [label for label in quoted if not mentions_privileged(label)], (
        "every heading of a teacher's prompt is known"
    )


def test_copied_runs_of_words() -> None:
    """Six words hold two runs of five; one of them stands in the source, in other case and punctuation."""
    assert copied_share("the red square moves left now", "First, The red square moves LEFT; then stops.") == 0.5
    assert copied_share("it is red", "it is red") is None
    assert copied_share("a b c d e", "a b c d") == 0.0


def test_a_ratio_of_sums_does_not_depend_on_the_split() -> None:
    split, whole = Metrics(), Metrics()
    for above, below in (([0.1], [0.3]), ([0.2, 0.7], [1.1])):
        split.add("r", Ratio.of(above, below))
    whole.add("r", Ratio.of([0.1, 0.2, 0.7], [0.3, 1.1]))
    assert split.values() == whole.values() and whole.values()["r"] == pytest.approx(1.0 / 1.4)
    empty = Metrics()
    empty.add("r", Ratio.of([1.0], [0.0]))
    assert empty.values() == {}


def test_teacher_to_reward_by_hand() -> None:
    """|A_t - A| = 0.5 and 0, a term of 2 * 0.25 on the second token, |A| = 1 twice."""
    batch = batch_of(torch.zeros(1, 2, dtype=torch.long), [-1.0])
    credit = TokenCredit(torch.tensor([[-1.5, -1.0]], dtype=torch.float64), torch.ones(1, 2))
    term = Term(torch.tensor([[9.0, 0.25]]), torch.tensor([[False, True]]), 2.0)
    found = magnitude_metrics(batch, credit, [term], torch.full((1, 2), 0.5, dtype=torch.float64))
    assert found.values() == {"policy/teacher_to_reward": pytest.approx((0.5 + 0.5) / 2)}


def test_gaps_and_entropies_are_logged_for_a_method_that_names_no_ratio() -> None:
    batch = batch_of(torch.zeros(1, 3, dtype=torch.long), [1.0])
    student = TokenScores(torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[0.1, 0.2, 0.9]]))
    teacher = TokenScores(torch.tensor([[-0.5, -2.0, -4.0]]), torch.tensor([[0.3, 0.4, 0.8]]))
    credit = TokenCredit(torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1, 3))
    values = token_metrics(batch, credit, student, teacher).values()
    side = next(name.removesuffix("_mean") for name in values if name in ("gap/right_mean", "gap/wrong_mean"))
    assert values[f"{side}_mean"] == pytest.approx(-0.5 / 3) and values[f"{side}_q50"] == pytest.approx(0.0)
    assert values["teacher/entropy"] == pytest.approx(0.5) and values["teacher/token_entropy_q50"] == pytest.approx(0.4)
    assert values["policy/token_entropy_q50"] == pytest.approx(0.2)
    assert values["advantage/token_zero_share"] == pytest.approx(2 / 3)


def test_a_method_without_a_teacher_has_no_rows_of_it() -> None:
    run = SimpleNamespace(method=SimpleNamespace(uses_teacher=False))
    assert context_metrics(run, [], {}).values() == {}  # type: ignore[arg-type]
