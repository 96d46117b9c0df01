"""`python -m data_tools sample`: a part of a set, drawn by chance.

    python -m data_tools sample train.jsonl --records 1000 --out small.jsonl
    python -m data_tools sample train.jsonl --records 50 --each family --out small.jsonl       50 of every family

Which records are drawn depends on the seed and the ids alone, so a smaller sample of a seed lies within a larger one.
"""

from __future__ import annotations

import argparse
from itertools import compress
from pathlib import Path

import numpy as np

from data_tools.choose import FIELDS, Rows, smallest
from data_tools.io.cli import guarded, tool_parser
from data_tools.io.manifests import check_kind, write_manifest
from data_tools.io.passes import Pass, add_pass_arguments, check_manifests, run_pass
from data_tools.io.shards import ShardedWork
from data_tools.likeness import groups_of
from visd.types import VisdError


def main(arguments: list[str]) -> int:
    parser = tool_parser("sample", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests to draw from")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--records", type=int, help="how many; all where there are fewer")
    size.add_argument("--share", type=float, help="which share, above 0 and at most 1")
    parser.add_argument("--each", default="", help=f"so many, or that share, of every value of {FIELDS}")
    parser.add_argument("--seed", type=int, default=0)
    add_pass_arguments(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    if chosen.records is not None and chosen.records < 1:
        raise VisdError(f"--records {chosen.records}: must be at least 1")
    if chosen.share is not None and not 0 < chosen.share <= 1:
        raise VisdError(f"--share {chosen.share:g}: must be above 0 and at most 1")
    check_kind(chosen.out)
    check_manifests(chosen.manifests)
    return run_pass(
        chosen.out,
        [*chosen.manifests],
        Rows(chosen.seed, kind=chosen.each),
        Pass.chosen(chosen),
        lambda work, report: _finish(work, chosen),
        name="sample",
    )


def _finish(work: ShardedWork, chosen: argparse.Namespace) -> int:
    work.check_ids()
    rows = work.table()
    rows = rows[rows["first"]]
    drawn = np.zeros(len(rows), bool)
    singles = np.ones(len(rows), bool)
    for own in groups_of(rows["kind"]):
        singles[own] = False
        drawn[own[smallest(rows["lot"][own], _count(chosen, len(own)))]] = True
    drawn[singles] = True  # the only one of its kind
    write_manifest(chosen.out, compress(work.lines(), drawn.tolist()))
    print(f"{chosen.out}: {int(drawn.sum())} of {len(rows)} records")
    return 0


def _count(chosen: argparse.Namespace, there: int) -> int:
    return chosen.records if chosen.records is not None else max(1, round(chosen.share * there))
