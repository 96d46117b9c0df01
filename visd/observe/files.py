"""Files of a run folder that survive a kill at any moment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visd import strict_json
from visd.types import VisdError


def write_atomic(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def finite_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON without NaN and infinities: such a value becomes null and its name is listed under `nonfinite`."""
    bad = sorted(name for name, item in value.items() if isinstance(item, float) and not math.isfinite(item))
    clean: dict[str, Any] = {name: None if name in bad else item for name, item in value.items()}
    if bad:
        clean["nonfinite"] = bad
    return strict_json.dumps(clean, indent=indent)


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        VisdError: it cannot be read, or holds no JSON object.
    """
    value = strict_json.load(path)
    if not isinstance(value, dict):
        raise VisdError(f"{path}: must hold a JSON object")
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSONL file; a last line cut off by a kill is left out.

    Raises:
        VisdError: another line is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never finished
        record = strict_json.loads(line, f"{path}:{number}")
        if not isinstance(record, dict):
            raise VisdError(f"{path}:{number}: not a JSON object; repair or delete the line.")
        records.append(record)
    return records


class JsonlLog:
    """Appends one object a line; each line is on disk when `append` returns."""

    def __init__(self, path: Path, keep_until: int):
        """Opens `path`, after cutting off the lines of steps after `keep_until` and a half-written line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_jsonl(path) if r["step"] <= keep_until] if path.exists() else []
        write_atomic(path, "".join(finite_json(record) + "\n" for record in kept))
        self.last: dict[str, Any] | None = kept[-1] if kept else None
        self._handle = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, Any]) -> None:
        self._handle.write(finite_json(record) + "\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self.last = dict(record)

    def close(self) -> None:
        self._handle.close()
