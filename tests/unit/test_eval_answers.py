"""Answers are read as the table `tests/data/answers.jsonl` says, each line with its reason."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.answers import final_answer, read
from tests.tree import ROOT

CASES = [json.loads(line) for line in (ROOT / "tests/data/answers.jsonl").read_text(encoding="utf-8").splitlines()]
KINDS = ("letter", "number", "window", "box", "boxes", "yes_no", "math", "text")


def plain(value: Any) -> Any:
    """A reading as JSON has it."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['why']}")
def test_an_answer_is_read_as_the_table_says(case: dict[str, Any]) -> None:
    reading = read(case["text"], case["kind"], case.get("options", ()), case.get("truncated", False))
    assert (plain(reading.value), reading.status) == (case["reads"], case["status"])


def test_the_table_is_large_and_every_line_has_its_own_reason() -> None:
    assert len(CASES) >= 120
    assert all(case["why"] for case in CASES)
    assert {case["kind"] for case in CASES} == set(KINDS)
    assert {case["status"] for case in CASES} == {"tagged", "plain", "empty", "unclosed", "truncated", "unreadable"}
    assert len(
        {(case["text"], case["kind"], case.get("truncated"), str(case.get("options"))) for case in CASES}
    ) == len(CASES)


@given(st.text(alphabet=string.ascii_letters + " .()\n", max_size=200))
@settings(max_examples=40, deadline=None)
def test_no_unfinished_response_has_an_answer(text: str) -> None:
    for response in (text, f"<think>{text}", f"<think>x</think>{text}", f"<think>x</think><answer>{text}"):
        assert final_answer(response, truncated=True).text is None


@given(st.sampled_from(KINDS), st.text(max_size=120), st.booleans())
@settings(max_examples=60, deadline=None)
def test_reading_never_raises(kind: Any, text: str, truncated: bool) -> None:
    for response in (text, f"<answer>{text}</answer>", f"{{{text}", f"[{text}]"):
        reading = read(response, kind, ("one", "two"), truncated)
        assert (reading.value is None) == (reading.status not in ("tagged", "plain"))


@pytest.mark.parametrize("text", ["[" * 3000, "(1,2)," * 2000, "1:05 " * 3000, "start 1 " * 2000, "\\boxed{" * 2000])
def test_long_hostile_texts_are_read_in_little_time(text: str) -> None:
    import time

    began = time.process_time()
    for kind in KINDS:
        read(text, kind)  # type: ignore[arg-type]
    assert time.process_time() - began < 5
