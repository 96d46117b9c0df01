"""What a language-model judge must answer: the JSON schema that is sent, and the strict reading of what comes back.

Nothing is made up: an answer that breaks a rule is no answer. The one repair is to take the JSON object out of the text
or the code fence around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from visd.judge.rubrics import Rubric
from visd.types import DIMENSIONS, JudgeReport, JudgeStatus, Span

MAX_FEEDBACK = 1000
SENTENCES = (2, 4)
MAX_SPANS = 8
MAX_QUOTE = 500
QUOTED_WORDS = 10
"""Feedback that has this many words in a row from the response quotes it."""
REQUIRED = (*DIMENSIONS, "feedback")
VERDICTS: tuple[Literal["right", "wrong"], ...] = ("right", "wrong")

_SENTENCE = re.compile(r"[.!?]+[\"')\]”’]*(?=\s+[^\sa-z]|\s*$)")
_WORD = re.compile(r"\w+")


class Unreadable(ValueError):
    """An answer that breaks a rule; the message says which."""


@dataclass(frozen=True)
class Read:
    """An answer and how it was read."""

    report: JudgeReport
    dropped_spans: int = 0  # quotations that do not stand in the response exactly once
    why: str = ""  # why the answer could not be read; empty otherwise


def response_schema(rubric: Rubric) -> dict[str, Any]:
    """The JSON schema of an answer; a dimension that does not apply can only be null."""
    score = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    applies = {"answer": True, "logic": True, "temporal": rubric.temporal, "spatial": rubric.spatial}
    span = {
        "type": "object",
        "properties": {
            "quote": {"type": "string", "maxLength": MAX_QUOTE},
            "dimension": {"type": "string", "enum": list(DIMENSIONS)},
            "verdict": {"type": "string", "enum": list(VERDICTS)},
        },
        "required": ["quote", "dimension", "verdict"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            **{name: score if applies[name] else {"type": "null"} for name in DIMENSIONS},
            "feedback": {"type": "string", "maxLength": MAX_FEEDBACK},
            "spans": {"type": "array", "items": span, "maxItems": MAX_SPANS},
        },
        "required": [*REQUIRED, "spans"],
        "additionalProperties": False,
    }


def read_answer(text: str, rubric: Rubric, shown: str) -> Read:
    """The report that an answer gives. Never raises: an answer that breaks a rule is a `parse_failure`.

    Args:
        shown: the whole response as the judge was shown it; offsets in it are offsets in the response.
    """
    try:
        fields, status = _json_object(text)
        _check_names(fields, REQUIRED, (*REQUIRED, "spans"), "the answer")
        scores = {name: _score(fields[name], name) for name in DIMENSIONS}
        feedback = _feedback(fields["feedback"], shown)
        spans, dropped = _spans(fields.get("spans", []), shown)
    except (Unreadable, RecursionError) as error:
        return Read(JudgeReport("parse_failure"), why=str(error))
    # A score for what does not apply is set aside; nothing stands in its place.
    scores |= {name: None for name in ("temporal", "spatial") if not getattr(rubric, name)}
    return Read(JudgeReport(status, **scores, feedback=feedback, spans=spans), dropped)


def _json_object(text: str) -> tuple[dict[str, Any], JudgeStatus]:
    """The answer's object; `repaired` if other text had to be taken away from around it."""
    text = text.strip()
    start = text.find("{")
    if start < 0:
        raise Unreadable("it holds no JSON object")
    decoder = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_without_repetition)
    try:
        value, end = decoder.raw_decode(text, start)
    except ValueError as error:
        raise Unreadable(f"its JSON is broken ({error})") from None
    if start == 0 and end == len(text):
        return value, "ok"
    if "{" in text[end:]:
        raise Unreadable("it holds more than one JSON object")
    return value, "repaired"


def _no_constant(name: str) -> Any:
    raise Unreadable(f"{name} is no number")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Unreadable("a field stands twice")
    return value


def _check_names(value: Mapping[str, Any], required: tuple[str, ...], known: tuple[str, ...], what: str) -> None:
    for name in required:
        if name not in value:
            raise Unreadable(f"{what} lacks {name}")
    if any(name not in known for name in value):
        raise Unreadable(f"{what} has an unknown field")


def _score(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"{name} is neither a number nor null")
    if not 0 <= value <= 1:
        raise Unreadable(f"{name} lies outside 0 to 1")
    return float(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Unreadable(f"{what} is no string")
    return value


def _feedback(value: Any, shown: str) -> str:
    feedback = " ".join(_text(value, "feedback").split())
    if len(feedback) > MAX_FEEDBACK:
        raise Unreadable(f"feedback has more than {MAX_FEEDBACK} characters")
    count = sentences(feedback)
    if not SENTENCES[0] <= count <= SENTENCES[1]:
        raise Unreadable(f"feedback has {count} sentences, not {SENTENCES[0]} to {SENTENCES[1]}")
    if quotes(feedback, shown):
        raise Unreadable("feedback quotes the response")
    return feedback.encode("utf-8", "replace").decode()


def sentences(text: str) -> int:
    """Sentences of a text: ends followed by the beginning of another or by nothing; `3.5 s` and `e.g. a` are none."""
    ends = list(_SENTENCE.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(rest.strip())


def quotes(feedback: str, response: str) -> bool:
    """Whether the feedback has `QUOTED_WORDS` words in a row from the response."""
    said = _WORD.findall(feedback.casefold())
    runs = range(len(said) - QUOTED_WORDS + 1)
    text = f" {' '.join(_WORD.findall(response.casefold()))} " if runs else ""
    return any(f" {' '.join(said[i : i + QUOTED_WORDS])} " in text for i in runs)


def _spans(value: Any, shown: str) -> tuple[tuple[Span, ...], int]:
    """The quotations that stand in the response exactly once, in order, and how many do not."""
    if not isinstance(value, list) or len(value) > MAX_SPANS:
        raise Unreadable(f"spans is no list of at most {MAX_SPANS}")
    found = [_span(item, shown) for item in value]
    located = sorted((span for span in found if span is not None), key=lambda span: (span.start, span.end))
    return tuple(located), len(found) - len(located)


def _span(item: Any, shown: str) -> Span | None:
    names = ("quote", "dimension", "verdict")
    if not isinstance(item, dict):
        raise Unreadable("a span is no object")
    _check_names(item, names, names, "a span")
    quote, dimension = _text(item["quote"], "a quote"), item["dimension"]
    verdict = next((v for v in VERDICTS if v == item["verdict"]), None)
    if dimension not in DIMENSIONS or verdict is None:
        raise Unreadable("a span has an unknown dimension or verdict")
    start = shown.find(quote)
    once = bool(quote.strip()) and start >= 0 and shown.find(quote, start + 1) < 0
    return Span(start, start + len(quote), dimension, verdict) if once else None
