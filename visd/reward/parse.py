"""The one reader of responses: tags, claims, times, windows, boxes, letters, numbers, words.

A response is `<think>REASONING</think><answer>ANSWER</answer>`. Reasoning cites evidence as
`<obj>name</obj><box>[x1,y1,x2,y2]</box>at<t>1.0</t>s`, boxes in 0-1 and times in seconds (the tags of Open-o3-Video,
arXiv 2510.20579). Nothing is guessed: an answer whose tag is not closed is no answer, a reversed window or a box
outside 0-1 is not read, and two different readings of one answer are none.

Every pattern has bounded repetitions or stops at `<`, so that the time is linear in the text, whatever the text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from visd.types import XYXY, Window

CharSpan = tuple[int, int]

_NUM = r"[-+]?(?:\d{1,12}(?:\.\d{0,20})?|\.\d{1,20})"
_TAG = re.compile(r"<(/?)(think|answer|obj|box|t)>")
_TIME_TAG = re.compile(r"<t>([^<]{0,40})</t>")
_BOX_TAG = re.compile(r"<box>([^<]{0,200})</box>")
_CLAIM = re.compile(
    r"(?P<place><obj>(?P<name>[^<]{0,200})</obj>[\s,]{0,20}(?:<box>[^<]{0,200}</box>[\s,]{0,20})+)"
    r"(?P<time>at\s{0,20}<t>(?P<t>[^<]{0,40})</t>(?:\s?s\b)?)?"
)
_FOUR = re.compile(r"\s{0,9}\[?" + r"\s{0,9},".join([rf"\s{{0,9}}({_NUM})"] * 4) + r"\s{0,9}\]?\s{0,9}")
_BARE_BOX = re.compile(r"\[" + ",".join([rf"\s{{0,9}}{_NUM}\s{{0,9}}"] * 4) + r"\]")
_UNSIGNED = re.compile(r"\d{1,12}(?:\.\d{0,20})?|\.\d{1,20}")
_U = rf"(?:{_UNSIGNED.pattern})(?!\d)"
_S = r"\s{0,3}(?:seconds|second|secs|sec|s)\b"
_TIMED = rf"(?:<t>\s{{0,3}}{_U}\s{{0,3}}</t>(?:{_S})?|{_U}{_S})"  # certainly a time
_MOMENT = rf"(?:{_TIMED}|{_U})"  # a time in a place where one belongs
_TO = r"\s{0,3}(?:to|until|-|–)\s{0,3}"
_FREE = r"(?<![\w.\-])"  # no number begins inside a word or another number
_WINDOW = re.compile(
    rf"(?:\bfrom\s{{0,3}}|{_FREE}){_MOMENT}{_TO}{_MOMENT}|\[\s{{0,3}}{_MOMENT}\s{{0,3}},\s{{0,3}}{_MOMENT}\s{{0,3}}\]",
    re.IGNORECASE,
)
_TEMPORAL = re.compile(
    rf"\bfrom\s{{0,3}}{_MOMENT}{_TO}{_TIMED}|{_FREE}{_TIMED}{_TO}{_TIMED}|(?:\bat\s{{0,3}}|{_FREE}|(?=<t>)){_TIMED}"
    r"|\[\s{0,3}\d{1,12}\.\d{1,20}\s{0,3},\s{0,3}\d{1,12}\.\d{1,20}\s{0,3}\]",
    re.IGNORECASE,
)
_EVIDENCE = re.compile(r"<(obj|box|t)>[^<]{0,200}</\1>")
_SPATIAL = re.compile(r"<(obj|box)>[^<]{0,200}</\1>")
_NUMBER = re.compile(
    r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,15})(?:\.\d{0,20})?(?:[eE][-+]?\d{1,3})?(?![\d]|[.,]\d)"
    r"|(?<![\w.])[-+]?\.\d{1,20}(?![\d.])"
)
_NUMBER_NAMES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBER_WORDS = {word: float(value) for value, word in enumerate(_NUMBER_NAMES)}
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"the", "a", "an"})
_LONE_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_LEADING_LETTER = re.compile(r"(?:\(([A-Z])\)|([A-Z])[).:])\s")
_NAMED_LETTER = re.compile(r"\(([A-Z])\)|\b(?i:answer|option|choice)(?:\s{1,3}is)?\s{0,3}:?\s{1,3}([A-Z])\b(?!['’])")


@dataclass(frozen=True)
class Claim:
    """One citation of evidence in the reasoning: an object, where it is, and when."""

    name: str
    boxes: tuple[XYXY, ...]  # the readable ones; may be empty
    t: float | None  # s; None where no readable time follows
    place: CharSpan  # of the object and its boxes in the response
    time: CharSpan | None  # of `at<t>..</t>s`

    @property
    def span(self) -> CharSpan:
        return self.place[0], (self.time or self.place)[1]


@dataclass(frozen=True)
class Parsed:
    """What a response says. Spans are character offsets in the response."""

    think: str | None  # reasoning; None without a think tag
    think_span: CharSpan
    answer: str | None  # stripped; None where missing, empty or cut off
    answer_span: CharSpan
    well_formed: bool  # one think block, one answer block, nothing outside them, every tag paired
    unclosed: bool  # the reasoning or the answer was opened and never closed
    times: tuple[float, ...]  # s, every readable time tag of the reasoning, in order
    time_spans: tuple[CharSpan, ...]  # one a time
    boxes: tuple[XYXY, ...]  # every readable box of the reasoning, in order
    claims: tuple[Claim, ...]  # of the reasoning, in order


@dataclass(frozen=True)
class _Tag:
    name: str
    closing: bool
    start: int
    end: int


def parse_response(text: str) -> Parsed:
    """Read a response. Never raises, whatever the text."""
    tags = [_Tag(m[2], bool(m[1]), m.start(), m.end()) for m in _TAG.finditer(text)]
    think_span, think_closed, after = _find_think(tags, len(text))
    answer_span, answer_open = _find_answer(text, tags, after)
    answer = text[slice(*answer_span)] if answer_span else ""
    start, end = think_span or (0, 0)
    timed = [(t, m.span()) for m in _TIME_TAG.finditer(text, start, end) if (t := parse_time(m[1])) is not None]
    boxes = [box for m in _BOX_TAG.finditer(text, start, end) if (box := _read_box(m[1])) is not None]
    return Parsed(
        think=text[start:end] if think_span else None,
        think_span=(start, end),
        answer=answer or None,
        answer_span=answer_span or (len(text), len(text)),
        well_formed=bool(answer) and _well_formed(text, tags),
        unclosed=answer_open or (think_span is not None and not think_closed),
        times=tuple(t for t, _ in timed),
        time_spans=tuple(span for _, span in timed),
        boxes=tuple(boxes),
        claims=tuple(_read_claim(text, m) for m in _CLAIM.finditer(text, start, end)),
    )


def _find_think(tags: Sequence[_Tag], length: int) -> tuple[CharSpan | None, bool, int]:
    """The reasoning's span, whether it is closed, and where an answer may begin."""
    opened = next((t for t in tags if t.name == "think" and not t.closing), None)
    begin = opened.end if opened else 0
    closed = next((t for t in tags if t.name == "think" and t.closing and t.start >= begin), None)
    if closed:
        return (begin, closed.start), True, closed.end
    if not opened:
        return None, False, 0
    stop = next((t.start for t in tags if t.name == "answer" and not t.closing and t.start >= begin), length)
    return (begin, stop), False, begin


def _find_answer(text: str, tags: Sequence[_Tag], after: int) -> tuple[CharSpan | None, bool]:
    """The stripped span of the last answer block, and whether that block was left open."""
    opened = next((t for t in reversed(tags) if t.name == "answer" and not t.closing and t.start >= after), None)
    if opened is None:
        return None, False
    closed = next((t for t in tags if t.name == "answer" and t.closing and t.start >= opened.end), None)
    if closed is None:
        return None, True
    body = text[opened.end : closed.start]
    start = opened.end + len(body) - len(body.lstrip())
    return (start, start + len(body.strip())), False


def _well_formed(text: str, tags: Sequence[_Tag]) -> bool:
    stack: list[str] = []
    outside = 0
    top: list[str] = []
    for tag in tags:
        if not stack:
            if text[outside : tag.start].strip():
                return False
            top.append(tag.name)
        if not tag.closing:
            if len(stack) == 2 or (stack and tag.name in ("think", "answer")):
                return False
            stack.append(tag.name)
        elif not stack or stack.pop() != tag.name:
            return False
        outside = tag.end
    return not stack and top == ["think", "answer"] and not text[outside:].strip()


def _read_claim(text: str, match: re.Match[str]) -> Claim:
    start = match.start("place")
    boxes = [_read_box(m[1]) for m in _BOX_TAG.finditer(text, *match.span("place"))]
    return Claim(
        name=match["name"].strip(),
        boxes=tuple(box for box in boxes if box is not None),
        t=parse_time(match["t"]) if match["time"] else None,
        place=(start, start + len(match["place"].rstrip(" \t\r\n,"))),
        time=match.span("time") if match["time"] else None,
    )


def parse_time(text: str) -> float | None:
    """Seconds from the inside of a time tag; None unless it is one number, not negative."""
    return float(text) if _UNSIGNED.fullmatch(text.strip()) else None


def _read_box(text: str) -> XYXY | None:
    match = _FOUR.fullmatch(text)
    if not match:
        return None
    x1, y1, x2, y2 = (float(value) for value in match.groups())
    return (x1, y1, x2, y2) if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 else None


def parse_box(text: str) -> XYXY | None:
    """The one box of an answer, tagged or as a bare list; None without one, with several, reversed or outside 0-1."""
    written = [m[1] for m in _BOX_TAG.finditer(text)] or [m[0] for m in _BARE_BOX.finditer(text)]
    boxes = {_read_box(item) for item in written}
    return boxes.pop() if len(boxes) == 1 else None


def _read_window(text: str) -> Window | None:
    start, end = (float(m[0]) for m in _UNSIGNED.finditer(text))
    return (start, end) if start <= end else None


def find_windows(text: str) -> list[Window | None]:
    """Every window of a text in order, in seconds; None for a reversed one.

    Read are `From <t>1.0</t>s to <t>3.0</t>s`, `1.0s - 3.0s` and `[1.0, 3.0]`.
    """
    return [_read_window(m[0]) for m in _WINDOW.finditer(text)]


def parse_window(text: str) -> Window | None:
    """The one window of an answer in seconds, start <= end; None without one, with several, or reversed."""
    windows = set(find_windows(text))
    return windows.pop() if len(windows) == 1 else None


def find_numbers(text: str) -> list[float]:
    """Every finite number of a text; units and thousands separators allowed, `three` too."""
    text = text.replace("\u2212", "-")
    numbers = [float(m[0].replace(",", "")) for m in _NUMBER.finditer(text)]
    numbers += [_NUMBER_WORDS[word] for word in _WORD.findall(text.casefold()) if word in _NUMBER_WORDS]
    return [number for number in numbers if math.isfinite(number)]


def parse_number(text: str) -> float | None:
    """The one number of an answer; None without one or with several."""
    numbers = set(find_numbers(text))
    return numbers.pop() if len(numbers) == 1 else None


def parse_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The chosen option's letter, in upper case: `B`, `B.`, `(B)`, `The answer is (B)`, or an option's own text.

    With `options`, a letter beyond them is none.
    """
    text = text.strip()
    if match := _LONE_LETTER.fullmatch(text):
        return _among(match[1].upper(), options)
    named = [chr(ord("A") + i) for i, option in enumerate(options) if normalise(option) == normalise(text)]
    if len(named) == 1:
        return named[0]
    letters = {m[1] or m[2] for m in _NAMED_LETTER.finditer(text)}
    if match := _LEADING_LETTER.match(text):
        letters.add(match[1] or match[2])
    return _among(letters.pop(), options) if len(letters) == 1 else None


def _among(letter: str, options: Sequence[str]) -> str | None:
    return letter if not options or ord(letter) - ord("A") < len(options) else None


def normalise(text: str) -> str:
    """Words in lower case without punctuation, leading article or extra spaces."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


def blank_tags(text: str) -> str:
    """The text with object, box and time tags and what they hold replaced by spaces, one for each character."""
    return _EVIDENCE.sub(lambda m: " " * len(m[0]), text)


def tag_spans(text: str) -> list[tuple[int, int, str]]:
    """The text cut into (start, end, dimension), in order, without gaps or overlaps.

    The answer block with its tags is `answer`, also when it is cut off; outside it, times and windows are `temporal`,
    object and box tags `spatial`, all else `logic`.
    """
    blocks = _answer_blocks(text)
    marks = [(start, end, "answer") for start, end in blocks]
    found = [(*m.span(), "spatial") for m in _SPATIAL.finditer(text)]
    found += [(*m.span(), "temporal") for m in _TEMPORAL.finditer(text)]
    position = 0
    for mark in sorted(found):
        while position < len(blocks) and blocks[position][1] <= mark[0]:
            position += 1
        if position == len(blocks) or mark[1] <= blocks[position][0]:
            marks.append(mark)
    return _fill(sorted(marks), len(text))


def _answer_blocks(text: str) -> list[CharSpan]:
    blocks: list[CharSpan] = []
    start: int | None = None
    for match in _TAG.finditer(text):
        if match[2] != "answer":
            continue
        if not match[1]:
            start = match.start()
        elif start is not None:
            blocks.append((start, match.end()))
            start = None
    if start is not None:
        blocks.append((start, len(text)))
    return blocks


def _fill(marks: Sequence[tuple[int, int, str]], length: int) -> list[tuple[int, int, str]]:
    spans: list[tuple[int, int, str]] = []
    position = 0
    for start, end, dimension in marks:
        if start < position:
            continue
        if start > position:
            spans.append((position, start, "logic"))
        spans.append((start, end, dimension))
        position = end
    if position < length:
        spans.append((position, length, "logic"))
    return spans
