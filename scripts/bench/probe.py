"""Whether `probe` finds all broken files among many and none of the sound, and how fast.

    python scripts/bench/probe.py [--files 5000] [--broken-share 0.02] [--num-workers 2]

A handful of real videos are linked under many names; some of the names get broken copies instead. Prints what was found
by reason, what was missed, what was wrongly put into quarantine, and files a second. Exits with 1 unless all is as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from data_tools.__main__ import main as data_tools
from scripts.bench.frames import write_clip

ORIGINALS = 8


def sound_copies(root: Path, count: int) -> None:
    """Real H.264 files of several sizes, rates and lengths, each under many names."""
    root.mkdir(parents=True)
    originals = root.parent / "originals"
    originals.mkdir()
    for number in range(min(ORIGINALS, count)):
        size = ((96, 64), (128, 96))[number % 2]
        options = {"g": str((8, 250)[number // 2 % 2])}
        write_clip(
            originals / f"{number}.mp4",
            number,
            seconds=3 + number % 3,
            fps=(10, 25)[number % 2],
            size=size,
            options=options,
        )
    for number in range(count):
        os.link(originals / f"{number % ORIGINALS}.mp4", root / f"{number:05d}.mp4")


def _emptied(data: bytes) -> bytes:
    return b""


def _noise(data: bytes) -> bytes:
    return np.random.default_rng(len(data)).bytes(len(data))


def _first_part(data: bytes) -> bytes:
    """The table of frames stands at the end, so nothing can be read."""
    return data[: len(data) * 6 // 10]


def _page(data: bytes) -> bytes:
    return b"<html><body>404 not found</body></html>"


def _hole(data: bytes) -> bytes:
    """The first frames are overwritten; the table of frames is whole."""
    start = data.index(b"mdat") + 4
    return data[:start] + b"\xff" * 1200 + data[start + 1200 :]


def _no_table(data: bytes) -> bytes:
    return data.replace(b"moov", b"lost")


WAYS: tuple[tuple[Callable[[bytes], bytes], str], ...] = (
    (_emptied, "empty"),
    (_noise, "unreadable"),
    (_first_part, "unreadable"),
    (_page, "unreadable"),
    (_hole, "unreadable"),
    (_no_table, "unreadable"),
)


def break_copies(root: Path, count: int, seed: int) -> dict[str, str]:
    """Break so many files below `root`, in each way in turn; the reason that each is to be given."""
    names = sorted(path.name for path in root.glob("*.mp4"))
    chosen = np.random.default_rng(seed).choice(len(names) - 1, count, replace=False) + 1
    reasons = {}
    for number, place in enumerate(sorted(chosen.tolist())):
        way, reason = WAYS[number % len(WAYS)]
        path = root / names[place]
        data = path.read_bytes()
        path.unlink()  # the name of a link; the file itself stays
        path.write_bytes(way(data))
        reasons[path.name] = reason
    return reasons


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--broken-share", type=float, default=0.02)
    parser.add_argument("--num-workers", type=int, default=2)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "root"), Path(folder, "probe.jsonl")
        sound_copies(root, chosen.files)
        expected = break_copies(root, round(chosen.files * chosen.broken_share), seed=0)
        began = time.monotonic()
        data_tools(["probe", "--root", str(root), "--out", str(out), "--num-workers", str(chosen.num_workers)])
        seconds = time.monotonic() - began
        listed = Path(f"{out}.quarantine.jsonl").read_text().splitlines()
    found = {line["path"]: line["reason"] for line in map(json.loads, listed)}
    missed, wrong = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    print(
        f"{chosen.files} files, {len(expected)} broken: {len(expected) - len(missed)} found {dict(Counter(found.values()))}"
    )
    print(f"missed: {missed or 'none'}; sound ones in quarantine: {wrong or 'none'}")
    print(f"other reasons than expected: {[n for n in found if n in expected and found[n] != expected[n]] or 'none'}")
    print(f"{chosen.files / seconds:.0f} files a second with {chosen.num_workers} processes")
    return 0 if found == expected else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
