"""`python -m data_tools split`: cut a set into training, validation and test sets that share no video.

    python -m data_tools split all.jsonl --out splits --shares train=0.9,validation=0.05,test=0.05 --probe probe.jsonl

Records with a video in common stay together, with --probe also those with copies of a video under other names, and with
--by those with the same value of a field (a scene, a film). Records without media stay together if they ask the same. Which
records go where depends on the seed and the ids alone. OUT is a folder with one manifest a split, and split.json with counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import compress
from pathlib import Path

import numpy as np

from data_tools.choose import FIELDS, Rows, parse_weights, shares_of, together
from data_tools.io.cli import check_output, guarded, tool_parser
from data_tools.io.manifests import KINDS, write_manifest
from data_tools.io.passes import Pass, add_pass_arguments, check_manifests, run_pass
from data_tools.io.shards import ShardedWork
from data_tools.probed import load_probed, probed_arguments
from visd import strict_json
from visd.observe.files import write_atomic
from visd.types import VisdError


def main(arguments: list[str]) -> int:
    parser = tool_parser("split", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests to cut")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--shares", nargs="+", default=["train=0.9", "validation=0.05", "test=0.05"], help="NAME=SHARE,..."
    )
    parser.add_argument("--by", default="", help=f"also keep records together by {FIELDS}")
    parser.add_argument("--probe", type=Path, nargs="*", help="OUT files of `probe`, to know copies of a video")
    parser.add_argument("--format", choices=KINDS, default=".jsonl", help="of the manifests")
    parser.add_argument("--seed", type=int, default=0)
    add_pass_arguments(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    folder: Path = chosen.out
    if folder.exists() and not folder.is_dir():
        raise VisdError(f"{folder}: is a file; give a folder")
    shares, probe = parse_weights(chosen.shares, "--shares"), probed_arguments(chosen.probe)
    check_manifests(chosen.manifests)
    for name in shares:
        check_output(folder / f"{name}{chosen.format}", chosen.overwrite)
    return run_pass(
        folder / "split.json",
        [*chosen.manifests],
        Rows(chosen.seed, together=chosen.by),
        Pass.chosen(chosen),
        lambda work, report: _finish(work, folder, chosen.format, shares, probe),
        name="split",
        also=probe,
    )


def _finish(work: ShardedWork, folder: Path, ending: str, shares: dict[str, float], probe: tuple[Path, ...]) -> int:
    work.check_ids()
    table = work.table()
    labels = together(table, load_probed(probe) if probe else None)
    places = shares_of(labels, table["lot"][table["first"]], shares)
    counts = np.bincount(places, minlength=len(shares)).tolist()
    if empty := [name for name, count in zip(shares, counts, strict=True) if not count and shares[name]]:
        raise VisdError(
            f"{folder}: {len(set(labels.tolist()))} videos are too few for the share of {empty[0]!r}; give it more"
        )
    about = {}
    for number, (name, count) in enumerate(zip(shares, counts, strict=True)):
        if count:
            write_manifest(folder / f"{name}{ending}", _lines(work, places == number))
        groups = len(np.unique(labels[places == number]))
        about[name] = {"records": count, "groups": groups}
        print(f"{folder / name}{ending}: {count} records of {groups} groups without a video in common with others")
    write_atomic(folder / "split.json", strict_json.dumps(about, indent=2) + "\n")
    return 0


def _lines(work: ShardedWork, chosen: np.ndarray) -> Iterator[str]:
    return compress(work.lines(), chosen.tolist())
