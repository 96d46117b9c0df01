"""`python -m data_tools mix`: one set from several sources, in given proportions.

    python -m data_tools mix a.jsonl b.jsonl --weights stgr=2,video_r1=1 --records 30000 --out mixed.jsonl

Weights are by the `source` of records (--by takes another field), and each of the values that occur needs one; 0 leaves
them out. No record is taken twice: without --records, as many as the weights allow. Which ones depends on the seed and the
ids alone. Records keep the order of the input, since a run draws an order of its own.
"""

from __future__ import annotations

import argparse
from itertools import compress
from pathlib import Path

import numpy as np

from data_tools.choose import FIELDS, Rows, filled, parse_weights, smallest
from data_tools.io.cli import counted, guarded, tool_parser
from data_tools.io.manifests import check_kind, write_manifest
from data_tools.io.passes import Pass, add_pass_arguments, check_manifests, run_pass
from data_tools.io.shards import ShardedWork, ShardReport, id_hash
from visd.types import VisdError


def main(arguments: list[str]) -> int:
    parser = tool_parser("mix", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests to take records from")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    parser.add_argument("--weights", nargs="+", required=True, help="NAME=WEIGHT,... of the values of --by")
    parser.add_argument("--by", default="source", help=f"field that the weights are of: {FIELDS}")
    parser.add_argument("--records", type=int, help="how many in all; default: as many as the weights allow")
    parser.add_argument("--seed", type=int, default=0)
    add_pass_arguments(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    weights = parse_weights(chosen.weights, "--weights")
    if chosen.records is not None and chosen.records < 1:
        raise VisdError(f"--records {chosen.records}: must be at least 1")
    check_kind(chosen.out)
    check_manifests(chosen.manifests)
    return run_pass(
        chosen.out,
        [*chosen.manifests],
        Rows(chosen.seed, kind=chosen.by),
        Pass.chosen(chosen),
        lambda work, report: _finish(work, report, chosen.out, weights, chosen.records),
        name="mix",
    )


def _finish(work: ShardedWork, report: ShardReport, out: Path, weights: dict[str, float], records: int | None) -> int:
    there = report.notes
    if unknown := sorted(there.keys() - weights.keys()):
        raise VisdError(f"--weights: {unknown[0]!r} has none (the input holds {counted(there)}); 0 leaves it out")
    if absent := sorted(name for name in weights if weights[name] and name not in there):
        raise VisdError(f"--weights: nothing is of {absent[0]!r} (the input holds {counted(there)})")
    work.check_ids()
    names = [name for name in weights if weights[name]]
    counts = filled(records, [weights[name] for name in names], [there[name] for name in names])
    if not sum(counts):
        raise VisdError("--weights: not one record of each source can be had in these proportions")
    rows = work.table()
    rows = rows[rows["first"]]
    chosen = np.zeros(len(rows), bool)
    for name, count in zip(names, counts, strict=True):
        own = np.flatnonzero(rows["kind"] == id_hash(name))
        chosen[own[smallest(rows["lot"][own], count)]] = True
    write_manifest(out, compress(work.lines(), chosen.tolist()))
    print(f"{out}: {sum(counts)} records ({counted(dict(zip(names, counts, strict=True)))})")
    return 0
