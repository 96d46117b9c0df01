"""Reward functions against values worked out by hand, and what holds for every input."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reward_data import RED, claim, response
from visd.reward import rules
from visd.reward.parse import Claim, parse_response
from visd.types import XYXY, Answer, Box

finite = st.floats(0, 1e6)
shares = st.floats(0, 1)
windows = st.tuples(finite, finite)


@st.composite
def boxes(draw: st.DrawFn) -> XYXY:
    x1, x2 = sorted(draw(st.lists(shares, min_size=2, max_size=2)))
    y1, y2 = sorted(draw(st.lists(shares, min_size=2, max_size=2)))
    return x1, y1, x2, y2


names = st.sampled_from(["red square", "blue square", "square", "car", "", "the car"])
golds = st.lists(st.builds(Box, st.floats(0, 10), names, boxes()), max_size=6)
claims = st.lists(
    st.builds(
        Claim,
        name=names,
        boxes=st.lists(boxes(), max_size=3).map(tuple),
        t=st.none() | st.floats(0, 10),
        place=st.just((0, 0)),
        time=st.none(),
    ),
    max_size=6,
)


def claims_of(text: str) -> tuple[Claim, ...]:
    return parse_response(response(text, "x")).claims


# ---------------------------------------------------------------------------------------------------- answer


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        (Answer("word", "right"), "Right.", 1.0),
        (Answer("word", "right"), "the right", 1.0),
        (Answer("word", "right"), "right left", 0.0),
        (Answer("number", 3.0), "3 squares", 1.0),
        (Answer("number", 3.0), "4", 0.0),
        (Answer("number", 3.0, tolerance=0.5), "3.5", 1.0),
        (Answer("number", 3.0, tolerance=0.5), "3.51", 0.0),
        (Answer("number", 0.3), "0.3", 1.0),
        (Answer("number", 0.1 + 0.2), "0.3", 1.0),  # the same number but for the rounding of floats
        (Answer("letter", "B", ("up", "down")), "(B)", 1.0),
        (Answer("letter", "B", ("up", "down")), "down", 1.0),
        (Answer("letter", "B", ("up", "down")), "A", 0.0),
        (Answer("window", (1.0, 3.0)), "From <t>2.0</t>s to <t>4.0</t>s", 1 / 3),
        (Answer("window", (1.0, 3.0)), "From <t>4.0</t>s to <t>2.0</t>s", 0.0),
        (Answer("box", RED), "<box>[0.1,0.2,0.4,0.5]</box>", 1.0),
        (Answer("box", RED), "nowhere", 0.0),
        (Answer("text", "the red square"), "The red square!", 1.0),
        (Answer("text", "the red square"), "blue", 0.0),
        *[(Answer("word", "right"), None, 0.0), (Answer("text", "right"), None, 0.0)],
    ],
)
def test_accuracy_by_type(answer: Answer, text: str | None, expected: float) -> None:
    assert rules.accuracy(answer, text) == pytest.approx(expected)


def test_a_samples_own_tolerance_comes_first() -> None:
    assert rules.accuracy(Answer("number", 3.0), "4", number_tolerance=1.0) == 1.0
    assert rules.accuracy(Answer("number", 3.0, tolerance=0.1), "4", number_tolerance=1.0) == 0.0


def test_rouge_by_hand() -> None:
    # gold: the cat sat down (4 words, 3 pairs); answer: the cats sat (stemmed: the cat sat; 3 words, 2 pairs)
    # ROUGE-1: P 3/3, R 3/4 -> 6/7; ROUGE-2: P 2/2, R 2/3 -> 4/5; ROUGE-L: as ROUGE-1
    assert rules.rouge("The cats sat.", "the cat sat down") == pytest.approx((6 / 7 + 4 / 5 + 6 / 7) / 3)


@given(
    st.lists(
        st.sampled_from(["the", "cats", "running", "jumped", "12", "flies,", "3.5", "it's", "dogs"]), max_size=8
    ).map(" ".join)
)
@settings(max_examples=50, deadline=None)
def test_rouge_is_the_packages_on_english(text: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    gold = "the dog jumped over 12 running flies"
    reference = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(gold, text)
    assert rules.rouge(text, gold) == pytest.approx(sum(s.fmeasure for s in reference.values()) / 3)


def test_rouge_sees_other_scripts_and_survives_length() -> None:
    assert rules.rouge("红色方块", "红色方块") == 1.0
    assert 0 < rules.rouge("红色圆", "红色方块") < 1
    assert rules.rouge("a " * 500_000, "a b c") == 0.0


def test_correct_by_type() -> None:
    assert rules.is_correct(Answer("window", (0.0, 1.0)), 0.5)
    assert not rules.is_correct(Answer("window", (0.0, 1.0)), 0.49)
    assert not rules.is_correct(Answer("word", "a"), 0.99)


# ---------------------------------------------------------------------------------------------------- format


@pytest.mark.parametrize(
    ("kind", "think", "answer", "grounded", "expected"),
    [
        ("word", "so right", "right", True, 1.0),
        ("word", "", "right", True, 1.0),
        ("number", "so 3", "3", False, 1.0),
        ("number", "so 3", "many", False, 0.5),
        ("letter", "so B", "(B)", False, 1.0),
        ("letter", "so B", "neither", False, 0.5),
        ("window", "<t>1</t>s to <t>2</t>s", "[1, 2]", True, 1.0),
        ("window", "<t>1</t>s", "[1, 2]", True, 0.5),
        ("window", "<t>1</t>s to <t>2</t>s", "[2, 1]", True, 0.5),
        ("box", claim(t=None), "<box>[0,0,1,1]</box>", True, 1.0),
        ("box", "<box>[0,0,1,1]</box>", "<box>[0,0,1,1]</box>", True, 0.5),
        ("box", claim(box=(1.0, 0.0, 0.0, 1.0)), "<box>[0,0,1,1]</box>", True, 0.5),
        ("text", "because", "a red square", False, 1.0),
        ("text", "because", "a red square", True, 0.5),
        ("text", claim(), "a red square", True, 1.0),
        ("text", claim(t=None), "a red square", True, 0.5),
        ("word", "an <obj>unpaired tag", "right", True, 0.0),
    ],
)
def test_format(kind: str, think: str, answer: str, grounded: bool, expected: float) -> None:
    values = {"word": "right", "number": 3.0, "letter": "B", "window": (1.0, 2.0), "box": RED, "text": "a square"}
    gold = Answer(kind, values[kind], ("x", "y") if kind == "letter" else ())  # type: ignore[arg-type]
    assert rules.format_score(parse_response(response(think, answer)), gold, grounded) == expected


# ------------------------------------------------------------------------------------------------------- IoU


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 2), (1, 3), 1 / 3),
        ((1, 3), (1, 3), 1.0),
        ((0, 1), (2, 4), 0.0),  # the hull counts the gap, the intersection is not negative
        ((1, 2), (0, 4), 0.25),
        ((3, 1), (1, 3), 0.0),
        ((2, 2), (2, 2), 1.0),
        ((2, 2), (1, 3), 0.0),
        ((0, 1), (1, 2), 0.0),
    ],
)
def test_temporal_iou(a: tuple[float, float], b: tuple[float, float], expected: float) -> None:
    assert rules.temporal_iou(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 0.5, 0.5), (0, 0, 0.5, 0.5), 1.0),
        ((0, 0, 0.5, 0.5), (0.25, 0, 0.75, 0.5), 1 / 3),
        ((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), 1 / 7),
        ((0, 0, 1, 1), (0, 0, 0.5, 0.5), 0.25),
        ((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), 0.0),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0.0),
    ],
)
def test_box_iou(a: XYXY, b: XYXY, expected: float) -> None:
    assert rules.box_iou(a, b) == pytest.approx(expected)


@given(windows, windows)
def test_temporal_iou_is_symmetric_and_bounded(a: tuple[float, float], b: tuple[float, float]) -> None:
    assert rules.temporal_iou(a, b) == rules.temporal_iou(b, a)
    assert 0 <= rules.temporal_iou(a, b) <= 1


@given(boxes(), boxes())
def test_box_iou_is_symmetric_and_bounded(a: XYXY, b: XYXY) -> None:
    assert rules.box_iou(a, b) == pytest.approx(rules.box_iou(b, a))
    assert 0 <= rules.box_iou(a, b) <= 1


# ------------------------------------------------------------------------------------------------- reasoning


@pytest.mark.parametrize(("progress", "sigma"), [(0, 4.0), (0.25, 3.0), (0.5, 2.0), (0.7, 1.2), (0.75, 1.0), (1, 1.0)])
def test_sigma_is_four_times_what_is_left_until_one(progress: float, sigma: float) -> None:
    assert rules.temporal_sigma(progress, 4.0, 1.0, 0.75) == pytest.approx(sigma)


def test_sigma_at_once() -> None:
    assert rules.temporal_sigma(0.0, 4.0, 1.0, 0.0) == 1.0


def test_temporal_points() -> None:
    assert rules.think_temporal_point([1.0], [1.0, 5.0], 4.0) == 1.0
    assert rules.think_temporal_point([3.0], [1.0], 2.0) == pytest.approx(math.exp(-0.5))
    assert rules.think_temporal_point([1.0, 3.0], [1.0], 2.0) == pytest.approx((1 + math.exp(-0.5)) / 2)
    assert rules.think_temporal_point([4.0], [1.0, 5.0], 1.0) == pytest.approx(
        math.exp(-0.5)
    )  # the nearest frame counts
    assert rules.think_temporal_point([], [1.0], 1.0) == 0.0


def test_temporal_segments() -> None:
    assert rules.think_temporal_segment([1.0, 2.0, 3.0, 4.0], [(1.0, 3.0)]) == 0.75
    assert rules.think_temporal_segment([1.0, 9.0], [(0.0, 2.0), (8.0, 9.0)]) == 1.0
    assert rules.think_temporal_segment([], [(1.0, 3.0)]) == 0.0


GOLD = (Box(1.0, "red square", RED), Box(4.0, "blue circle", (0.5, 0.5, 1.0, 1.0)))
HALF: XYXY = (0.1, 0.2, 0.4, 0.35)  # IoU 0.5 with RED


def test_one_right_claim() -> None:
    assert rules.think_spatial(claims_of(claim()), GOLD, gate=1.0) == pytest.approx(1.0)
    assert rules.think_spatial(claims_of(claim(box=HALF)), GOLD, gate=1.0) == pytest.approx(0.5)
    assert rules.think_spatial((), GOLD, gate=1.0) == 0.0


@pytest.mark.parametrize(("t", "expected"), [(0.0, 1.0), (2.0, 1.0), (2.01, 0.0), (9.0, 0.0)])
def test_the_gate_is_symmetric(t: float, expected: float) -> None:
    assert rules.think_spatial(claims_of(claim(t=t)), GOLD, gate=1.0) == pytest.approx(expected)


def test_only_the_nearest_frame_counts() -> None:
    gold = (Box(1.0, "red square", RED), Box(2.0, "red square", (0.6, 0.6, 0.9, 0.9)))
    assert rules.think_spatial(claims_of(claim(t=1.4)), gold, gate=1.0) == pytest.approx(1.0)
    assert rules.think_spatial(claims_of(claim(t=1.6)), gold, gate=1.0) == 0.0
    assert rules.think_spatial(claims_of(claim(t=1.5)), gold, gate=1.0) == pytest.approx(1.0)  # the earlier of two


def test_objects_are_averaged_or_the_best_is_taken() -> None:
    gold = (Box(1.0, "red square", RED), Box(1.0, "blue square", (0.6, 0.6, 0.9, 0.9)))
    said = claims_of(claim())
    assert rules.think_spatial(said, gold, gate=1.0, match="soft", aggregate="mean") == pytest.approx(0.5)
    assert rules.think_spatial(said, gold, gate=1.0, match="soft", aggregate="max") == pytest.approx(1.0)
    assert rules.think_spatial(said, gold, gate=1.0, match="exact", aggregate="mean") == pytest.approx(1.0)


def test_gold_boxes_of_one_object_are_averaged_over_the_best_claimed_box() -> None:
    other: XYXY = (0.6, 0.6, 0.9, 0.9)
    gold = (Box(1.0, "cars", RED), Box(1.0, "cars", other))
    both = f"<obj>cars</obj><box>{list(RED)}</box><box>{list(other)}</box>at<t>1.0</t>s"
    assert rules.think_spatial(claims_of(both), gold, gate=1.0) == pytest.approx(1.0)
    assert rules.think_spatial(claims_of(claim("cars")), gold, gate=1.0) == pytest.approx(0.5)


def test_claim_spam_costs_only_with_the_claims_normaliser() -> None:
    spam = claims_of(claim() + claim("dog") * 3)
    assert rules.think_spatial(spam, GOLD, gate=1.0, normaliser="claims") == pytest.approx(0.25)
    assert rules.think_spatial(spam, GOLD, gate=1.0, normaliser="matched") == pytest.approx(1.0)


def test_a_claim_needs_a_time_unless_the_media_stand_still() -> None:
    said = claims_of(claim(t=None))
    assert rules.think_spatial(said, GOLD[:1], gate=1.0) == 0.0
    assert rules.think_spatial(said, GOLD[:1], gate=1.0, need_time=False) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("claimed", "gold", "exact", "within", "soft"),
    [
        ("red square", "Red Square", True, True, True),
        ("the red square", "red square", True, True, True),
        ("square", "red square", False, True, True),
        ("blue square", "red square", False, False, True),
        ("car", "carpet", False, False, True),
        ("dog", "red square", False, False, False),
        ("", "red square", False, False, False),
        ("...", "red square", False, False, False),
    ],
)
def test_names(claimed: str, gold: str, exact: bool, within: bool, soft: bool) -> None:
    found = [rules.name_matches(claimed, gold, match) for match in ("exact", "within", "soft")]
    assert found == [exact, within, soft]


@given(
    claims,
    golds,
    st.floats(0, 5),
    st.sampled_from(["soft", "exact"]),
    st.sampled_from(["claims", "matched"]),
    st.sampled_from(["mean", "max"]),
)
@settings(max_examples=200, deadline=None)
def test_spatial_is_bounded_and_matched_is_never_less(
    said: list[Claim], gold: list[Box], gate: float, match: str, normaliser: str, aggregate: str
) -> None:
    value = rules.think_spatial(said, gold, gate=gate, match=match, normaliser=normaliser, aggregate=aggregate)
    assert 0 <= value <= 1
    by_claims = rules.think_spatial(said, gold, gate=gate, match=match, normaliser="claims", aggregate=aggregate)
    by_matched = rules.think_spatial(said, gold, gate=gate, match=match, normaliser="matched", aggregate=aggregate)
    assert by_claims <= by_matched + 1e-12


@given(
    st.lists(finite, max_size=6),
    st.lists(finite, min_size=1, max_size=6),
    st.floats(1e-3, 1e3),
    st.lists(windows, max_size=4),
)
def test_temporal_parts_are_bounded(
    times: list[float], frames: list[float], sigma: float, gold: list[tuple[float, float]]
) -> None:
    assert 0 <= rules.think_temporal_point(times, frames, sigma) <= 1
    assert 0 <= rules.think_temporal_segment(times, gold) <= 1


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_accuracy_is_bounded_for_any_text(text: str, gold: str) -> None:
    answers = (Answer("word", gold), Answer("text", gold), Answer("number", 3.0), Answer("letter", "A", (gold, "x")))
    for answer in (*answers, Answer("window", (1.0, 2.0)), Answer("box", RED)):
        assert 0 <= rules.accuracy(answer, text) <= 1
