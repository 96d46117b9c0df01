"""The reader of responses: nothing is guessed, nothing is slow, nothing raises."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reward_data import claim, response
from visd.reward.parse import (
    blank_tags,
    find_windows,
    normalise,
    parse_box,
    parse_letter,
    parse_number,
    parse_response,
    parse_window,
    tag_spans,
)
from visd.types import DIMENSIONS

FRAGMENTS = (
    *("<think>", "</think>", "<answer>", "</answer>", "<obj>", "</obj>", "<box>", "</box>", "<t>", "</t>"),
    *(
        "red square",
        "[0.1,0.2,0.3,0.4]",
        "[1.0, 3.0]",
        "1.0",
        "s",
        "at",
        " ",
        "\n",
        "From ",
        " to ",
        "-",
        "(B)",
        "é",
        "nan",
        "<",
    ),
)
fragments = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)


def test_a_whole_response() -> None:
    text = response(f"0s a1 {claim()} then {claim('blue circle', t=2.5)} so right", " right ")
    parsed = parse_response(text)
    assert parsed.well_formed and not parsed.unclosed
    assert parsed.answer == "right"
    assert text[slice(*parsed.answer_span)] == "right"
    assert parsed.think == text[slice(*parsed.think_span)]
    assert parsed.times == (1.0, 2.5)
    assert [text[slice(*span)] for span in parsed.time_spans] == ["<t>1.0</t>", "<t>2.5</t>"]
    assert [(c.name, c.boxes, c.t) for c in parsed.claims] == [
        ("red square", ((0.1, 0.2, 0.4, 0.5),), 1.0),
        ("blue circle", ((0.1, 0.2, 0.4, 0.5),), 2.5),
    ]
    assert [text[slice(*c.span)] for c in parsed.claims] == [claim(), claim("blue circle", t=2.5)]
    assert [text[slice(*c.place)] for c in parsed.claims] == [claim(t=None), claim("blue circle", t=None)]
    assert parsed.claims[0].time and text[slice(*parsed.claims[0].time)] == "at<t>1.0</t>s"


def test_spaces_and_several_boxes_in_a_claim() -> None:
    text = "<think><obj> car </obj> <box>[0.1, 0.2, 0.3, 0.4]</box>, <box>[0,0,1,1]</box> at <t>2</t> s.</think>"
    (found,) = parse_response(text).claims
    assert (found.name, found.t) == ("car", 2.0)
    assert found.boxes == ((0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 1.0, 1.0))
    assert text[found.span[1] :] == ".</think>"


@pytest.mark.parametrize(
    ("text", "answer", "well_formed", "unclosed"),
    [
        ("<think>a</think><answer>b</answer>", "b", True, False),
        (" <think>a</think>\n<answer>b</answer>\n", "b", True, False),
        ("<think></think><answer>b</answer>", "b", True, False),
        ("<think>a</think><answer>b", None, False, True),  # cut off
        ("<think>a", None, False, True),
        ("<think>a<answer>b</answer>", "b", False, True),  # the reasoning never ends
        ("<think>a</think>b", None, False, False),
        ("<answer>b</answer>", "b", False, False),
        ("a</think><answer>b</answer>", "b", False, False),
        ("<think>a</think><answer></answer>", None, False, False),
        ("<think>a</think><answer>  </answer>", None, False, False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "c", False, False),
        ("<think>a</think><answer>b</answer><answer>c", None, False, True),  # the last word was cut off
        ("<think><answer>b</answer></think>", None, False, False),  # only thought of
        ("<think><answer>b</answer></think><answer>c</answer>", "c", False, False),
        ("<think>a</think><answer><answer>b</answer></answer>", "b", False, False),
        ("<think><think>a</think></think><answer>b</answer>", "b", False, False),
        ("<answer>b</answer><think>a</think>", None, False, False),
        ("hello <think>a</think><answer>b</answer>", "b", False, False),
        ("<think>a</think><answer>b</answer> bye", "b", False, False),
        ("<think>a</think> so <answer>b</answer>", "b", False, False),
        ("<think>a<t>1</think><answer>b</answer>", "b", False, False),
        ("<think>a</t></think><answer>b</answer>", "b", False, False),
        ("<think><obj>a<box>[0,0,1,1]</obj></box></think><answer>b</answer>", "b", False, False),
        ("<think><obj><t>1</t></obj></think><answer>b</answer>", "b", False, False),
        ("<think>a</think><answer>b</answer></answer>", "b", False, False),
        ("", None, False, False),
    ],
)
def test_tags(text: str, answer: str | None, well_formed: bool, unclosed: bool) -> None:
    parsed = parse_response(text)
    assert (parsed.answer, parsed.well_formed, parsed.unclosed) == (answer, well_formed, unclosed)


@pytest.mark.parametrize("t", ["nan", "inf", "-1", "1e400", "1,5", "", "one", "1 2", "9" * 400])
def test_unreadable_times_are_none(t: str) -> None:
    parsed = parse_response(response(claim(t=t), "x"))
    assert parsed.times == ()
    assert [c.t for c in parsed.claims] == [None]


@pytest.mark.parametrize(
    "box",
    [
        "[0.4,0.2,0.1,0.5]",
        "[0.1,0.2,0.1,0.5]",
        "[0.1,0.2,0.3]",
        "[nan,0,1,1]",
        "[0,0,inf,1]",
        "[10,20,30,40]",
        "[-0.1,0,1,1]",
        "",
        "x",
    ],
)
def test_unreadable_boxes_are_none(box: str) -> None:
    assert parse_box(f"<box>{box}</box>") is None
    parsed = parse_response(response(f"<obj>a</obj><box>{box}</box>at<t>1</t>s", "x"))
    assert [c.boxes for c in parsed.claims] == [()]  # still a claim: it counts in denominators
    assert parsed.boxes == ()


def test_box_answers() -> None:
    assert parse_box("<box>[0.1,0.2,0.4,0.5]</box>") == (0.1, 0.2, 0.4, 0.5)
    assert parse_box("<obj>red square</obj><box>[0.1, 0.2, 0.4, 0.5]</box>") == (0.1, 0.2, 0.4, 0.5)
    assert parse_box("[0, .5, 1, 1.0]") == (0.0, 0.5, 1.0, 1.0)
    assert parse_box("<box>[0,0,1,1]</box><box>[0,0,0.5,1]</box>") is None
    assert parse_box("0.1 0.2 0.4 0.5") is None


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("From <t>1.0</t>s to <t>3.0</t>s", (1.0, 3.0)),
        ("from <t>1</t> s to <t>3.25</t> s", (1.0, 3.25)),
        ("[1.0, 3.0]", (1.0, 3.0)),
        ("[1.0s, 3.0s]", (1.0, 3.0)),
        ("1.0s - 3.0s", (1.0, 3.0)),
        ("It happens from 1 to 3 seconds.", (1.0, 3.0)),
        ("[2, 2]", (2.0, 2.0)),
        ("From <t>3.0</t>s to <t>1.0</t>s", None),
        ("[3, 1]", None),
        ("[-1, 3]", None),
        ("-1 to 3", None),
        ("[nan, 3]", None),
        ("[1, inf]", None),
        ("[1, 2, 3]", None),
        ("[1, 2] or [3, 4]", None),
        ("[1, 2] or [4, 3]", None),
        ("at 3 s", None),
        ("", None),
    ],
)
def test_windows(text: str, window: tuple[float, float] | None) -> None:
    assert parse_window(text) == window


def test_all_windows_in_order() -> None:
    assert find_windows("[1, 2] then [4, 3] then 5s to 6s") == [(1.0, 2.0), None, (5.0, 6.0)]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *[
            (text, "B")
            for text in ("B", "b", "B.", "(B)", "[B]", "B:", " B ", "B) left", "B. left", "(B) left", "left", "Left.")
        ],
        *[
            (text, "B")
            for text in ("The answer is (B)", "The answer is B.", "Correct Option: B", "option B", "I choose (B).")
        ],
        ("A dog", "C"),
        ("dog", "C"),
        ("A or B", None),
        ("(A) or (B)", None),
        ("B. The answer is C", None),
        ("Z", None),
        ("(D)", None),
        ("the answer is a secret", None),
        ("right or left", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert parse_letter(text, ("right", "left", "the dog")) == letter


def test_option_text_shared_by_two_options_names_neither() -> None:
    assert parse_letter("left", ("left", "Left.")) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[
            (text, 3.0)
            for text in ("3", "3.", "3.0", "+3", "(3)", "3 squares", "There are 3.", "three", "Three (3)", "x=3", "3s")
        ],
        ("-2 C", -2.0),
        ("\u22122", -2.0),
        ("$1,234.5", 1234.5),
        (".5", 0.5),
        ("50%", 50.0),
        ("1e3", 1000.0),
        *[
            (text, None)
            for text in ("3 of 5", "2-3", "1/2", "nan", "inf", "-inf", "1e400", "m2", "many", "", "9" * 400)
        ],
    ],
)
def test_numbers(text: str, number: float | None) -> None:
    assert parse_number(text) == number


def test_words() -> None:
    assert normalise(" The RIGHT. ") == normalise("right") == "right"
    assert normalise("left-to-right!") == "left to right"
    assert normalise("the") == "the"
    assert normalise("ＲＥＤ") == "red"


def test_blanked_tags_keep_offsets() -> None:
    text = f"a {claim()} so right"
    assert len(blank_tags(text)) == len(text)
    assert blank_tags(text).split() == ["a", "at", "s", "so", "right"]


def test_dimensions_of_tags() -> None:
    text = response(
        f"see {claim()} from <t>1.0</t>s to <t>3.0</t>s, 2 s, 7 - 3 = 4, [3, 1] so", "From <t>1.0</t>s to <t>3.0</t>s"
    )
    spans = [(text[start:end], dimension) for start, end, dimension in tag_spans(text)]
    assert spans == [
        ("<think>see ", "logic"),
        ("<obj>red square</obj>", "spatial"),
        ("<box>[0.1,0.2,0.4,0.5]</box>", "spatial"),
        ("at<t>1.0</t>s", "temporal"),
        (" ", "logic"),
        ("from <t>1.0</t>s to <t>3.0</t>s", "temporal"),
        (", ", "logic"),
        ("2 s", "temporal"),
        (", 7 - 3 = 4, [3, 1] so</think>", "logic"),
        ("<answer>From <t>1.0</t>s to <t>3.0</t>s</answer>", "answer"),
    ]


def test_a_cut_answer_still_has_its_dimension() -> None:
    assert tag_spans("<think>a</think><answer>le")[-1] == (16, 26, "answer")


@given(fragments | st.text(max_size=200))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read(text: str) -> None:
    parsed = parse_response(text)
    assert all(math.isfinite(t) and t >= 0 for t in parsed.times)
    assert all(0 <= v <= 1 for box in parsed.boxes for v in box)
    assert parsed.answer is None or text[slice(*parsed.answer_span)] == parsed.answer
    spans = tag_spans(text)
    assert "".join(text[start:end] for start, end, _ in spans) == text
    assert all(start < end and dimension in DIMENSIONS for start, end, dimension in spans)
    assert all(a[1] == b[0] for a, b in pairwise(spans))


@given(fragments)
@settings(max_examples=300, deadline=None)
def test_windows_boxes_and_numbers_are_finite(text: str) -> None:
    window, box, number = parse_window(text), parse_box(text), parse_number(text)
    assert window is None or 0 <= window[0] <= window[1] < math.inf
    assert box is None or (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1)
    assert number is None or math.isfinite(number)


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<t>",
        "<obj>a</obj>" + " " * 50,
        "<box>[0.1,",
        "[1,",
        "1",
        "1.",
        "1 ",
        "-",
        "from 1 to ",
        "\n",
        "<answer>",
        claim() + " ",
        "1s - ",
        "1,",
        "(A",
    ],
)
def test_time_is_linear_in_any_text(unit: str) -> None:
    text = (unit * (200_000 // len(unit) + 1))[:200_000]
    started = time.process_time()
    parse_response("<think>" + text)
    tag_spans(text)
    for read in (parse_window, parse_box, parse_number, parse_letter, normalise):
        read(text)
    assert time.process_time() - started < 4  # seconds; anything quadratic takes minutes


def test_a_megabyte_response_takes_no_quadratic_time() -> None:
    text = response(f"0s a1 b2 {claim()} so right " * 13_000, "right")
    started = time.process_time()
    assert len(parse_response(text).claims) == 13_000
    assert len(text) > 1_000_000 and time.process_time() - started < 20  # 1.5 on a slow core, and minutes otherwise


def test_hundreds_of_claims() -> None:
    assert len(parse_response(response(claim() * 700, "x")).claims) == 700
