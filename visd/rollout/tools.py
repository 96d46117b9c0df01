"""Tools that a policy may call while it answers: how a call is written and read, and the calculator (the other is `zoom`).

A call is one JSON object between tags, `<tool_call>{"name": "calculator", "arguments": {"expression": "2*(3+4)"}}</tool_call>`,
and what the tool says stands between `<tool_response>` tags. A tool answers in fixed words and numbers and never repeats
what it was given, so that nothing a policy writes comes back to it as a tool's word.
"""

from __future__ import annotations

import ast
import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from visd.types import Frames, Prompt

OPEN, CLOSE = "<tool_call>", "</tool_call>"
RESULT = "<tool_response>{}</tool_response>"

MOST_CHARACTERS = 200
"""Of an expression."""
MOST_NODES = 100
"""Of its syntax tree."""
LARGEST = 1e100
"""Of any number that stands in it or comes up while it is worked out."""


@dataclass(frozen=True)
class Said:
    """What a tool answers: a text, and frames that are shown after it."""

    text: str
    frames: tuple[Frames, ...] = ()  # of one picture each
    outcome: str = "ok"  # or why there is no result


class ToolError(Exception):
    """A call without a result; the message is one of a few fixed ones."""


class Tool(ABC):
    """Something that answers a call."""

    name: str

    @abstractmethod
    def run(self, arguments: Mapping[str, Any], prompt: Prompt) -> Said:
        """The result of a call in an answer to a prompt.

        Raises:
            ToolError: the arguments have none.
        """


def call(tools: Mapping[str, Tool], text: str, prompt: Prompt) -> Said:
    """Answer the call that `text`, which ends with a closing tag, closes."""
    try:
        name, arguments = read_call(text)
        if name not in tools:
            raise ToolError("unknown tool")
        return tools[name].run(arguments, prompt)
    except ToolError as error:
        return Said(f"error: {error}", outcome=str(error))


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the call that stands last in the text.

    Raises:
        ToolError: what stands between the tags is no call.
    """
    before, opened, _ = text.rpartition(CLOSE)
    _, opened, body = before.rpartition(OPEN)
    try:
        found = json.loads(body) if opened else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ToolError("not a call")
    arguments = found.get("arguments")
    if not isinstance(arguments, dict):
        raise ToolError("not a call")
    return found["name"], arguments


class Calculator(Tool):
    """Arithmetic: + - * / // % **, brackets, abs, min, max, round, sqrt, floor, ceil. Nothing is evaluated as code."""

    name = "calculator"

    def run(self, arguments: Mapping[str, Any], prompt: Prompt) -> Said:
        expression = arguments.get("expression")
        if not isinstance(expression, str) or len(expression) > MOST_CHARACTERS:
            raise ToolError("not an expression")
        try:
            tree = ast.parse(expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ToolError("not an expression") from None
        if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
            raise ToolError("not an expression")
        try:
            value = _value(tree.body)
        except ZeroDivisionError:
            raise ToolError("division by zero") from None
        except (ArithmeticError, ValueError, TypeError):
            raise ToolError("no result") from None
        return Said(str(value) if isinstance(value, int) else f"{value:.10g}")


Number = int | float
BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {  # with the least and the most arguments
    "abs": (abs, 1, 1),
    "round": (round, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (min, 2, MOST_NODES),
    "max": (max, 2, MOST_NODES),
}


def _value(node: ast.expr) -> Number:
    """The value of an expression of which every part is allowed, and no number too large."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in BINARY:
            return _bounded(BINARY[type(node.op)](left, right))
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in FUNCTIONS
        and not node.keywords
    ):
        function, least, most = FUNCTIONS[node.func.id]
        if least <= len(node.args) <= most:
            return _bounded(function(*map(_value, node.args)))
    raise ToolError("not an expression")


def _power(base: Number, exponent: Number) -> Number:
    """base ** exponent, whose size is known before it is worked out."""
    if base != 0 and abs(exponent * math.log10(abs(base))) > math.log10(LARGEST):
        raise ToolError("too large")
    return _bounded(base**exponent)


def _bounded(value: Number) -> Number:
    if isinstance(value, complex) or not math.isfinite(value):
        raise ToolError("no result")
    if abs(value) > LARGEST:
        raise ToolError("too large")
    return value
