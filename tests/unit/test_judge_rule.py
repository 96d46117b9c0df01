"""The rule judge: right about right and wrong rollouts, mute about the answer, deaf to what a rollout says of itself."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.reward_data import IMAGE, RED, VIDEO, claim, group, proof, response, rollout, sample
from visd.config import build
from visd.judge import feedback as say
from visd.judge.feedback import TEMPLATES, compose
from visd.judge.reasoning import conclusion, support
from visd.judge.rule import RuleJudge
from visd.reward.parse import parse_response
from visd.types import Answer, Box, Evidence, JudgeReport, Sample, Span, StopReason

RIGHT = Answer("word", "right")
OPTIONS = ("left", "right")
WINDOW = Answer("window", (1.0, 3.0))


def report(of: Sample, text: str, stop: StopReason = "eos") -> JudgeReport:
    return RuleJudge().report(of, rollout(text, stop))


def told(of: Sample, text: str, stop: StopReason = "eos") -> list[str]:
    return re.findall(r"[^.]+\.", report(of, text, stop).feedback.replace(". ", "."))


def scores(found: JudgeReport) -> tuple[float | None, ...]:
    return found.answer, found.logic, found.temporal, found.spatial


# ---------------------------------------------------------------------------------------------------- reports


def test_all_right() -> None:
    found = report(sample(RIGHT, proof()), response(f"0s a1 {claim()} so right", "right"))
    assert scores(found) == (1.0, 1.0, 1.0, 1.0)
    assert found.feedback == "The answer is right. The reasoning supports it."
    assert found.status == "ok" and found.usable


def test_one_report_a_rollout_in_order() -> None:
    reports = RuleJudge().judge([group(sample(RIGHT), response("so right", "right"), "x"), group(sample(RIGHT), "")])
    assert [len(of) for of in reports] == [2, 1]
    assert [r.answer for of in reports for r in of] == [1.0, 0.0, 0.0]


def test_the_judge_is_deterministic() -> None:
    text = response(f"{claim()}{claim('dog')} so left", "left")
    assert len({repr(report(sample(RIGHT, proof()), text)) for _ in range(5)}) == 1


def test_config_builds_it() -> None:
    node = {"_target_": "visd.judge.rule.RuleJudge", "gate_seconds": 0.5}
    assert build(node, "judge") == RuleJudge(gate_seconds=0.5)


@pytest.mark.parametrize(
    ("answer", "evidence", "temporal", "spatial"),
    [
        (RIGHT, Evidence(), False, False),
        (RIGHT, Evidence(windows=((1.0, 3.0),)), True, False),
        (RIGHT, Evidence(frames=(1.0,)), True, False),
        (RIGHT, Evidence(boxes=(Box(1.0, "red square", RED),)), False, True),
        (WINDOW, Evidence(), True, False),
        (Answer("box", RED), Evidence(), False, True),
    ],
)
@pytest.mark.parametrize("text", [response(claim(), "right"), response(claim() + "so [1, 2]", "[1, 2]")])
def test_a_dimension_without_evidence_has_no_score(
    answer: Answer, evidence: Evidence, temporal: bool, spatial: bool, text: str
) -> None:
    found = report(sample(answer, evidence), text)
    assert (found.temporal is not None, found.spatial is not None) == (temporal, spatial)
    assert found.answer is not None and found.logic is not None


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("<think>so right</think><answer>rig", "length", [say.MISSING, say.CUT]),
        ("<think>so right</think><answer>right", "eos", [say.MISSING, say.CUT]),
        ("<think>0s a1 1s", "length", [say.MISSING, say.CUT]),
        ("", "eos", [say.MISSING, say.NO_REASONING, say.FORM]),
        ("<think>so right</think>", "eos", [say.MISSING, say.FORM]),
        ("<think>so right</think>right", "eos", [say.MISSING, say.FORM]),
        ("<answer>right</answer>", "eos", [say.RIGHT, say.NO_REASONING, say.FORM]),
        ("<think>so right</think>ok<answer>right</answer>", "eos", [say.RIGHT, say.FORM]),
    ],
)
def test_form_and_missing_answers(text: str, stop: StopReason, expected: list[str]) -> None:
    assert told(sample(RIGHT), text, stop) == expected


@pytest.mark.parametrize(
    ("answer", "think", "text", "expected"),
    [
        (RIGHT, "so left", "left", [say.WRONG, say.CONCLUSION]),
        (RIGHT, "so right", "left", [say.WRONG, say.DRIFTED]),
        (RIGHT, "so up", "left", [say.WRONG, say.UNSUPPORTED]),
        (RIGHT, "so up", "right", [say.RIGHT, say.UNSUPPORTED]),
        (RIGHT, "It goes right. I am sure", "right", [say.RIGHT, say.SUPPORTED]),
        (Answer("number", 3.0), "so 4", "4", [say.WRONG, say.NUMBER_HIGH, say.CONCLUSION]),
        (Answer("number", 3.0), "so 3", "2", [say.WRONG, say.NUMBER_LOW, say.DRIFTED]),
        (Answer("number", 3.0), "so many", "many", [say.WRONG, say.UNREADABLE]),
        (Answer("letter", "B", OPTIONS), "so right", "B", [say.RIGHT, say.SUPPORTED]),
        (Answer("letter", "B", OPTIONS), "so B", "(B)", [say.RIGHT, say.SUPPORTED]),
        (Answer("letter", "B", OPTIONS), "so right", "A", [say.WRONG, say.DRIFTED]),
        (Answer("letter", "B", OPTIONS), "so left", "A", [say.WRONG, say.CONCLUSION]),
        (Answer("text", "a red square moves"), "a red square moves", "a red square", [say.RIGHT, say.SUPPORTED]),
        (
            Answer("text", "a red square moves to the left"),
            "so it moves left",
            "moves left",
            [say.PARTLY, say.TEXT_LITTLE, say.CONCLUSION],
        ),
        (
            Answer("text", "left"),
            "it moves up and down",
            "it moves up and down",
            [say.WRONG, say.TEXT_MUCH, say.CONCLUSION],
        ),
    ],
)
def test_verdicts_without_evidence(answer: Answer, think: str, text: str, expected: list[str]) -> None:
    assert told(sample(answer, media=None), response(think, text)) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((1.0, 3.0), [say.RIGHT]),
        ((1.1, 3.0), [say.RIGHT]),
        ((0.0, 3.0), [say.PARTLY, say.STARTS_EARLY]),
        ((2.0, 3.0), [say.PARTLY, say.STARTS_LATE]),
        ((1.0, 2.0), [say.PARTLY, say.ENDS_EARLY]),
        ((1.0, 6.0), [say.PARTLY, say.ENDS_LATE]),
        ((0.0, 9.0), [say.PARTLY, say.STARTS_EARLY, say.ENDS_LATE]),
        ((2.8, 9.0), [say.WRONG, say.STARTS_LATE, say.ENDS_LATE]),
        ((4.0, 5.0), [say.WRONG, say.WINDOW_MISSES]),
    ],
)
def test_windows(said: tuple[float, float], expected: list[str]) -> None:
    stated = f"From <t>{said[0]}</t>s to <t>{said[1]}</t>s"
    assert told(sample(WINDOW), response(f"so {stated}", stated))[: len(expected)] == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[0.1,0.2,0.4,0.5]", [say.RIGHT, say.SUPPORTED]),
        ("[0.6,0.6,0.9,0.9]", [say.WRONG, say.BOX_MISSES]),
        ("[0.0,0.0,0.9,0.9]", [say.WRONG, say.BOX_LARGE]),
        ("[0.2,0.3,0.3,0.4]", [say.WRONG, say.BOX_SMALL]),
        ("[0.2,0.3,0.5,0.6]", [say.PARTLY, say.BOX_OFF]),
        ("[0.5,0.5,0.1,0.1]", [say.WRONG, say.UNREADABLE]),
    ],
)
def test_boxes(said: str, expected: list[str]) -> None:
    text = response(f"<obj>red square</obj><box>{said}</box>", f"<box>{said}</box>")
    assert told(sample(Answer("box", RED), media=IMAGE), text)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("think", "temporal", "issues"),
    [
        ("<t>1</t>s <t>2.5</t>s", 1.0, []),
        ("<t>1</t>s <t>9</t>s", 0.5, [say.SOME_TIMES]),
        ("<t>9</t>s", 0.0, [say.ALL_TIMES]),
        ("1s 2s", None, []),
    ],
)
def test_cited_times(think: str, temporal: float | None, issues: list[str]) -> None:
    of = sample(RIGHT, Evidence(windows=((1.0, 3.0),)))
    assert report(of, response(f"{think} so right", "right")).temporal == temporal
    assert told(of, response(f"{think} so right", "right")) == [say.RIGHT, *(issues or [say.SUPPORTED])]


def test_key_frames_stand_for_a_missing_window() -> None:
    of = sample(RIGHT, Evidence(frames=(4.0,)))
    text = response("<t>4.8</t>s so right", "right")
    assert report(of, text).temporal == 1.0
    assert RuleJudge(gate_seconds=0.5).report(of, rollout(text)).temporal == 0.0


@pytest.mark.parametrize(
    ("think", "spatial", "issues"),
    [
        (claim(), 1.0, []),
        (claim(box=(0.1, 0.2, 0.4, 0.38)), 0.6, []),
        (claim(box=(0.6, 0.6, 0.9, 0.9)), 0.0, [say.ALL_BOXES]),
        (claim() + claim(box=(0.6, 0.6, 0.9, 0.9)), 0.5, [say.SOME_BOXES]),
        (claim("blue square"), 0.0, [say.WRONG_OBJECT]),
        (claim(t=2.9), 0.0, []),  # at the time nearest to it there is nothing like it; the times are judged elsewhere
        ("no claim", None, []),
    ],
)
def test_cited_boxes(think: str, spatial: float | None, issues: list[str]) -> None:
    of = sample(RIGHT, Evidence(boxes=(Box(1.0, "red square", RED),)))
    assert report(of, response(f"{think} so right", "right")).spatial == pytest.approx(spatial)
    assert told(of, response(f"{think} so right", "right")) == [say.RIGHT, *(issues or [say.SUPPORTED])]


@pytest.mark.parametrize(
    ("answer", "temporal", "spatial", "issues"),
    [
        (RIGHT, None, None, set()),
        (Answer("number", 3.0), None, None, set()),
        (WINDOW, 0.0, None, {say.NO_TIME}),
        (Answer("box", RED), None, 0.0, {say.NO_BOX}),
        (Answer("text", "a red square"), 0.0, 0.0, {say.NO_TIME, say.NO_BOX}),
    ],
)
def test_citations_are_missed_where_the_answer_calls_for_them(
    answer: Answer, temporal: float | None, spatial: float | None, issues: set[str]
) -> None:
    found = report(sample(answer, proof()), response("so it is", "7"))
    assert (found.temporal, found.spatial) == (temporal, spatial)
    if answer.type == "text":
        assert issues <= set(told(sample(answer, proof()), response("a red square", "a red square")))
    else:
        assert issues == {say.NO_TIME, say.NO_BOX} & set(told(sample(answer, proof()), response("so it is", "7")))


def test_answers_of_grounding_questions_count_in_their_dimension() -> None:
    text = response("<t>1</t>s <t>2</t>s so [1, 2]", "[1, 2]")
    assert report(sample(WINDOW), text).temporal == pytest.approx((0.5 + 1) / 2)
    of = sample(Answer("box", RED), proof())
    assert report(of, response(claim(), "<box>[0.1,0.2,0.4,0.35]</box>")).spatial == pytest.approx((0.5 + 1) / 2)


def test_at_most_four_sentences() -> None:
    of = sample(WINDOW, proof())
    text = response(claim("dog", t=9.0) + "so [0, 9]", "[0, 9]") + "!"
    assert told(of, text) == [say.PARTLY, say.STARTS_EARLY, say.ENDS_LATE, say.CONCLUSION]


# ------------------------------------------------------------------------------------------------------ logic


@pytest.mark.parametrize(
    ("think", "text", "explicit"),
    [
        ("a b so right", "right", True),
        ("so up. It turns, thus right.", "right.", True),
        ("It stops. It goes right", "It goes right", False),
        (f"see {claim()} so right", "right", True),
        ("therefore\nright", "right", False),
        ("", "", False),
    ],
)
def test_conclusions(think: str, text: str, explicit: bool) -> None:
    whole = response(think, "x")
    found = conclusion(parse_response(whole))
    assert (found.text, found.explicit) == (text, explicit)
    assert whole[slice(*found.span)] == text


@pytest.mark.parametrize(
    ("answer", "think", "expected"),
    [
        (RIGHT, "so right", 1.0),
        (RIGHT, "so bright", 0.0),
        (RIGHT, "right so left", 0.0),
        (RIGHT, "right. left", 0.5),
        (RIGHT, "<obj>right</obj><box>[0,0,1,1]</box> so left", 0.0),
        (Answer("number", 3.0), "3 + 1 so 4", 0.0),
        (Answer("number", 3.0), "so three", 1.0),
        (Answer("letter", "A", ("left", "right")), "so A", 1.0),
        (Answer("letter", "A", ("left", "right")), "so A's", 0.0),
        (WINDOW, "<t>1</t>s to <t>2</t>s so <t>1</t>s to <t>3</t>s", 1.0),
        (WINDOW, "so <t>3</t>s to <t>1</t>s", 0.0),
        (WINDOW, "seen <t>1.2</t>s", 0.5),
        (Answer("box", RED), claim(), 1.0),
        (Answer("text", "the red square"), "a red circle", 0.5),
    ],
)
def test_support(answer: Answer, think: str, expected: float) -> None:
    assert support(parse_response(response(think, "x")), answer) == pytest.approx(expected)


def test_logic_is_consistency_and_truth() -> None:
    def logic(think: str, answer: str, evidence: Evidence | None = None) -> float | None:
        return report(sample(RIGHT, evidence or Evidence()), response(think, answer)).logic

    assert logic("so right", "right") == 1.0
    assert logic("so left", "left") == 0.5  # consistent, but wrong
    assert logic("so right", "left") == 0.5  # right, but the answer is another
    assert logic("so up", "left") == 0.0
    assert logic(f"{claim('dog')} so right", "right", proof()) == pytest.approx(2 / 3)  # not about the evidence


# ------------------------------------------------------------------------------------------------------ spans


def test_spans_are_exact() -> None:
    text = response(f"0s {claim()} {claim('red square', (0.6, 0.6, 0.9, 0.9), 9.0)} <t>2.0</t>s so left", "left")
    evidence = Evidence(((1.0, 3.0),), (), (Box(1.0, "red square", RED),))
    found = report(sample(RIGHT, evidence), text).spans
    assert [(text[s.start : s.end], s.dimension, s.verdict) for s in found] == [
        (claim(t=None), "spatial", "right"),
        ("at<t>1.0</t>s", "temporal", "right"),
        ("at<t>9.0</t>s", "temporal", "wrong"),  # no gold box in reach: the second box is neither right nor wrong
        ("<t>2.0</t>", "temporal", "right"),
        ("left", "logic", "wrong"),
        ("left", "answer", "wrong"),
    ]


def test_a_wrong_object_is_a_wrong_span() -> None:
    text = response(f"{claim('dog')} so right", "right")
    assert Span(7, 7 + len(claim("dog", t=None)), "spatial", "wrong") in report(sample(RIGHT, proof()), text).spans


fragments = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            claim(),
            claim("dog", t=7.0),
            "<t>2</t>s",
            " so ",
            "right",
            "left",
            " [1, 3] ",
            ". ",
            "3",
        ]
    ),
    max_size=25,
).map("".join)
answers = st.sampled_from(
    [
        RIGHT,
        WINDOW,
        Answer("number", 3.0),
        Answer("letter", "B", OPTIONS),
        Answer("box", RED),
        Answer("text", "a red square"),
    ]
)


@given(
    answers,
    fragments | st.text(max_size=60),
    st.sampled_from([proof(), Evidence()]),
    st.sampled_from(["eos", "length"]),
)
@settings(max_examples=250, deadline=None)
def test_any_rollout_gets_a_sound_report(answer: Answer, text: str, evidence: Evidence, stop: StopReason) -> None:
    of = sample(answer, evidence, VIDEO)
    for whole in (text, response(text, text)):
        found = report(of, whole, stop)
        assert all(value is None or 0 <= value <= 1 for value in scores(found))
        sentences = told(of, whole, stop)
        assert 2 <= len(sentences) <= 4
        assert set(sentences) <= set(TEMPLATES)  # no word of the rollout, none of the verified answer
        assert len(set(sentences)) == len(sentences) and len(found.feedback) <= 1000
        assert (say.SUPPORTED in sentences) <= (say.RIGHT in sentences)
        assert not {say.RIGHT, say.DRIFTED} <= set(sentences)
        assert all(0 <= span.start < span.end <= len(whole) for span in found.spans)
        ends = [(a.end, b.start) for a, b in pairwise(found.spans)]
        assert all(end <= start for end, start in ends)


def test_sentences_are_short_and_different() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES)
    assert all(len(text.split()) <= 10 and text.endswith(".") for text in TEMPLATES)
    public = {value for name, value in vars(say).items() if name.isupper() and isinstance(value, str)}
    assert public == set(TEMPLATES)
    assert compose(say.WRONG, [say.FORM, say.FORM]) == f"{say.WRONG} {say.FORM}"
