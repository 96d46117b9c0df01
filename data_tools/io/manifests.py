"""Manifests as streams, in JSON Lines or Parquet, both with the same records (`visd.data.manifest`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.io.rows import Chunk, check_input, read_rows
from visd import strict_json
from visd.data import parquet
from visd.data.fields import ManifestError, Place
from visd.data.manifest import sample_from_record
from visd.types import Sample

KINDS = (".jsonl", parquet.SUFFIX)


def check_kind(path: Path) -> None:
    """Raise ManifestError unless the name says JSON Lines or Parquet."""
    if path.suffix not in KINDS:
        raise ManifestError(f"{path}: a manifest's name ends with {' or '.join(KINDS)}")


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """file:row and record of every row, not yet checked.

    Raises:
        ManifestError: the file cannot be read, or a row is no object.
    """
    check_kind(path)
    check_input(path)
    empty = True
    for where, row in read_rows(path):
        empty = False
        yield where, record_of(row, where, path.suffix == parquet.SUFFIX)
    if empty:
        raise ManifestError(f"{path}: holds no sample")


def record_of(row: Any, where: str, columns: bool) -> dict[str, Any]:
    """A row as a record; `columns`: it is one of a Parquet manifest."""
    if not isinstance(row, dict):
        raise Place(where).error("each row must be an object")
    return parquet.from_columns(row, where) if columns else row


def chunk_records(chunk: Chunk) -> Iterator[tuple[str, dict[str, Any]]]:
    """file:row and record of each row of a chunk, not yet checked.

    Raises:
        ManifestError: a row is no object.
    """
    for where, row in chunk.parsed():
        yield where, record_of(row, where, chunk.path.endswith(parquet.SUFFIX))


def chunk_samples(chunk: Chunk) -> Iterator[tuple[str, Sample]]:
    """file:row and sample of each row of a chunk.

    Raises:
        ManifestError: a row cannot be used.
    """
    for where, record in chunk_records(chunk):
        yield where, sample_from_record(record, where)


def read_samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """file:row and sample of every row.

    Raises:
        ManifestError: a row cannot be used; the message names it.
    """
    for where, record in read_records(path):
        yield where, sample_from_record(record, where)


def dumps(record: Mapping[str, Any]) -> str:
    """One line of a manifest, without its end."""
    return strict_json.dumps(record)


def write_manifest(path: Path, lines: Iterable[str]) -> int:
    """Write records, given as lines of JSON, to a manifest of the kind its name says: all or nothing.

    Returns:
        How many there were.
    """
    check_kind(path)
    if path.suffix != parquet.SUFFIX:
        return write_lines(path, lines)
    with replacing(path) as part:
        return parquet.write_records(part, (strict_json.loads(line, "a line to write") for line in lines))


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines to a file: all or nothing. Returns how many there were."""
    with replacing(path) as part:
        return _write_lines(part, lines)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` if all goes well and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_lines(part: Path, lines: Iterable[str]) -> int:
    count = 0
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line)
            file.write("\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count
