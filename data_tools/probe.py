"""`python -m data_tools probe`: open every media file and say what it is, or why it cannot be used.

    python -m data_tools probe train.jsonl test.jsonl --root /data/videos --out probe.jsonl --num-workers 8
    python -m data_tools probe --root /data/videos --out probe.jsonl          every media file below the root

Each file is opened in a process that is ended if it takes too long: a file that hangs the decoder, crashes it or needs too
much memory is one broken file. OUT has one line a file: duration, rate, size, codec, distance of key frames, a fingerprint
of its first, middle and last frame, and its status. OUT.quarantine.jsonl lists the files that cannot be used, with reasons;
`filter --quarantine` takes their samples out of a manifest. `validate`, `stats`, `filter` and `split` read OUT.

The exit status is 0 if all files are sound, 1 if some are not, 2 if the work could not be done.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_tools.io.cli import check_ending, counted, guarded, tool_parser
from data_tools.io.manifests import read_samples, write_lines
from data_tools.io.passes import Pass, add_pass_arguments, beside, check_manifests, run_pass
from data_tools.io.rows import Chunk
from data_tools.io.shards import ShardedWork, ShardReport, ShardResult
from data_tools.media import IMAGES, Facts, probe_file
from visd import strict_json
from visd.media.container import below_root
from visd.media.errors import DecodeError
from visd.media.killable import KillableWorkers
from visd.types import MediaKind, VisdError

GRACE = 5.0
"""s beyond --timeout, which the reading loops check themselves, until a process is ended."""
SHARD = 200
VIDEOS = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".wmv", ".ts", ".mpg", ".mpeg", ".3gp"})


def main(arguments: list[str]) -> int:
    parser = tool_parser("probe", __doc__)
    parser.add_argument("manifests", type=Path, nargs="*", help="manifests whose media are opened")
    parser.add_argument("--root", type=Path, required=True, help="data root, below which all paths lie")
    parser.add_argument("--out", type=Path, required=True, help="file to write (.jsonl)")
    parser.add_argument("--timeout", type=float, default=60.0, help="s, longest time for one file")
    parser.add_argument("--memory-mb", type=int, default=4096, help="MiB that decoding one file may take")
    parser.add_argument("--frames", type=int, default=3, help="frames decoded of a video, evenly spread; 0: all")
    add_pass_arguments(parser, SHARD, engine=False)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    out: Path = chosen.out
    check_ending(out, ".jsonl")
    if not chosen.root.is_dir():
        raise VisdError(f"--root {chosen.root}: is no folder")
    check_manifests(chosen.manifests)
    files = manifest_media(chosen.manifests) if chosen.manifests else folder_media(chosen.root)
    if not files:
        raise VisdError(f"{chosen.root}: there is no media file to open")
    how = Pass.chosen(chosen)
    task = ProbeTask(chosen.root, chosen.timeout, chosen.frames, Workers(how.workers, chosen.memory_mb))
    try:
        return run_pass(
            out,
            chosen.manifests,
            task,
            Pass(1, how.shard_rows, how.overwrite),  # the task has processes of its own
            lambda work, report: _finish(work, report, out),
            name="probe",
            chunks=lambda: chunks_of(files, how.shard_rows),
            about=hashlib.sha256(repr(files).encode("utf-8", "surrogateescape")).hexdigest(),
        )
    finally:
        task.workers.close()


@dataclass(frozen=True)
class File:
    """One file to open."""

    path: str  # below the root
    kind: MediaKind
    where: str = ""  # file:row of the first sample that uses it


def manifest_media(manifests: Sequence[Path]) -> list[File]:
    """Every file of the manifests once, in order."""
    files: dict[str, File] = {}
    for manifest in manifests:
        for where, sample in tqdm(read_samples(manifest), desc=f"read {manifest.name}", unit=" samples", disable=None):
            for item in sample.media:
                files.setdefault(item.path, File(item.path, item.kind, where))
    return list(files.values())


def folder_media(root: Path) -> list[File]:
    """Every file below a folder whose name is one of a video or an image, in order of paths."""
    found = []
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            suffix = Path(name).suffix.lower()
            if suffix in VIDEOS or suffix in IMAGES:
                path = Path(folder, name).relative_to(root).as_posix()
                found.append(File(path, "image" if suffix in IMAGES else "video"))
    return sorted(found, key=lambda file: file.path)


def chunks_of(files: Sequence[File], size: int) -> Iterator[Chunk]:
    for number, start in enumerate(range(0, len(files), size)):
        rows = tuple((start + i, file) for i, file in enumerate(files[start : start + size], start=1))
        yield Chunk("", number, rows, start + len(rows), len(files))


@dataclass
class Workers:
    """The processes, made when they are first needed."""

    count: int
    memory_mb: int
    _made: KillableWorkers | None = None

    def get(self) -> KillableWorkers:
        if self._made is None:
            self._made = KillableWorkers(self.count, self.memory_mb, __name__, "--memory-mb")
        return self._made

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


@dataclass(frozen=True)
class ProbeTask:
    """Opens the files of a shard."""

    root: Path
    timeout: float
    frames: int
    workers: Workers = field(repr=False)  # decides no result

    def __call__(self, chunk: Chunk) -> ShardResult:
        files = [file for _, file in chunk.rows]
        waiting: list[tuple[Path, Future[Facts] | None, DecodeError | None]] = []
        for file in files:
            try:
                order = Order(below_root(self.root, file.path), file.kind, self.timeout, self.frames)
                waiting.append((order.path, self.workers.get().submit(open_file, order, self.timeout + GRACE), None))
            except DecodeError as error:
                waiting.append((self.root / file.path, None, error))
        result = ShardResult([], ShardReport(rows=len(files)))
        broken: Counter[str] = Counter()
        for file, (path, future, problem) in zip(files, waiting, strict=True):
            line: dict[str, object] = {"path": file.path, "kind": file.kind}
            try:
                if problem is not None:
                    raise problem
                assert future is not None
                facts = self.workers.get().result(path, future, self.timeout + GRACE)
                line |= {"status": "ok", **asdict(facts)}
            except DecodeError as error:
                broken[error.reason] += 1
                line |= {"status": error.reason, "message": error.message}
                result.dropped.append(
                    {"path": file.path, "reason": error.reason, "message": error.message, "where": file.where}
                )
            result.lines.append(strict_json.dumps(line))
        result.report.written, result.report.dropped = len(files) - sum(broken.values()), dict(broken)
        return result


@dataclass(frozen=True)
class Order:
    """What a process is given."""

    path: Path
    kind: MediaKind
    seconds: float
    frames: int


def open_file(order: Order) -> Facts:
    """Runs in a process of its own."""
    return probe_file(order.path, order.kind, order.seconds, order.frames)


def _finish(work: ShardedWork, report: ShardReport, out: Path) -> int:
    quarantine, broken = beside(out, "quarantine.jsonl"), sum(report.dropped.values())
    write_lines(quarantine, work.dropped())
    write_lines(out, work.lines())
    print(f"{out}: {report.rows} files, {report.written} sound, {broken} broken ({counted(report.dropped) or 'none'})")
    if broken:
        print(f"{quarantine}: lists the broken ones; take their samples out with `filter --quarantine {quarantine}`")
    return 1 if broken else 0
