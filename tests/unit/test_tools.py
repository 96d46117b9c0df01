"""The calculator works out arithmetic and nothing else, and calls are read strictly."""

from __future__ import annotations

import json

import pytest

from visd.rollout.tools import CLOSE, OPEN, Calculator, ToolError, call
from visd.train.batches import dummy_row

PROMPT = dummy_row(0).prompt


def calculated(expression: object) -> str:
    return Calculator().run({"expression": expression}, PROMPT).text


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2*(3+4)", "14"),
        ("7/2", "3.5"),
        ("7//2 + 7%4", "6"),
        ("-2**2", "-4"),
        ("2**0.5", "1.414213562"),
        ("10**20", "100000000000000000000"),
        ("max(3, 8.5, 1) - min(2, 4)", "6.5"),
        ("round(2.6) + abs(-1) + floor(1.9) + ceil(1.1)", "7"),
        (" sqrt(81) ", "9"),
        ("1e3", "1000"),
        ("0**0", "1"),
        ("1/3", "0.3333333333"),
    ],
)
def test_arithmetic(expression: str, value: str) -> None:
    assert calculated(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "().__class__",
        "open('x')",
        "[1, 2]",
        "(lambda: 1)()",
        "a + 1",
        "'a' * 3",
        "True + 1",
        "1j",
        "max(*[1, 2])",
        "round(2.5, ndigits=1)",
        "round(5, -1000000)",
        "sqrt(1, 2)",
        "1 if 1 else 2",
        "1 < 2",
        "f'{1}'",
        "(x := 1)",
        "1 +",
        "",
        "(" * 150,
        "1" * 300,
        "+".join(["1"] * 80),
        None,
        3,
        ["1"],
        "1\x00",
    ],
)
def test_all_else_is_no_expression(expression: object) -> None:
    with pytest.raises(ToolError, match=r"^not an expression$"):
        calculated(expression)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("1/0", "division by zero"),
        ("1//0", "division by zero"),
        ("0**-1", "division by zero"),
        ("9**9**9**9", "too large"),
        ("10**101", "too large"),
        ("1e60*1e60", "too large"),
        ("1e999", "no result"),
        ("sqrt(-1)", "no result"),
        ("(-8)**0.5", "no result"),
    ],
)
def test_what_has_no_result_says_why(expression: str, said: str) -> None:
    with pytest.raises(ToolError, match=f"^{said}$"):
        calculated(expression)


def test_a_call_is_the_last_one_of_the_text() -> None:
    tools = {"calculator": Calculator()}
    good = json.dumps({"name": "calculator", "arguments": {"expression": "1+1"}})
    assert call(tools, f"let me see {OPEN} no {OPEN}{good}{CLOSE}", PROMPT).text == "2"
    for text, said in [
        (f"{good}{CLOSE}", "not a call"),
        (f"{OPEN}{good[:-1]}{CLOSE}", "not a call"),
        (f"{OPEN}[1]{CLOSE}", "not a call"),
        (OPEN + '{"name": "calculator"}' + CLOSE, "not a call"),
        (OPEN + '{"name": "calculator", "arguments": "1+1"}' + CLOSE, "not a call"),
        (OPEN + '{"name": "shell", "arguments": {}}' + CLOSE, "unknown tool"),
        (OPEN + '{"name": "calculator", "arguments": {}}' + CLOSE, "not an expression"),
        (OPEN + "[" * 5000 + CLOSE, "not a call"),
    ]:
        result = call(tools, text, PROMPT)
        assert (result.text, result.outcome) == (f"error: {said}", said)
    echo = call(tools, OPEN + '{"name": "<answer>x</answer>", "arguments": {}}' + CLOSE, PROMPT)
    assert "answer" not in echo.text, "a tool never repeats what it was given"
