"""What a reasoning concludes, and whether it supports an answer. Words are compared; nothing is understood."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from visd.reward.parse import Parsed, blank_tags, find_numbers, find_windows, normalise
from visd.reward.rules import best_box_iou, temporal_iou
from visd.types import XYXY, Answer, Window

ENDPOINT_SECONDS = 0.5
"""A time this close to an end of a window names that end."""
ELSEWHERE = 0.5
"""Support of an answer that the reasoning names, but not in its conclusion."""

_SENTENCE_END = re.compile(r"[.!?;](?=\s)|\n")
_THEREFORE = re.compile(r"\b(?:so|therefore|thus|hence|the answer is)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Conclusion:
    """The end of a reasoning."""

    text: str  # without evidence tags
    span: tuple[int, int]  # in the response
    explicit: bool  # introduced by a word such as `so`
    bare: bool  # no evidence tag stands in the span


def conclusion(parsed: Parsed) -> Conclusion:
    """The reasoning's last sentence, from the last `so`, `therefore`, `thus`, `hence` or `the answer is` on."""
    plain = blank_tags(parsed.think or "").rstrip()
    start = max((m.end() for m in _SENTENCE_END.finditer(plain)), default=0)
    marker = max((m.end() for m in _THEREFORE.finditer(plain, start)), default=None)
    begin = start if marker is None else marker
    text = plain[begin:]
    begin += len(text) - len(text.lstrip())
    offset = parsed.think_span[0]
    return Conclusion(
        text=text.strip(),
        span=(offset + begin, offset + len(plain)),
        explicit=marker is not None,
        bare="<" not in (parsed.think or "")[begin : len(plain)],
    )


def support(parsed: Parsed, answer: Answer) -> float:
    """How far the reasoning supports an answer, 0-1.

    Word, number, letter (or its option's text): 1 if the conclusion names it, 0.5 if only the reasoning before it does
    and the conclusion is not explicit. Text: share of its words in the reasoning. Window: IoU with the reasoning's last
    window, or the share of its ends among the cited times. Box: best IoU with a cited box.
    """
    think = parsed.think or ""
    if answer.type == "window":
        return _window_support(parsed, cast(Window, answer.value))
    if answer.type == "box":
        return best_box_iou(parsed.boxes, cast(XYXY, answer.value))
    if answer.type == "text":
        words = set(normalise(cast(str, answer.value)).split())
        return len(words & set(normalise(think).split())) / len(words) if words else 0.0
    end = conclusion(parsed)
    if _names(end.text, answer):
        return 1.0
    return ELSEWHERE if not end.explicit and _names(blank_tags(think), answer) else 0.0


def _window_support(parsed: Parsed, window: Window) -> float:
    stated = find_windows(parsed.think or "")
    if stated:
        return temporal_iou(stated[-1], window) if stated[-1] else 0.0
    return sum(any(abs(t - end) <= ENDPOINT_SECONDS for t in parsed.times) for end in window) / 2


def _names(text: str, answer: Answer) -> bool:
    """Whether a text names the value of a word, number or letter."""
    if answer.type == "number":
        value = cast(float, answer.value)
        return any(abs(number - value) <= 1e-9 * max(1.0, abs(value)) for number in find_numbers(text))
    value_text = cast(str, answer.value)
    if answer.type == "word":
        return _has_words(text, value_text)
    index = ord(value_text) - ord("A")
    option = answer.options[index] if index < len(answer.options) else ""
    return _has_words(text, option) or re.search(rf"(?<![\w'’]){value_text}(?![\w'’])", text) is not None


def _has_words(text: str, words: str) -> bool:
    wanted = normalise(words)
    return bool(wanted) and f" {wanted} " in f" {normalise(text)} "
