"""How fast the data tools are, whether their memory stays flat, and what a `kill -9` costs.

    python scripts/bench/data_tools.py --write          measure, and write the table into docs/data.md
    python scripts/bench/data_tools.py --records 20000 --small 2000

Synthetic rows in the layout of Open-o3-Video's training data, five questions a video, with windows, key frames and boxes, go through
convert, validate and stats; each video is a link to one of a few real files. Records a second are those of one core: records by
the processor time of all processes, starting Python included, so that what else the machine does changes little. Memory is the
largest sum of the processes of a command (PSS, read from /proc five times a second), for many and for few records.
Then a conversion is killed with `kill -9` in its middle and started again: shards that were done must not be done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.bench.frames import write_clip

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/data.md"
BEGIN, END = "<!-- Written by scripts/bench/data_tools.py --write -->", "<!-- End of what it writes -->"
WORDS = [first + second for first in ("ka", "mo", "ri", "su", "te", "no", "hi", "ly") for second in
         ("bar", "den", "fin", "gor", "jal", "kon", "lim", "mur", "pes", "qua", "ros", "tav")]  # fmt: skip
QUESTIONS = 5
"""A video."""
CLIPS = 4
EVERY = 0.2
"""s between two looks at a process."""


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of three tasks with all that the tools look at."""
    chance = random.Random(0)
    for number in range(count):
        asked = " ".join(chance.choice(WORDS) for _ in range(12))
        row: dict[str, Any] = {
            "id": f"q{number}",
            "source": "STR_plm_rdcap",
            "question": asked,
            "video_path": f"{number // QUESTIONS:06d}.mp4",
        }
        start = round(chance.uniform(0, 2), 2)
        if number % 3 == 0:
            x, y = round(chance.uniform(0, 0.6), 3), round(chance.uniform(0, 0.6), 3)
            row |= {
                "task": "temporal-spatial free-form QA",
                "answer": chance.choice(WORDS),
                "image_size": [96, 64],
                "key_frames": [{"idx": 3, "time": start, "path": "k.jpg"}],
                "key_items": {"3": {chance.choice(WORDS): [[x, y, round(x + 0.2, 3), round(y + 0.3, 3)]]}},
                "reasoning_process": f"It is there at<t>{start}</t>s.",
            }
        elif number % 3 == 1:
            row |= {"task": "temporal QA", "answer": f"[{start}, {round(start + 0.8, 2)}]"}
        else:
            options = "".join(f"\n({letter}) {chance.choice(WORDS)} {letter}" for letter in "ABCD")
            row |= {"task": "General video QA MCQ", "question": asked + options, "answer": chance.choice("ABCD")}
        yield row


def write_input(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows(count)):
            file.write((",\n" if number else "[\n") + json.dumps(row))
        file.write("\n]\n")


def link_videos(root: Path, count: int) -> None:
    """A file for each video of so many records, below the path that the converter gives it."""
    folder = root / "stgr/plm/videos"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(CLIPS):
        write_clip(root / f"{number}.mp4", number, seconds=3, fps=8, size=(96, 64))
    for number in range(-(-count // QUESTIONS)):
        os.link(root / f"{number % CLIPS}.mp4", folder / f"{number:06d}.mp4")


def commands(folder: Path, source: Path, workers: int, shard_rows: int) -> dict[str, list[str]]:
    """The arguments of each tool, by its name."""
    manifest = folder / f"{source.stem}.jsonl"
    pace = ["--num-workers", str(workers), "--shard-rows", str(shard_rows), "--overwrite"]
    return {
        "convert": ["convert", "--from", "stgr", str(source), str(manifest), *pace],
        "validate": ["validate", str(manifest), "--out", str(folder / "findings.jsonl"), *pace],
        "stats": ["stats", str(manifest), "--root", str(folder), "--out", str(folder / "stats.html"), *pace],
    }


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "data_tools", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


@dataclass(frozen=True)
class Measured:
    """One command."""

    seconds: float  # of processor time
    mib: float  # largest sum over its processes
    status: int


def measured(arguments: list[str]) -> Measured:
    process, peak = start(arguments), 0
    seconds: dict[int, float] = {}
    while process.poll() is None:
        members = session(process.pid)
        peak = max(peak, sum(used.memory for used in members.values()))
        seconds |= {pid: used.seconds for pid, used in members.items()}
        time.sleep(EVERY)
    return Measured(sum(seconds.values()), peak / 2**20, process.returncode)


@dataclass(frozen=True)
class Used:
    """By one process so far."""

    memory: int  # bytes, proportional set size
    seconds: float  # of processor time


def session(leader: int) -> dict[int, Used]:
    """The processes of a session, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            if os.getsid(pid) != leader:
                continue
            memory = re.search(r"^Pss:\s+(\d+) kB", (entry / "smaps_rollup").read_text(), re.M)
            ticks = (entry / "stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            continue  # it has just ended
        found[pid] = Used(int(memory[1]) * 1024 if memory else 0, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))
    return found


@dataclass(frozen=True)
class Killed:
    """What a `kill -9` cost."""

    shards: int  # in all
    done: int  # before it
    again: int  # of these, how many were done again


def killed_and_restarted(arguments: list[str], out: Path, shards: int, at: int) -> Killed:
    """Kill a command, and all its processes, once `at` shards are done, and let it finish in a second start."""
    work = out.with_name(f"{out.name}.work")
    process = start(arguments)
    while len(finished(work)) < at:
        if process.poll() is not None:
            raise SystemExit("the command was done before it could be killed; take more records")
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(work)
    second, last = start(arguments), dict(before)
    while second.poll() is None:
        last |= finished(work)
        time.sleep(0.002)
    if second.returncode:
        raise SystemExit(f"the second start ended with status {second.returncode}")
    return Killed(shards, len(before), sum(last[name] != inode for name, inode in before.items()))


def finished(work: Path) -> dict[str, int]:
    """Reports of shards that are done, by name, with their inodes: a shard that is done again has another."""
    found = {}
    for path in work.glob("[0-9]*.json"):
        try:
            found[path.name] = path.stat().st_ino
        except FileNotFoundError:
            continue  # the work is done and cleared away
    return found


def measure(chosen: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> str:
    """The lines of the page."""
    link_videos(folder, chosen.records)
    found: dict[str, dict[int, Measured]] = {}
    for count in (chosen.small, chosen.records):
        source = folder / f"{count}.json"
        write_input(source, count)
        for name, arguments in commands(folder, source, chosen.num_workers, chosen.shard_rows).items():
            found.setdefault(name, {})[count] = one = measured(arguments)
            say(f"{name} of {count}: {one.seconds:.1f} s of one core, {one.mib:.0f} MiB")
            if one.status:
                raise SystemExit(f"{name} ended with status {one.status}")
    out = folder / "killed.jsonl"
    arguments = ["convert", "--from", "stgr", str(source), str(out), "--shard-rows", str(chosen.shard_rows)]
    shards = -(-chosen.records // chosen.shard_rows)
    cost = killed_and_restarted(arguments, out, shards, max(1, shards // 3))
    say(f"killed: {cost}")
    return text_of(found, cost, chosen)


def text_of(found: dict[str, dict[int, Measured]], cost: Killed, chosen: argparse.Namespace) -> str:
    small, large = chosen.small, chosen.records
    lines = [
        f"| command | records a second of one core | peak MiB ({small:,}) | peak MiB ({large:,}) | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, by_count in found.items():
        few, many = by_count[small], by_count[large]
        speed = large / many.seconds
        lines.append(f"| `{name}` | {speed:,.0f} | {few.mib:.0f} | {many.mib:.0f} | {many.mib / few.mib:.2f} |")
    processes = "one process" if chosen.num_workers == 1 else f"{chosen.num_workers} processes"
    lines += [
        "",
        f"{processes[0].upper()}{processes[1:]}, shards of {chosen.shard_rows:,} rows, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}. A conversion of {large:,} rows in one process was killed with `kill -9` after {cost.done} of "
        f"{cost.shards} shards and started again: {cost.again} of the {cost.done} were done again, so at most the one under way was lost.",
    ]
    return "\n".join(lines)


def write_page(text: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000, help="many")
    parser.add_argument("--small", type=int, default=20_000, help="few, for the ratio of memory")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--shard-rows", type=int, default=5000)
    parser.add_argument("--write", action="store_true", help="write the table into docs/data.md")
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="data_tools_"))
    try:
        text = measure(chosen, folder, lambda line: print(line, file=sys.stderr))
    finally:
        shutil.rmtree(folder)
    print(text)
    if chosen.write:
        write_page(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
