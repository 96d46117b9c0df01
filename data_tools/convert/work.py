"""Rows to lines of a manifest, or of another format, shard by shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from data_tools.convert.base import Context, Format, Options, Row, Unusable
from data_tools.convert.boxes import BoxReader, Size
from data_tools.convert.formats import FORMATS
from data_tools.io.manifests import dumps, record_of
from data_tools.io.rows import Chunk, read_chunks
from data_tools.io.shards import ShardReport, ShardResult
from visd.data.fields import ManifestError, Place
from visd.data.manifest import sample_from_record, sample_to_record
from visd.types import Sample

LOOKED_AT = 5000
"""First rows of a file on which the convention of its boxes is found."""


@dataclass(frozen=True)
class Conversion:
    """The task of a shard."""

    source: str  # name of the format read
    target: str  # name of the format written
    options: Options
    convention: str  # of boxes; empty while it is looked for
    root: Path | None = None  # data root, for sizes of files
    row_ids: bool = False  # ids from source and row, instead of the rows' own

    def __call__(self, chunk: Chunk) -> ShardResult:
        context = self.context()
        result = ShardResult([], ShardReport())
        dropped: Counter[str] = Counter()
        for where, value in chunk.parsed():
            result.report.rows += 1
            try:
                lines = [self._line(made, where) for made in self.samples(value, where, context)]
            except (Unusable, ManifestError) as error:
                reason = error.reason if isinstance(error, Unusable) else "invalid"
                name = value.get("id", "") if isinstance(value, dict) else ""
                dropped[reason] += 1
                result.dropped.append({"where": where, "id": str(name), "reason": reason, "message": str(error)})
                continue
            result.lines += [line for line, _ in lines]
            result.ids += [name for _, name in lines]
        if context.boxes.cut:
            context.notes["boxes_cut_to_frame"] += context.boxes.cut
        if context.boxes.seen:
            context.notes["boxes"] += context.boxes.seen
        result.report.written = len(result.lines)
        result.report.dropped, result.report.notes = dict(dropped), dict(context.notes)
        return result

    def context(self) -> Context:
        root = self.root
        sizes = (lambda path: file_size(root, path)) if root is not None else (lambda path: None)
        return Context(self.options, BoxReader(self.convention, sizes))

    def samples(self, value: Any, where: str, context: Context) -> Iterator[Sample]:
        """The samples of one row, named.

        Raises:
            Unusable, ManifestError: the row cannot be used, or what it became is no valid record.
        """
        if self.source == "manifest":
            value = record_of(value, where, isinstance(value, dict) and isinstance(value.get("meta"), str))
        rows = value if isinstance(value, list) else [value]  # a list is a packed row
        made = [item for row in rows for item in self._convert(row, where, context)]
        row_number = where.rsplit(":", 1)[1]
        for index, item in enumerate(made):
            if self.row_ids or not item.id:
                part = f"-{index + 1}" if len(made) > 1 else ""
                item = replace(item, id=f"{item.source}-{row_number}{part}")
            yield item

    def _convert(self, row: Any, where: str, context: Context) -> Iterator[Sample]:
        try:
            yield from FORMATS[self.source].read(Row(row, Place(where)), context)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            # A row of another shape than its format says; which field it was stands in the error.
            raise Unusable("shape", f"is not shaped as {self.source} ({type(error).__name__}: {error})") from error

    def _line(self, made: Sample, where: str) -> tuple[str, str]:
        record = sample_to_record(made)
        try:
            checked = sample_from_record(record, where)
            out = record if self.target == "manifest" else target(self.target).write(checked)
            return dumps(out), made.id
        except ValueError as error:
            raise Unusable("not_json", f"holds a value that JSON does not have ({error})") from error


@dataclass(frozen=True)
class _Writer:
    format: Format

    def write(self, sample: Sample) -> dict[str, Any]:
        assert self.format.write is not None
        try:
            return self.format.write(sample)
        except (TypeError, ValueError, KeyError, StopIteration) as error:
            raise Unusable("shape", f"cannot be written as {self.format.name} ({error!r})") from error


def target(name: str) -> _Writer:
    """The way to write a format."""
    return _Writer(FORMATS[name])


@lru_cache(maxsize=10_000)
def file_size(root: Path, path: str) -> Size | None:
    """Width and height of an image or a video, pixels, as it is shown.

    Raises:
        Unusable: the file cannot be opened.
    """
    from data_tools.media import shown_size  # opens files with PyAV and Pillow, which most conversions do not need
    from visd.media.errors import DecodeError

    try:
        return shown_size(root / path)
    except DecodeError as error:
        raise Unusable("media", f"its size cannot be read: {error}") from error


def find_convention(conversion: Conversion, path: Path) -> tuple[str, int]:
    """The convention of a file's boxes, found on its first rows, and how many boxes there were.

    Raises:
        VisdError: no convention fits, or several do.
    """
    looking = replace(conversion, convention="")
    context = looking.context()
    for chunk in islice(read_chunks(path, 500), LOOKED_AT // 500):
        for where, value in chunk.parsed():
            try:
                list(looking.samples(value, where, context))
            except (Unusable, ManifestError):
                continue  # the conversion itself will count it
    documented = FORMATS[conversion.source].boxes
    if not context.boxes.seen:
        return ("unit" if documented == "auto" else documented), 0
    return context.boxes.found("" if documented == "auto" else documented), context.boxes.seen
