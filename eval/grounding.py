"""Windows and boxes of answers, in the notations that models use.

Windows come out in seconds, boxes in the unit of the text: what they are measured in (0-1, 0-1000, pixels of some
frame) is a fact of the model and the prompt, and is decided by the benchmark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from visd.reward.parse import find_windows
from visd.types import XYXY, Window

_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,3}):(\d{2}(?:\.\d{1,6})?)(?![\d:])")
_MINUTES = re.compile(
    r"(?<![\w.])(\d{1,3})\s?(?:minutes?|mins?|m)\s{0,2}(?:and\s{1,2})?(\d{1,2}(?:\.\d{1,6})?)\s?(?:seconds?|secs?|s)\b",
    re.IGNORECASE,
)
_BETWEEN = re.compile(
    r"\bbetween\s{1,3}((?:<t>)?[\d.]{1,12}(?:</t>)?\s{0,2}(?:seconds?|secs?|s)?)\s{1,3}and\s{1,3}", re.IGNORECASE
)
_NAMED_ENDS = re.compile(
    r"\bstart(?:s|ing)?(?:[_\s]?time)?[\"']?\s{0,3}(?:at|:|=|is)?\s{0,3}<?t?>?(\d{1,9}(?:\.\d{0,9})?)[^\d]{1,40}?"
    r"\bend(?:s|ing)?(?:[_\s]?time)?[\"']?\s{0,3}(?:at|:|=|is)?\s{0,3}<?t?>?(\d{1,9}(?:\.\d{0,9})?)",
    re.IGNORECASE,
)
_NUM = r"-?\d{1,7}(?:\.\d{0,12})?"
_FOUR = re.compile(r"[\[(]\s{0,3}" + r"\s{0,3},\s{0,3}".join([f"({_NUM})"] * 4) + r"\s{0,3}[\])]")
_CORNERS = re.compile(
    r"\(\s{0,3}" + r"\s{0,3},\s{0,3}".join([f"({_NUM})"] * 2) + r"\s{0,3}\)\s{0,3},\s{0,3}\(\s{0,3}"
    rf"({_NUM})\s{{0,3}},\s{{0,3}}({_NUM})\s{{0,3}}\)"
)
_OPENING = re.compile(r"[\[{]")
JSON_TRIES = 200
"""Brackets at which JSON may begin, so that a text of brackets takes no quadratic time."""
_TIME_KEY = re.compile(r"\s{0,3}(\d{1,9}(?:\.\d{0,9})?)\s{0,3}(?:seconds?|secs?|s)?\s{0,3}", re.IGNORECASE)


def read_window(text: str) -> Window | None:
    """The one window of an answer, s; None without one, with two different ones, or with a reversed one.

    Besides what training reads (`visd.reward.parse.find_windows`): `m:ss`, `h:mm:ss`, `1 min 5 s`, `between a and b`,
    and named ends (`{"start": 3, "end": 7}`, "starts at 3 s and ends at 7 s").
    """
    plain = to_seconds(text)
    named = [(float(m[1]), float(m[2])) for m in _NAMED_ENDS.finditer(plain)]
    windows = {(w if w[0] <= w[1] else None) for w in named} or set(find_windows(_BETWEEN.sub(r"from \1 to ", plain)))
    return windows.pop() if len(windows) == 1 else None


def to_seconds(text: str) -> str:
    """Clock times and minutes written as seconds: `1:05` becomes `65.0`."""

    def clock(match: re.Match[str]) -> str:
        return f"{int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3])}"

    text = _MINUTES.sub(lambda m: f"{int(m[1]) * 60 + float(m[2])}s", text)
    return _CLOCK.sub(clock, text)


def read_boxes(text: str) -> list[XYXY]:
    """Every different box of a text in order, in its own unit; reversed and empty ones are none.

    Read are `[x1, y1, x2, y2]`, `(x1, y1, x2, y2)` and `(x1, y1), (x2, y2)`.
    """
    found = [*_FOUR.finditer(text), *_CORNERS.finditer(text)]
    boxes = [_box([float(v) for v in match.groups()]) for match in sorted(found, key=lambda m: m.start())]
    return list(dict.fromkeys(box for box in boxes if box is not None))


def read_timed_boxes(text: str) -> dict[float, list[XYXY]] | None:
    """Boxes by time, from JSON such as `{"3": [x1, y1, x2, y2], "4": [[...], [...]]}`; None without any.

    A list of such objects counts as one, and so do objects that name `time` and `bbox`. JSON that is cut off is not
    completed.
    """
    for value in _json_values(text):
        found: dict[float, list[XYXY]] = {}
        for key, boxes in _timed_items(value):
            time = _TIME_KEY.fullmatch(str(key))
            if time and (kept := _box_list(boxes)):
                found.setdefault(float(time[1]), []).extend(kept)
        if found:
            return found
    return None


def _json_values(text: str) -> Iterator[Any]:
    """Every outermost JSON object or list of a text."""
    decoder, position = json.JSONDecoder(), 0
    text = text.replace("'", '"')
    for _ in range(JSON_TRIES):
        match = _OPENING.search(text, position)
        if match is None:
            return
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (json.JSONDecodeError, RecursionError):
            position = match.start() + 1
            continue
        yield value


def _timed_items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _timed_items(item) if isinstance(item, dict) else ()
        return
    if not isinstance(value, dict):
        return
    named = {str(key).lower(): item for key, item in value.items()}
    time = next((named[k] for k in ("time", "timestamp", "second", "t") if k in named), None)
    box = next((named[k] for k in ("bbox", "bbox_2d", "box", "boxes") if k in named), None)
    if time is not None and box is not None:
        yield time, box
    else:
        yield from value.items()


def _box_list(value: Any) -> list[XYXY]:
    if not isinstance(value, list):
        return []
    if len(value) == 4 and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        box = _box([float(v) for v in value])
        return [box] if box else []
    return [box for item in value for box in (_box_list(item) if isinstance(item, list) and len(item) == 4 else [])]


def _box(v: list[float]) -> XYXY | None:
    return (v[0], v[1], v[2], v[3]) if v[0] < v[2] and v[1] < v[3] else None
