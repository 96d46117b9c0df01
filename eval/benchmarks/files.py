"""Reading a benchmark's files. What is missing or malformed is named, with what to download."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_tools.io.rows import load_json
from data_tools.io.rows import read_rows as rows_of
from eval.benchmarks.base import Item
from visd.data.fields import ManifestError
from visd.types import VisdError

_LABEL = re.compile(r"^\s*[(\[]?([A-Z])[)\].:]\s*")


class Source:
    """The local copy of a benchmark."""

    def __init__(self, root: Path, hub: str, needs: str):
        self.root, self.hub, self.needs = root, hub, needs

    def path(self, *names: str) -> Path:
        """The first of several files that is there.

        Raises:
            VisdError: none is; says what to download and where to put it.
        """
        for name in names:
            if found := sorted(self.root.glob(name)):
                return found[0]
        wanted = " or ".join(names)
        raise VisdError(f"root: {self.root} holds no {wanted}. Download {self.hub} and put it there: {self.needs}")

    def paths(self, *patterns: str) -> list[Path]:
        """All files of the first of several patterns that there is a file of."""
        self.path(*patterns)
        return next(found for pattern in patterns if (found := sorted(self.root.glob(pattern))))

    def rows(self, *names: str) -> list[dict[str, Any]]:
        """Records of a JSON list, a JSONL, CSV or Parquet file."""
        path = self.path(*names)
        return read_rows(path)

    def json(self, *names: str) -> Any:
        path = self.path(*names)
        try:
            return load_json(path)
        except ManifestError as error:
            raise VisdError(f"{error}; if it was not edited, download it again.") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Records of a file, by its suffix (`data_tools.io.rows`).

    Raises:
        VisdError: it cannot be read as that.
    """
    try:
        rows = load_json(path) if path.suffix == ".json" else [row for _, row in rows_of(path)]
    except ManifestError as error:
        raise VisdError(f"{error}; if it was not edited, download it again.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise VisdError(f"{path}: must hold a list of objects; download the file again.")
    return rows


def field(row: dict[str, Any], name: str, where: str) -> Any:
    """A field that a row must have.

    Raises:
        VisdError: it has not.
    """
    if name not in row:
        raise VisdError(f"{where}: field {name!r} is missing (there are {', '.join(row)}); is this the published file?")
    return row[name]


def located(items: Sequence[Item], root: Path, unique_names: bool) -> list[Item]:
    """Items with the paths that their videos have, where archives were unpacked into another folder than expected.

    A file that is not where it should be is looked for by the end of its path: folder and name, or where `unique_names` the
    name alone. One that several paths end in, or none, keeps its path, and is a dropped question if it is not there.
    """
    lost = {m.path for item in items for m in item.media if not (root / m.path).exists()}
    if not lost:
        return list(items)
    ends: dict[str, list[str]] = {}
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if not parts[0].startswith("."):
            for size in (1, 2):
                ends.setdefault("/".join(parts[-size:]), []).append("/".join(parts))
    found = {path: place for path in lost if (place := _place(path, ends, unique_names)) is not None}
    return [
        replace(item, media=tuple(replace(m, path=found.get(m.path, m.path)) for m in item.media)) for item in items
    ]


def _place(path: str, ends: Mapping[str, list[str]], unique_names: bool) -> str | None:
    parts = path.split("/")
    for size in range(len(parts), 1 - unique_names, -1):
        end = "/".join(parts[-size:])
        places = [place for place in ends.get("/".join(parts[-2:][-size:]), ()) if f"/{place}".endswith(f"/{end}")]
        if places:
            return places[0] if len(places) == 1 else None
    return None


def without_letters(options: Iterable[Any]) -> tuple[str, ...]:
    """Options without their `A. ` or `(A) `, where all are labelled in order."""
    texts = [str(option) for option in options]
    labels = [match[1] if (match := _LABEL.match(text)) else None for text in texts]
    if labels == [chr(ord("A") + i) for i in range(len(texts))]:
        return tuple(_LABEL.sub("", text, count=1).strip() for text in texts)
    return tuple(text.strip() for text in texts)


def letter_of(answer: Any, options: tuple[str, ...], where: str) -> str:
    """The letter of a true answer given as letter, labelled option, or an option's own text.

    Raises:
        VisdError: it is none of the options.
    """
    text = str(answer).strip()
    if len(text) == 1 and ord(text.upper()) - ord("A") in range(len(options)):
        return text.upper()
    bare = [option.strip().rstrip(".") for option in options]
    for candidate in (text, _LABEL.sub("", text, count=1)):
        if candidate.strip().rstrip(".") in bare:
            return chr(ord("A") + bare.index(candidate.strip().rstrip(".")))
    raise VisdError(f"{where}: the answer {text!r} is none of the options {list(options)}.")
