"""What converters share: rows whose unused fields are kept, options of a conversion, and how rows are refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from data_tools.convert.boxes import BoxReader
from visd.data.fields import Place, kind
from visd.types import Answer, Evidence, Media, Message, Sample, VisdError


class Unusable(VisdError):
    """A row that cannot become a sample. It is counted under `reason` and listed with the message."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Options:
    """How rows become samples; the command line's choices."""

    source: str  # of the samples
    columns: Mapping[str, str] = field(default_factory=dict)  # our name of a field -> its column
    answer_type: str = ""  # of all answers; empty: decided answer by answer
    strip: str = ""  # beginning of paths that is cut off
    folder: str = ""  # put before every path
    extra: Mapping[str, Any] = field(default_factory=dict)  # contents of files beside the data, by name


@dataclass
class Context:
    """What a converter is given besides the row."""

    options: Options
    boxes: BoxReader
    notes: Counter[str] = field(default_factory=Counter)  # what was changed

    def note(self, what: str) -> None:
        self.notes[what] += 1

    def path(self, value: Any, folder: str = "") -> str:
        """A media path below the data root.

        Raises:
            Unusable: it is no text, absolute, or climbs out.
        """
        if not isinstance(value, str) or not value.strip():
            raise Unusable("path", f"a media path must be text, got {kind(value)}")
        text = value.strip().removeprefix("file://")
        if self.options.strip and text.startswith(self.options.strip):
            text = text[len(self.options.strip) :].lstrip("/")
        if re.match(r"[a-z][a-z0-9+.-]+:", text):
            raise Unusable("path", f"{value[:80]!r} is no file; download it, or write embedded media to files")
        if PurePosixPath(text).is_absolute() or PureWindowsPath(text).anchor:
            raise Unusable("path", f"{value!r} is absolute; give --strip with the folder that it begins with")
        if ".." in PurePosixPath(text.replace("\\", "/")).parts:
            raise Unusable("path", f"{value!r} climbs out by '..'; correct it")
        return (PurePosixPath(self.options.folder) / folder / text).as_posix()


MISSING = object()


class Row:
    """One row. What is not taken is kept in the sample's meta, so nothing is lost unseen."""

    def __init__(self, value: Any, place: Place):
        if not isinstance(value, dict):
            raise Unusable("not_an_object", f"a row must be an object, got {kind(value)}")
        self._fields, self._taken = value, set[str]()
        self.place = place

    def has(self, name: str) -> bool:
        """Whether there is a value; null and a missing field are the same, as they are to Parquet and `datasets`."""
        return self._fields.get(name) is not None

    def peek(self, name: str) -> Any:
        """A value that is kept in meta all the same."""
        return self._fields.get(name)

    def take(self, name: str, default: Any = None) -> Any:
        self._taken.add(name)
        value = self._fields.get(name)
        return default if value is None else value

    def text(self, name: str) -> str:
        """A text that must be there."""
        value = self.take(name)
        if not isinstance(value, str) or not value.strip():
            what = "is missing" if value is None else f"must be a text that is not empty, got {kind(value)}"
            raise Unusable("field", f"field {name!r} {what}")
        return value

    def any_text(self, name: str) -> str | None:
        """A text, or a number written as one; None where there is none."""
        value = self.take(name)
        if value is None or isinstance(value, (dict, list, bool)):
            if value is not None:
                raise Unusable("field", f"field {name!r} must be a text, got {kind(value)}")
            return None
        return str(value)

    def list(self, name: str) -> list[Any]:
        """A list; one value alone counts as a list of it, and nothing as an empty one."""
        value = self.take(name, [])
        return value if isinstance(value, list) else [value]

    def all(self) -> dict[str, Any]:
        """Every field."""
        self._taken.update(self._fields)
        return self._fields

    def rest(self) -> dict[str, Any]:
        """The fields that were not taken, without those that hold nothing."""
        return {n: v for n, v in self._fields.items() if n not in self._taken and v is not None}


def sample(
    row: Row,
    context: Context,
    *,
    id: Any,
    family: str,
    media: Iterable[Media],
    messages: Iterable[Message],
    answer: Answer,
    evidence: Evidence | None = None,
    rationale: str | None = None,
    meta: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> Sample:
    """A sample of a row; what the row holds besides goes to meta.fields."""
    extra = {name: value for name, value in (meta or {}).items() if value not in (None, {}, [], "")}
    rest = row.rest()
    if rest:
        extra["fields"] = rest
    return Sample(
        id=str(id),
        source=source or context.options.source,
        family=family,
        media=tuple(media),
        messages=tuple(messages),
        answer=answer,
        evidence=evidence or Evidence(),
        rationale=rationale.strip() or None if rationale else None,
        meta=extra,
    )


@dataclass(frozen=True)
class Format:
    """One public format."""

    name: str
    about: str  # one line of help
    read: Callable[[Row, Context], Iterator[Sample]]
    write: Callable[[Sample], dict[str, Any]] | None = None  # the way back, where there is one
    boxes: str = "auto"  # the convention that the format documents; auto: none
    files: tuple[str, ...] = ()  # names of files beside the data that it reads
