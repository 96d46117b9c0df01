"""The canonical manifest itself: read to be written in another format, or in Parquet instead of JSON Lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_tools.convert.base import Context, Format, Row
from visd.data.manifest import sample_from_record, sample_to_record
from visd.types import Sample


def read(row: Row, context: Context) -> Iterator[Sample]:
    yield sample_from_record(row.all(), row.place.where)


def write(sample: Sample) -> dict[str, Any]:
    return sample_to_record(sample)


FORMAT = Format("manifest", "the canonical manifest, JSON Lines or Parquet", read, write)
