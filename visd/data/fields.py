"""Typed reading of one JSON object: every complaint names the place, the sample, the field and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from visd import strict_json
from visd.types import VisdError

_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


class ManifestError(VisdError):
    """A manifest that cannot be used; the message names file:line, the sample, the field and what to do.

    `place` is where, if one value is to blame, and `what` the message without it.
    """

    place: Place | None = None
    what: str = ""


@dataclass(frozen=True)
class Place:
    """Where in a manifest a value stands."""

    where: str  # file:line
    sample_id: str | None = None
    field: str = ""

    def at(self, name: str | int) -> Place:
        """The place of a member of this place's object or list."""
        if isinstance(name, int):
            return Place(self.where, self.sample_id, f"{self.field}[{name}]")
        return Place(self.where, self.sample_id, f"{self.field}.{name}" if self.field else name)

    def error(self, message: str) -> ManifestError:
        sample = f" sample {self.sample_id!r}:" if self.sample_id is not None else ""
        error = ManifestError(f"{self.where}:{sample} field {self.field!r}: {message}")
        error.place, error.what = self, message
        return error


def parse_json(data: bytes | str, where: str) -> Any:
    """The value of a JSON text, read strictly (`visd.strict_json`).

    Raises:
        ManifestError: it is not UTF-8 or no strict JSON.
    """
    try:
        return strict_json.loads(data, where)
    except strict_json.JsonError as error:
        raise ManifestError(str(error)) from error


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return _JSON_NAMES.get(type(value), type(value).__name__)


def as_object(value: Any, place: Place, required: Iterable[str], optional: Iterable[str] = ()) -> Mapping[str, Any]:
    """A JSON object that has all required fields and none outside required + optional."""
    if not isinstance(value, dict):
        raise place.error(f"must be an object, got {kind(value)}")
    required = tuple(required)
    known = (*required, *optional)
    for name in value:
        if name not in known:
            raise place.at(name).error(
                f"is not a known field; remove it or put it under 'meta' (known: {', '.join(known)})"
            )
    for name in required:
        if name not in value:
            raise place.at(name).error("is missing; add it")
    return value


def as_free_object(value: Any, place: Place) -> Mapping[str, Any]:
    """A JSON object with any fields."""
    if not isinstance(value, dict):
        raise place.error(f"must be an object, got {kind(value)}")
    return value


def as_list(value: Any, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise place.error(f"must be a list, got {kind(value)}")
    return value


def as_text(value: Any, place: Place) -> str:
    """A string that is not blank."""
    if not isinstance(value, str):
        raise place.error(f"must be a string, got {kind(value)}")
    if not value.strip():
        raise place.error("must not be empty")
    return value


def as_number(value: Any, place: Place) -> float:
    """A finite number; whole numbers become floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise place.error(f"must be a number, got {kind(value)}")
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        raise place.error("is beyond the range of numbers") from None
    if not math.isfinite(number):
        raise place.error(f"must be finite, got {value}")
    return number


def as_optional_number(value: Any, place: Place) -> float | None:
    return None if value is None else as_number(value, place)


def as_choice(value: Any, place: Place, choices: Iterable[str]) -> str:
    choices = tuple(choices)
    text = as_text(value, place)
    if text not in choices:
        raise place.error(f"{text!r} is not one of {', '.join(choices)}")
    return text


def as_window(value: Any, place: Place) -> tuple[float, float]:
    """[start, end] in seconds, 0 <= start <= end."""
    pair = as_list(value, place)
    if len(pair) != 2:
        raise place.error(f"must hold start and end, got {len(pair)} values")
    start, end = (as_number(v, place.at(i)) for i, v in enumerate(pair))
    if start < 0 or end < start:
        raise place.error(f"[{start}, {end}] is no window; give 0 <= start <= end in seconds")
    return start, end


def as_box(value: Any, place: Place) -> tuple[float, float, float, float]:
    """[x1, y1, x2, y2] in 0-1 with x1 < x2 and y1 < y2."""
    corners = as_list(value, place)
    if len(corners) != 4:
        raise place.error(f"must hold x1, y1, x2, y2, got {len(corners)} values")
    x1, y1, x2, y2 = (as_number(v, place.at(i)) for i, v in enumerate(corners))
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise place.error(
            f"[{x1}, {y1}, {x2}, {y2}] is no box in 0-1; divide pixels by the frame's width and height, x1 < x2, y1 < y2"
        )
    return x1, y1, x2, y2
