"""Manifests as streams, in JSON Lines or Parquet, both with the same records (`visd.data.manifest`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_tools.io.rows import Chunk, check_input, load_arrow, read_rows
from visd.data.fields import ManifestError, Place
from visd.data.manifest import sample_from_record
from visd.types import Sample

KINDS = (".jsonl", ".parquet")
GROUP = 5000
"""Rows of a row group of a Parquet manifest."""


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
        yield where, record_of(row, where, path.suffix == ".parquet")
    if empty:
        raise ManifestError(f"{path}: holds no sample")


def record_of(row: Any, where: str, parquet: bool) -> dict[str, Any]:
    """A row as a record."""
    if not isinstance(row, dict):
        raise Place(where).error("each row must be an object")
    return from_columns(row, where) if parquet else row


def chunk_records(chunk: Chunk) -> Iterator[tuple[str, dict[str, Any]]]:
    """file:row and record of each row of a chunk, not yet checked.

    Raises:
        ManifestError: a row is no object.
    """
    for where, row in chunk.parsed():
        yield where, record_of(row, where, chunk.path.endswith(".parquet"))


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
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def write_manifest(path: Path, lines: Iterable[str]) -> int:
    """Write records, given as lines of JSON, to a manifest of the kind its name says: all or nothing.

    Returns:
        How many there were.
    """
    check_kind(path)
    if path.suffix != ".parquet":
        return write_lines(path, lines)
    with replacing(path) as part:
        return _write_parquet(part, lines)


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


def _write_parquet(part: Path, lines: Iterable[str]) -> int:
    arrow, parquet = load_arrow()
    schema, count = _schema(arrow), 0
    with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
        for group in batches(lines, GROUP):
            rows = [to_columns(json.loads(line)) for line in group]
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    held: list[Any] = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


_JSON: tuple[tuple[str, ...], ...] = (("answer", "value"), ("reward", "args"), ("meta",))
"""Fields whose shape differs from row to row; columns hold them as JSON."""


def _schema(arrow: Any) -> Any:
    text, number = arrow.string(), arrow.float64()

    def struct(**fields: Any) -> Any:
        return arrow.struct(list(fields.items()))

    medium = struct(kind=text, path=text, start=number, end=number, fps=number)
    box = struct(t=number, name=text, xyxy=arrow.list_(number))
    evidence = struct(
        windows=arrow.list_(arrow.list_(number)), frames=arrow.list_(struct(t=number)), boxes=arrow.list_(box)
    )
    return arrow.schema(
        {
            "id": text,
            "source": text,
            "family": text,
            "media": arrow.list_(medium),
            "messages": arrow.list_(struct(role=text, content=text)),
            "answer": struct(type=text, value=text, options=arrow.list_(text), tolerance=number),
            "evidence": evidence,
            "rationale": text,
            "reward": struct(name=text, args=text),
            "meta": text,
        }.items()
    )


def to_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of a Parquet manifest."""
    return _mapped(record, _JSON, lambda value: json.dumps(value, ensure_ascii=False, allow_nan=False))


def from_columns(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The inverse of `to_columns`.

    Raises:
        ManifestError: a column of JSON does not hold any.
    """

    def loads(value: Any) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError) as error:
            raise Place(where, row.get("id")).error(f"a column of JSON does not hold any ({error})") from error

    return _mapped(row, _JSON, loads)


def _mapped(
    record: Mapping[str, Any], paths: Sequence[tuple[str, ...]], change: Callable[[Any], Any]
) -> dict[str, Any]:
    out = dict(record)
    for path in paths:
        if path[0] not in out or out[path[0]] is None:
            continue
        if len(path) == 1:
            out[path[0]] = change(out[path[0]])
        elif path[1] in out[path[0]]:
            out[path[0]] = {**out[path[0]], path[1]: change(out[path[0]][path[1]])}
    return out
