"""Manifests in Parquet: the records of `visd.data.manifest` as columns, for sets that are too large to be text.

Reading holds one batch of rows and a small buffer, whatever the file's size and the size of its row groups; writing holds one
row group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from visd import strict_json
from visd.data.fields import ManifestError, Place, kind, parse_json

SUFFIX = ".parquet"
GROUP = 5000
"""Rows of a row group that is written."""
BATCH = 1000
"""Rows that are read together."""
BUFFER = 1 << 20
"""Bytes of a column that are read together."""
_JSON: tuple[tuple[str, ...], ...] = (("answer", "value"), ("reward", "args"), ("meta",))
"""Fields whose shape differs from row to row; columns hold them as JSON."""


def load_arrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet.

    Raises:
        ManifestError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ManifestError("Parquet needs pyarrow; pip install visd[data]") from error
    return pyarrow, pyarrow.parquet


def read_batches(path: Path, size: int = BATCH) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Lists of at most `size` rows of any Parquet file, each with the number of rows that the file has in all.

    Raises:
        ManifestError: it cannot be read, or is cut off or damaged.
    """
    arrow, parquet = load_arrow()
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=size, use_threads=False):
                yield batch.to_pylist(), file.metadata.num_rows
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: is no Parquet file that can be read ({error}); get the file whole") from error


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number (from 1) and record of every row of a manifest, not yet checked.

    Raises:
        ManifestError: as `read_batches`, or a column of JSON does not hold any.
    """
    number = 0
    for rows, _ in read_batches(path):
        for row in rows:
            number += 1
            yield number, from_columns(row, f"{path}:{number}")


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Write records to a file, a row group at a time. Returns how many there were."""
    arrow, parquet = load_arrow()
    schema, count, left = _schema(arrow), 0, iter(records)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while rows := [to_columns(record) for record in islice(left, GROUP)]:
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def to_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as a row of a Parquet manifest."""
    return _mapped(record, strict_json.dumps)


def from_columns(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The inverse of `to_columns`. Optional fields that hold nothing are left out, as JSON Lines leave them out.

    Raises:
        ManifestError: a column of JSON does not hold any.
    """

    def loads(value: Any) -> Any:
        if not isinstance(value, str):
            raise Place(where, row.get("id")).error(f"a column of JSON must hold text, got {kind(value)}")
        return parse_json(value, f"{where}: sample {row.get('id')!r}: a column of JSON")

    filled = {name: value for name, value in row.items() if value is not None or name not in _OPTIONAL}
    for name, optional in _OPTIONAL_WITHIN.items():
        if isinstance(filled.get(name), dict):
            filled[name] = {k: v for k, v in filled[name].items() if v is not None or k not in optional}
    return _mapped(filled, loads)


_OPTIONAL = ("evidence", "rationale", "reward", "meta")
_OPTIONAL_WITHIN = {
    "answer": ("options", "tolerance"),
    "evidence": ("windows", "frames", "boxes"),
    "reward": ("args",),
}


def _mapped(record: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    out = dict(record)
    for path in _JSON:
        if path[0] not in out or out[path[0]] is None:
            continue
        if len(path) == 1:
            out[path[0]] = change(out[path[0]])
        elif isinstance(out[path[0]], dict) and path[1] in out[path[0]]:
            out[path[0]] = {**out[path[0]], path[1]: change(out[path[0]][path[1]])}
    return out


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
