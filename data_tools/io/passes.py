"""One pass over manifests, in shards: what every tool that reads manifests does the same way."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.io.cli import check_output, progress, summary
from data_tools.io.engines import ENGINES
from data_tools.io.manifests import check_kind, write_manifest
from data_tools.io.rows import Chunk, check_input, read_files
from data_tools.io.shards import ShardedWork, ShardReport, Task
from visd.observe.files import write_atomic
from visd.types import VisdError

SHARD_ROWS = 5000


@dataclass(frozen=True)
class Pass:
    """How the work goes on; none of it changes what is written."""

    workers: int = 1
    shard_rows: int = SHARD_ROWS
    overwrite: bool = False
    engine: str = "processes"

    @classmethod
    def chosen(cls, arguments: argparse.Namespace) -> Pass:
        engine = getattr(arguments, "engine", cls.engine)  # some tools have processes of their own
        return cls(arguments.num_workers, arguments.shard_rows, arguments.overwrite, engine)


def add_pass_arguments(parser: argparse.ArgumentParser, shard_rows: int = SHARD_ROWS, engine: bool = True) -> None:
    """Arguments that decide how the work goes on; without `engine` for a tool that has processes of its own."""
    if engine:
        help_ = (
            "ray: the cluster of RAY_ADDRESS, or a Ray started here; files must be on a disk that all machines share"
        )
        parser.add_argument("--engine", choices=ENGINES, default="processes", help=help_)
    parser.add_argument("--num-workers", type=_positive, default=1, help="processes")
    parser.add_argument(
        "--shard-rows", type=_positive, default=shard_rows, help="rows of a shard, the unit of a restart"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def identity(path: Path) -> list[Any]:
    """What tells that a file is still the one a pass was begun with."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def check_manifests(paths: Sequence[Path]) -> None:
    """Raise ManifestError unless all are manifests that can be read."""
    for path in paths:
        check_kind(path)
        check_input(path)


def run_pass(
    out: Path,
    inputs: Sequence[Path],
    task: Task,
    how: Pass,
    finish: Callable[[ShardedWork, ShardReport], int],
    *,
    name: str,
    chunks: Callable[[], Iterable[Chunk]] | None = None,
    also: Sequence[Path] = (),
    about: str = "",
) -> int:
    """Do `task` on all rows of the inputs and `finish` what it made; an interrupted pass goes on where it was.

    Args:
        out: decides where unfinished work lies; it must not be there yet.
        task: a dataclass whose repr tells all that decides its results.
        name: of the tool.
        chunks: the work, if it is not the rows of `inputs`.
        also: other files that decide the results.
        about: what else does.

    Returns:
        What `finish` returns, the exit status.
    """
    check_output(out, how.overwrite)
    plan = {
        "inputs": [identity(path) for path in (*inputs, *also)],
        "task": repr(task) + about,
        "shard_rows": how.shard_rows,
    }
    with ShardedWork(out, plan) as work, progress(f"{name} {out.name}") as advance:
        report = work.run(
            chunks() if chunks else read_files(inputs, how.shard_rows),
            task,
            how.workers,
            lambda chunk, total: advance(chunk.done, chunk.of, summary(total)),
            how.engine,
        )
        status = finish(work, report)
        work.clear()
        return status


def beside(out: Path, ending: str) -> Path:
    """OUT.ending"""
    return out.with_name(f"{out.name}.{ending}")


def write_dropped(work: ShardedWork, report: ShardReport, out: Path) -> Path:
    """List the rows that were left out beside `out`, or delete an older list if none was."""
    listed = beside(out, "dropped.jsonl")
    if report.dropped:
        write_atomic(listed, "".join(f"{line}\n" for line in work.dropped()))
    else:
        listed.unlink(missing_ok=True)
    return listed


def write_unique(work: ShardedWork, out: Path) -> None:
    """Write the lines of all shards as a manifest.

    Raises:
        VisdError: there is none, or an id stands twice.
    """
    work.check_ids()
    if not write_manifest(out, work.lines()):
        out.unlink()
        raise VisdError(f"{out}: nothing is left to write")


def write_kept(work: ShardedWork, report: ShardReport, out: Path) -> None:
    """Write the records that are left, and beside them a list of the others.

    Raises:
        VisdError: none is left, or an id stands twice; then the list alone is written.
    """
    listed = write_dropped(work, report, out)
    if not report.written:
        raise VisdError(f"{out}: is not written, since nothing is left: {summary(report)}; see {listed}")
    write_unique(work, out)
