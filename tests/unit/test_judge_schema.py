"""Rubrics, the message, and the strict reading of answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.judge_server import GOOD
from tests.unit.reward_data import IMAGE, RED, VIDEO, claim, proof, response, rollout, sample
from visd.judge.prompt import CUT, case_of, inquiry, neutralised, shortened
from visd.judge.rubrics import TASKS, read, rubric_for, task_of
from visd.judge.schema import quotes, read_answer, response_schema, sentences
from visd.types import DIMENSIONS, Answer, Evidence, JudgeReport, Sample, Span

WORD = sample(Answer("word", "right"))
GROUNDED = sample(Answer("word", "right"), proof())
WINDOW = sample(Answer("window", (1.0, 3.0)))
RUBRIC = rubric_for(GROUNDED, "evidence")
TEXT = response(f"first {claim()} then the end, so right", "right")
VERSIONS = {
    "common": (1, "2c531d930f5f"),
    "temporal_qa": (1, "5a95a6ea2eee"),
    "temporal_choice": (1, "990ac6338d3d"),
    "visual_qa": (1, "ea9015b1f5a4"),
    "temporal_spatial": (1, "94b515c2198b"),
    "general_choice": (1, "4fe99e7fe946"),
    "general_free_form": (1, "264a22a18105"),
    "text_reasoning": (1, "51038568f953"),
}
"""Version and the first characters of the text's SHA-256: whoever changes a text raises its version."""


def answered(text: str | None = None, **changes: Any) -> JudgeReport:
    return read_answer(json.dumps({**GOOD, **changes}) if text is None else text, RUBRIC, TEXT).report


# ----------------------------------------------------------------------------------------------- rubrics


@pytest.mark.parametrize("name", ["common", *TASKS])
def test_a_changed_rubric_has_a_new_version(name: str) -> None:
    version, text = read(name)
    assert (int(version), hashlib.sha256(text.encode()).hexdigest()[:12]) == VERSIONS[name]


@pytest.mark.parametrize(
    ("of", "task", "temporal", "spatial"),
    [
        (WINDOW, "temporal_qa", True, False),
        (sample(Answer("letter", "A", ("x", "y")), Evidence(windows=((1.0, 3.0),))), "temporal_choice", True, False),
        (sample(Answer("box", RED), media=IMAGE), "visual_qa", False, True),
        (sample(Answer("text", "it moves"), proof()), "temporal_spatial", True, True),
        (sample(Answer("letter", "A", ("x", "y"))), "general_choice", False, False),
        (sample(Answer("text", "it moves")), "general_free_form", False, False),
        (sample(Answer("number", 3.0), Evidence(frames=(1.0,))), "general_free_form", True, False),
        (sample(Answer("number", 3.0), media=None), "text_reasoning", False, False),
        (sample(Answer("letter", "A", ("x", "y")), media=None), "text_reasoning", False, False),
    ],
)
def test_a_sample_is_judged_by_the_rubric_of_its_task(of: Sample, task: str, temporal: bool, spatial: bool) -> None:
    rubric = rubric_for(of, "evidence")
    assert (task_of(of), rubric.task, rubric.temporal, rubric.spatial) == (task, task, temporal, spatial)
    assert rubric.version == "1.1"
    assert read(task)[1] in rubric.text and "{task}" not in rubric.text and "version:" not in rubric.text
    properties = response_schema(rubric)["properties"]
    assert (properties["temporal"] != {"type": "null"}, properties["spatial"] != {"type": "null"}) == (
        temporal,
        spatial,
    )


@pytest.mark.parametrize("sees", ["evidence", "frames", "both"])
def test_a_rubric_says_what_the_judge_sees(sees: str) -> None:
    text = rubric_for(GROUNDED, sees).text
    assert ("do not see the video" in text) == (sees == "evidence")
    assert ("what the frames show" in text) == (sees == "frames")


# ------------------------------------------------------------------------------------------- the message


def test_facts_are_told_as_json() -> None:
    of = sample(Answer("letter", "B", ("left", "right")), proof(), media=VIDEO)
    message = inquiry(case_of(of, "evidence"), rollout(TEXT), 12000).messages[1]["content"]
    told = json.loads(message.split("Facts (JSON):\n")[1].split("\n\n<<<")[0])
    assert told["question"] == "<video>What?".replace("<", "‹")
    assert (told["verified_answer"], told["options"]) == ("B", {"A": "left", "B": "right"})
    assert told["verified_windows_s"] == [[1.0, 3.0]] and told["key_times_s"] == [1.0, 2.0]
    assert told["verified_boxes"][0] == {"t": 1.0, "object": "red square", "box": list(RED)}


def test_a_cut_response_is_called_so() -> None:
    cut, whole = (inquiry(case_of(WORD, "evidence"), rollout(TEXT, stop), 12000) for stop in ("length", "eos"))
    assert "It was cut off there" in cut.messages[1]["content"]
    assert "It was cut off there" not in whole.messages[1]["content"]


def test_a_long_response_loses_its_middle() -> None:
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert shortened("abcdefghijk", 5) == "abc" + CUT.format(count=6) + "jk"


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_defusing_keeps_every_place(text: str) -> None:
    found = neutralised(text)
    assert len(found) == len(text)
    assert neutralised(found) == found
    assert all(a == b or not a.isalnum() for a, b in zip(text, found, strict=True))


# ------------------------------------------------------------------------------------------- the answer


def test_a_good_answer_is_read_as_it_stands() -> None:
    spans = [
        {"quote": "so right", "dimension": "logic", "verdict": "right"},
        {"quote": "first", "dimension": "temporal", "verdict": "wrong"},
    ]
    found = answered(temporal=0, spatial=0.25, spans=spans)
    assert (found.status, found.temporal, found.spatial) == ("ok", 0.0, 0.25)
    assert [(TEXT[s.start : s.end], s.dimension, s.verdict) for s in found.spans] == [
        ("first", "temporal", "wrong"),
        ("so right", "logic", "right"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(GOOD)}\n```",
        f"Here it is: {json.dumps(GOOD)} Good luck!",
        f"<think>hm</think>\n{json.dumps(GOOD, indent=2)}",
    ],
)
def test_text_around_one_object_is_taken_away(text: str) -> None:
    assert answered(text) == replace(answered(), status="repaired")


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": "1"}, {"answer": True}, {"answer": 1.01}, {"logic": -0.1}, {"logic": [1]}, {"spatial": {}},
        {"temporal": float("nan")}, {"temporal": float("inf")}, {"feedback": None}, {"feedback": ""}, {"feedback": 5},
        {"feedback": "Only one sentence."}, {"feedback": "A. B. C. D. E."}, {"feedback": "No. " + "x" * 1000},
        {"feedback": "It ends well. It says first obj red square obj box 0 1 0 2 0 4 0 5 box."},
        {"spans": None}, {"spans": ["x"]}, {"spans": [{}] * 9}, {"spans": [{"quote": "x", "dimension": "logic"}]},
        {"spans": [{"quote": "first", "dimension": "style", "verdict": "right"}]},
        {"spans": [{"quote": "first", "dimension": "logic", "verdict": "maybe"}]},
        {"spans": [{"quote": 1, "dimension": "logic", "verdict": "right"}]},
        {"spans": [{"quote": "x", "dimension": "logic", "verdict": "right", "why": ""}]},
        {"confidence": 1},
    ],
    ids=str,
)  # fmt: skip
def test_an_answer_that_breaks_a_rule_is_none(changes: dict[str, Any]) -> None:
    assert answered(**changes) == JudgeReport("parse_failure")


@pytest.mark.parametrize("missing", [*DIMENSIONS, "feedback"])
def test_a_missing_field_is_not_made_up(missing: str) -> None:
    text = json.dumps({name: value for name, value in GOOD.items() if name != missing})
    found = read_answer(text, RUBRIC, TEXT)
    assert found.report == JudgeReport("parse_failure") and missing in found.why


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "1", "no object", '{"answer": 1', json.dumps([GOOD, GOOD]), json.dumps(GOOD) * 2,
        f"{{draft}} {json.dumps(GOOD)}", f'{{"outer": {json.dumps(GOOD)}', f'{{"outer": {json.dumps(GOOD)}}}',
        json.dumps(GOOD).replace("{", '{"logic": 0.0, ', 1), '{"a":' * 100_000, '{"answer": ' + "9" * 10_000 + "}",
        json.dumps(GOOD).replace("1.0", "1e999"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_is_not_exactly_one_object_is_none(text: str) -> None:
    assert answered(text) == JudgeReport("parse_failure")


def test_spans_may_be_left_out_and_are_located_exactly_or_dropped() -> None:
    assert answered(json.dumps({k: v for k, v in GOOD.items() if k != "spans"})).status == "ok"
    quotations = ["so right", "so  right", "right", "nowhere", "", "  "]
    spans = [{"quote": quote, "dimension": "logic", "verdict": "right"} for quote in quotations]
    found = read_answer(json.dumps({**GOOD, "spans": spans}), RUBRIC, TEXT)
    start = TEXT.index("so right")
    assert found.report.spans == (Span(start, start + 8, "logic", "right"),)
    assert found.dropped_spans == 5


def test_a_quotation_of_a_defused_text_lies_where_it_was() -> None:
    text = "<|im_end|> a cut " + "x" * 300 + " <<<the end"
    shown = inquiry(case_of(WORD, "evidence"), rollout(text), 100).shown
    assert "left out here" in shown.text
    spans = [{"quote": "‹‹‹the end", "dimension": "logic", "verdict": "wrong"}]
    found = read_answer(json.dumps({**GOOD, "spans": spans}), RUBRIC, shown.whole).report
    assert [text[s.start : s.end] for s in found.spans] == ["<<<the end"]


def test_a_score_for_what_does_not_apply_is_set_aside() -> None:
    text = json.dumps({**GOOD, "temporal": 0.5, "spatial": 0.5})
    assert read_answer(text, rubric_for(WORD, "evidence"), TEXT).report == answered()
    assert read_answer(text, rubric_for(WINDOW, "evidence"), TEXT).report == answered(temporal=0.5)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two.", 2),
        ("At 3.5 s it moves, e.g. to the left. Then it stops!", 2),
        ("One! Two? Three... Four", 4),
        ('It says "no." The rest is fine.', 2),
        ("", 0),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert sentences(text) == count


def test_a_quotation_is_ten_words_in_a_row() -> None:
    words = "one two three four five six seven eight nine ten eleven"
    assert quotes(f"It says: {words.upper()}!", f"so {words}.")
    assert not quotes(f"It says: {words[:43]}", f"so {words}.")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_answer_raises(value: Any) -> None:
    for text in (str(value), json.dumps(value), json.dumps({**GOOD, "spans": value}), json.dumps({**GOOD, "logic": value})):  # fmt: skip
        found = answered(text)
        assert found.usable or found == JudgeReport("parse_failure")
        assert found.logic is None or 0 <= found.logic <= 1
