"""JSON as its standard has it (RFC 8259), in and out: the one home of reading and writing it for data and results.

Python's own module reads and writes NaN and Infinity, which are no JSON, keeps the last of two fields of one name, turns 1e999
into infinity, and lets halves of surrogate pairs through, which cannot be written as UTF-8. All of these are refused here,
with the place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visd.types import VisdError

BOM = b"\xef\xbb\xbf"
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(VisdError):
    """Text that is not JSON, or a value that JSON does not have; the message names the place and what to do."""


def loads(data: bytes | str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        data: UTF-8 where bytes; a byte order mark before it is skipped.
        where: file, or file:line, for messages.

    Raises:
        JsonError: it is not UTF-8, not JSON, holds NaN, Infinity or a number beyond the range of floats, or a field
            stands twice in one object.
    """
    text = data if isinstance(data, str) else decoded(data, where)
    try:
        return _checked(_DECODER.decode(text), text)
    except json.JSONDecodeError as error:
        message = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise JsonError(f"{where}: is not JSON ({message}); repair it, or get the file whole") from error
    except (ValueError, RecursionError) as error:
        raise JsonError(f"{where}: {error}; repair it") from error


def load(path: Path) -> Any:
    """The value of a small JSON file.

    Raises:
        JsonError: it cannot be read, or `loads` refuses what it holds.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JsonError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    return loads(data, str(path))


def decoded(data: bytes, where: str) -> str:
    """UTF-8 as text.

    Raises:
        JsonError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig" if data.startswith(BOM) else "utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(
            f"{where}: is not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from error


def decode_at(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a place of a text, and where it ends; for readers of long texts.

    Raises:
        json.JSONDecodeError: it is not JSON, or not all of it is there.
        ValueError, RecursionError: it holds what `loads` refuses.
    """
    value, end = _DECODER.raw_decode(text, at)
    return _checked(value, text[at:end]), end


def dumps(value: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """A value as JSON, without escapes where UTF-8 needs none.

    Raises:
        JsonError: it holds NaN, an infinity, half a surrogate pair or something that JSON does not have; names the field.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
        if not text.isascii():
            text.encode()
        return text
    except (TypeError, ValueError, RecursionError) as error:
        place = next(_wrong(value, ""), "")
        raise JsonError(f"{place or 'value'}: cannot be written as JSON ({error})") from error


def without_nonfinite(value: Mapping[str, Any]) -> dict[str, Any]:
    """A document with null for NaN and infinities; where they stood, and what they were, stands under `nonfinite`."""
    found: dict[str, str] = {}
    clean: dict[str, Any] = _nulled(value, "", found)
    return {**clean, "nonfinite": found} if found else clean


def _nulled(value: Any, place: str, found: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found[place] = str(float(value))
        return None
    if isinstance(value, Mapping):
        return {key: _nulled(item, _member(place, key), found) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nulled(item, f"{place}[{i}]", found) for i, item in enumerate(value)]
    return value


def _member(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)


def _wrong(value: Any, place: str) -> Iterator[str]:
    """The places of what JSON does not have."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _wrong(str(key), _member(place, key))
            yield from _wrong(item, _member(place, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _wrong(item, f"{place}[{index}]")
    elif isinstance(value, str):
        if any("\ud800" <= sign <= "\udfff" for sign in value):
            yield place
    elif not (value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))):
        yield place


def _checked(value: Any, text: str) -> Any:
    """The value, unless a text in it is half a surrogate pair; `text` is where it was read from."""
    if "\\u" in text and _ESCAPED_SURROGATE.search(text) and (place := next(_wrong(value, ""), None)) is not None:
        raise ValueError(f"field {place!r} holds half of a surrogate pair, which is no text")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} stands twice in one object")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value (write a number, or null where there is none)")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
