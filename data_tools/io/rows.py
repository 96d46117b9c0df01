"""Rows of data files, a chunk at a time: memory does not grow with the file.

Read are JSON Lines, one JSON list, CSV and TSV with a header, lines of text, Parquet, and folders of Hugging Face `datasets`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visd import strict_json
from visd.data import parquet
from visd.data.fields import ManifestError, parse_json

BLOCK = 1 << 20
"""Bytes of a JSON list read at once."""
LONGEST_ROW = 64 << 20
"""Bytes after which a row of a JSON list that has no end is taken for broken."""
SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "lines",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Chunk:
    """Rows that are read, and worked on, together."""

    path: str
    number: int  # of the chunk, from 0
    rows: tuple[tuple[int, Any], ...]  # row or line number from 1, and the row; bytes of a line where `raw`
    done: int  # how much of `of` is read after it
    of: int  # bytes, or rows, of the input
    raw: bool = False  # rows are JSON lines that nobody has parsed yet

    def parsed(self) -> Iterator[tuple[str, Any]]:
        """file:row and the row's value.

        Raises:
            ManifestError: a line is not UTF-8 or not JSON.
        """
        for where, row in self.placed():
            yield where, self.value(where, row)

    def placed(self) -> Iterator[tuple[str, Any]]:
        """file:row and the row as it was read, for `value`."""
        for number, row in self.rows:
            yield f"{self.path}:{number}", row

    def value(self, where: str, row: Any) -> Any:
        """The value of one row; raises as `parsed`."""
        return parse_json(row, where) if self.raw else row


def check_input(path: Path, folder: bool = False) -> None:
    """Raise ManifestError unless `path` is a file (or, with `folder`, a folder) that can be read."""
    if not path.exists():
        raise ManifestError(f"{path}: there is no such file; check the path")
    if path.is_dir() and not folder:
        raise ManifestError(f"{path}: is a folder; give a file")
    if not path.is_dir() and path.stat().st_size == 0:
        raise ManifestError(f"{path}: is empty")


def read_chunks(path: Path, size: int) -> Iterator[Chunk]:
    """All rows of a file, or of a folder written by `datasets`, `size` rows a chunk.

    Raises:
        ManifestError: the file is missing, empty, of an unknown kind, not UTF-8, broken or cut off.
    """
    check_input(path, folder=True)
    if path.is_dir():
        return _hugging_face(path, size)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ManifestError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
    if kind == "json" and _first_byte(path) != b"[":
        kind = "jsonl"  # many .json files hold one object a line
    readers = {"json": _json_list, "jsonl": _json_lines, "csv": _csv, "tsv": _tsv, "lines": _lines, "parquet": _parquet}
    return readers[kind](path, size)


def read_files(paths: Sequence[Path], size: int) -> Iterator[Chunk]:
    """The chunks of several files, one after the other and numbered through.

    Raises:
        ManifestError: as `read_chunks`.
    """
    sizes = [_bytes_of(path) for path in paths]
    number = 0
    for index, path in enumerate(paths):
        before = sum(sizes[:index])
        for chunk in read_chunks(path, size):
            done = before + sizes[index] * chunk.done // max(chunk.of, 1)
            yield replace(chunk, number=number, done=done, of=sum(sizes))
            number += 1


def _bytes_of(path: Path) -> int:
    check_input(path, folder=True)
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def read_rows(path: Path, size: int = 1000) -> Iterator[tuple[str, Any]]:
    """file:row and value of every row."""
    for chunk in read_chunks(path, size):
        yield from chunk.parsed()


def load_json(path: Path) -> Any:
    """The value of a small JSON file.

    Raises:
        ManifestError: it is missing, a folder, not UTF-8 or no strict JSON.
    """
    check_input(path)
    return parse_json(path.read_bytes(), str(path))


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(4096)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _json_lines(path: Path, size: int) -> Iterator[Chunk]:
    total, position, chunk = path.stat().st_size, 0, 0
    rows: list[tuple[int, bytes]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            position += len(line)
            if line.strip():
                rows.append((number, line))
            if len(rows) == size:
                yield Chunk(str(path), chunk, tuple(rows), position, total, raw=True)
                rows, chunk = [], chunk + 1
    if rows:
        yield Chunk(str(path), chunk, tuple(rows), total, total, raw=True)


def _json_list(path: Path, size: int) -> Iterator[Chunk]:
    total, chunk = path.stat().st_size, 0
    rows: list[tuple[int, Any]] = []
    for number, (value, position) in enumerate(_list_items(path), start=1):
        rows.append((number, value))
        if len(rows) == size:
            yield Chunk(str(path), chunk, tuple(rows), position, total)
            rows, chunk = [], chunk + 1
    if rows:
        yield Chunk(str(path), chunk, tuple(rows), total, total)


def _list_items(path: Path) -> Iterator[tuple[Any, int]]:
    """Values of one JSON list, each with the bytes read so far."""
    with path.open("rb") as raw:
        reader = _ListReader(path, raw)
        while reader.at_value():
            yield reader.value(), raw.tell()


class _ListReader:
    """Reads a JSON list value by value. Holds one block of text, or one row if that is longer."""

    def __init__(self, path: Path, raw: Any):
        self.path, self.number = path, 0
        self._text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="strict", newline="")
        self._buffer, self._at = "", 0
        self._mark()
        self._at += 1  # the opening bracket

    def at_value(self) -> bool:
        """Go to the next value; False at the end of the list."""
        mark = self._mark()
        if mark == "]":
            return False
        if self.number and mark == ",":
            self._at += 1
            mark = self._mark()
        elif self.number and mark:
            raise ManifestError(f"{self.path}:{self.number}: no comma after row {self.number}; repair the file")
        if not mark:
            raise ManifestError(
                f"{self.path}:{self.number}: the list is cut off after row {self.number}; get the file whole"
            )
        self.number += 1
        return True

    def value(self) -> Any:
        """The value that begins here."""
        where = f"{self.path}:{self.number}"
        while True:
            try:
                value, end = strict_json.decode_at(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._at > LONGEST_ROW:
                    raise ManifestError(f"{where}: is not JSON ({error.msg}); repair the row") from error
                if not self._more():
                    message = f"{where}: is not JSON, or the file is cut off here ({error.msg}); get the file whole"
                    raise ManifestError(message) from error
                continue
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{where}: {error}; repair the row") from error
            if end == len(self._buffer) and isinstance(value, (int, float)) and self._more():
                continue  # a number may go on in the next block
            self._at = end
            return value

    def _mark(self) -> str:
        """The next character that is no space, or nothing at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read a block; False at the end of the file."""
        try:
            block = self._text.read(BLOCK)
        except UnicodeDecodeError as error:
            raise ManifestError(
                f"{self.path}: row {self.number} or the next is not UTF-8 ({error.reason}); save the file as UTF-8"
            ) from error
        self._buffer, self._at = self._buffer[self._at :] + block, 0
        return bool(block)


def _csv(path: Path, size: int, delimiter: str = ",") -> Iterator[Chunk]:
    def rows(file: Any) -> Any:
        return csv.DictReader(file, strict=True, restkey="", restval=None, delimiter=delimiter)

    return _texts(path, size, rows)


def _tsv(path: Path, size: int) -> Iterator[Chunk]:
    return _csv(path, size, "\t")


def _lines(path: Path, size: int) -> Iterator[Chunk]:
    return _texts(path, size, lambda file: ({"line": line.rstrip("\r\n")} for line in file if line.strip()))


def _texts(path: Path, size: int, reader: Any) -> Iterator[Chunk]:
    total, chunk = path.stat().st_size, 0
    rows: list[tuple[int, Any]] = []
    number = 0
    with path.open("rb") as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="strict", newline="")
        try:
            for number, row in enumerate(reader(file), start=1):
                if "" in row:
                    raise ManifestError(f"{path}:{number}: row has more columns than the header; repair it")
                rows.append((number, row))
                if len(rows) == size:
                    yield Chunk(str(path), chunk, tuple(rows), raw.tell(), total)
                    rows, chunk = [], chunk + 1
        except UnicodeDecodeError as error:
            message = f"{path}: a row after {number} is not UTF-8 ({error.reason}); save the file as UTF-8"
            raise ManifestError(message) from error
        except csv.Error as error:
            raise ManifestError(f"{path}:{number + 1}: is not CSV ({error}); repair the row") from error
    if rows:
        yield Chunk(str(path), chunk, tuple(rows), total, total)


def _parquet(path: Path, size: int) -> Iterator[Chunk]:
    done = 0
    for number, (rows, total) in enumerate(parquet.read_batches(path, size)):
        numbered = tuple((done + i, row) for i, row in enumerate(rows, start=1))
        done += len(rows)
        yield Chunk(str(path), number, numbered, done, total)


def _hugging_face(path: Path, size: int) -> Iterator[Chunk]:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ManifestError(f"{path}: folders of `datasets` need it; pip install visd[data]") from error
    try:
        data = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: is a folder, but not one of `Dataset.save_to_disk` ({error})") from error
    if not hasattr(data, "column_names") or isinstance(data.column_names, dict):
        raise ManifestError(f"{path}: holds several splits ({', '.join(data)}); give the folder of one")
    total = len(data)
    for number, start in enumerate(range(0, total, size)):
        part = data.select(range(start, min(start + size, total)))
        rows = tuple((start + i, row) for i, row in enumerate(part, start=1))
        yield Chunk(str(path), number, rows, min(start + size, total), total)
