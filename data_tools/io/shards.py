"""Work in shards: many processes, bounded memory, and a restart that repeats only what was not finished.

Beside OUT lies OUT.work while the work goes on. Each shard is two files, its lines and then its report, both written under
another name and renamed; the report is the mark that the shard is done. After a `kill -9` the same command goes on: at
most the shards that were being worked on, one a process, are done again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from data_tools.io.engines import ENGINES
from data_tools.io.rows import Chunk
from visd import strict_json
from visd.data.fields import ManifestError
from visd.observe.files import write_atomic
from visd.seeding import derive_seed
from visd.types import VisdError

AHEAD = 2
"""Shards a process that may be read but not done."""
PLAN = "plan.json"


@dataclass
class ShardReport:
    """What became of the rows of one shard."""

    rows: int = 0
    written: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    notes: dict[str, int] = field(default_factory=dict)  # what was changed, by what

    def add(self, other: ShardReport) -> None:
        self.rows += other.rows
        self.written += other.written
        for mine, theirs in ((self.dropped, other.dropped), (self.notes, other.notes)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count


@dataclass
class ShardResult:
    """What a shard's task returns."""

    lines: list[str]  # of the output
    report: ShardReport
    dropped: list[dict[str, str]] = field(default_factory=list)  # where, id, reason, message
    ids: list[str] = field(default_factory=list)  # of the lines
    table: NDArray[Any] | None = None  # what is to be compared with other shards, one row a line or a record


Task = Callable[[Chunk], ShardResult]


class ShardedWork:
    """The shards of one output. Use as a context: it holds the lock on the work folder."""

    def __init__(self, out: Path, plan: Mapping[str, Any]):
        self.out, self.folder = out, out.absolute().with_name(f"{out.name}.work")
        self.plan = strict_json.loads(strict_json.dumps(plan), "the plan")
        self._lock = FileLock(str(out.with_name(f".{out.name}.lock")))

    def __enter__(self) -> ShardedWork:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise VisdError(f"{self.out}: another process is writing it; wait for it, or end it") from None
        known = self.folder / PLAN
        if self.folder.exists() and (not known.exists() or strict_json.load(known) != self.plan):
            shutil.rmtree(self.folder)  # made by another command, or by the same one from another input
        self.folder.mkdir(exist_ok=True)
        write_atomic(known, strict_json.dumps(self.plan))
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None and self.folder.exists() and not any(self.folder.glob("[0-9]*.json")):
            shutil.rmtree(self.folder)  # nothing is done that a restart could use
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def run(
        self,
        chunks: Iterable[Chunk],
        task: Task,
        workers: int,
        tell: Callable[[Chunk, ShardReport], None],
        engine: str = "processes",
    ) -> ShardReport:
        """Do what is not done yet; `tell` is called after each shard.

        Args:
            engine: one of `ENGINES`. With another machine's help, the folder must be on a disk that all of them share.

        Raises:
            VisdError: reading or a task failed; shards that are done stay.
        """
        total = ShardReport()
        for chunk, report in self._reports(chunks, task, workers, engine):
            total.add(report)
            tell(chunk, total)
        return total

    def _reports(
        self, chunks: Iterable[Chunk], task: Task, workers: int, engine: str
    ) -> Iterator[tuple[Chunk, ShardReport]]:
        if workers <= 1 and engine == "processes":
            for chunk in chunks:
                yield chunk, self._known(chunk) or _work(self.folder, task, chunk)
            return
        with ENGINES[engine](workers) as submit:
            waiting: dict[Future[ShardReport], Chunk] = {}
            for chunk in chunks:
                known = self._known(chunk)
                if known is not None:
                    yield chunk, known
                    continue
                small = Chunk(chunk.path, chunk.number, (), chunk.done, chunk.of)
                waiting[submit(_work, self.folder, task, chunk)] = small
                if len(waiting) >= AHEAD * workers:
                    yield from _finished(waiting, FIRST_COMPLETED)
            while waiting:
                yield from _finished(waiting, FIRST_COMPLETED)

    def _known(self, chunk: Chunk) -> ShardReport | None:
        path = self.folder / f"{chunk.number:06d}.json"
        return ShardReport(**strict_json.load(path)) if path.exists() else None

    def lines(self) -> Iterator[str]:
        """Lines of all shards, in order."""
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open(encoding="utf-8", newline="\n") as file:
                for line in file:
                    yield line.rstrip("\n")

    def table(self) -> NDArray[Any]:
        """The tables of all shards, in order, as one."""
        paths = sorted(self.folder.glob("*.npy"))
        rows = [len(np.load(path, mmap_mode="r")) for path in paths]
        table = np.empty(sum(rows), np.load(paths[0], mmap_mode="r").dtype)
        for path, end, count in zip(paths, np.cumsum(rows), rows, strict=True):
            table[end - count : end] = np.load(path)
        return table

    def dropped(self) -> Iterator[str]:
        """What was dropped, one line of JSON each, in order."""
        for path in sorted(self.folder.glob("*.dropped")):
            yield from path.read_text(encoding="utf-8").splitlines()

    def check_ids(self) -> None:
        """Raise ManifestError if an id stands twice. Needs 8 bytes an id."""
        paths = sorted(self.folder.glob("*.ids"))
        hashes: NDArray[np.uint64] = np.concatenate(
            [np.fromfile(path, np.uint64) for path in paths] or [np.empty(0, np.uint64)]
        )
        values, counts = np.unique(hashes, return_counts=True)
        suspects = set(values[counts > 1].tolist())
        if not suspects:
            return
        seen: Counter[str] = Counter()
        for line in self.lines():
            name = strict_json.loads(line, str(self.folder))["id"]
            if id_hash(name) in suspects:
                seen[name] += 1
        twice = sorted(name for name, count in seen.items() if count > 1)
        if twice:
            shown = ", ".join(map(repr, twice[:5]))
            message = (
                f"{self.out}: {len(twice)} ids stand more than once, as {shown}; make them unique (`convert --ids row`)"
            )
            raise ManifestError(message)

    def clear(self) -> None:
        """Delete the work folder."""
        shutil.rmtree(self.folder)


def id_hash(name: str) -> int:
    return derive_seed("id", name) & (2**64 - 1)


def _finished(waiting: dict[Future[ShardReport], Chunk], until: str) -> Iterator[tuple[Chunk, ShardReport]]:
    done, _ = wait(waiting, return_when=until)
    for future in done:
        yield waiting.pop(future), future.result()


def _work(folder: Path, task: Task, chunk: Chunk) -> ShardReport:
    result = task(chunk)
    name = f"{chunk.number:06d}"
    write_atomic(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in result.lines))
    if result.dropped:
        text = "".join(strict_json.dumps(item) + "\n" for item in result.dropped)
        write_atomic(folder / f"{name}.dropped", text)
    if result.ids:
        np.array([id_hash(name) for name in result.ids], np.uint64).tofile(folder / f"{name}.ids")
    if result.table is not None:
        np.save(folder / f"{name}.npy", result.table)
    write_atomic(folder / f"{name}.json", strict_json.dumps(asdict(result.report)))
    return result.report
