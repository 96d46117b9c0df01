"""Compare two runs of one benchmark, question by question: `python -m eval.compare A B`.

Prints, for every number, both scores and the difference B - A with its 95 % interval (the same resampled units on both
sides), and for questions that are right or wrong McNemar's exact test.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval import benchmarks
from eval.bench_results import Record, Tables, bounds, record_from, resampled
from eval.intervals import Interval
from eval.metrics import mcnemar
from visd.observe.files import read_json, read_jsonl
from visd.types import VisdError


@dataclass(frozen=True)
class McNemar:
    """Questions that one run alone has right."""

    only_first: int
    only_second: int
    p: float  # two-sided, exact


@dataclass(frozen=True)
class Comparison:
    """B against A."""

    benchmark: str
    questions: int
    rows: dict[str, tuple[float, float, Interval]]  # number: A, B, B - A
    test: McNemar | None  # None where answers are not simply right or wrong
    warnings: tuple[str, ...]


def compare(first: Path, second: Path, seed: int = 0) -> Comparison:
    """Compare two folders of `eval.run benchmark=...`.

    Raises:
        VisdError: a folder without results, another benchmark, or other questions.
    """
    documents, records = zip(*(_load(folder) for folder in (first, second)))
    names = [document["benchmark"] for document in documents]
    if names[0] != names[1]:
        raise VisdError(f"{first} is a run of {names[0]}, {second} one of {names[1]}: they have no common questions.")
    sides = [{record.id: record for record in side} for side in records]
    if odd := sorted(sides[0].keys() ^ sides[1].keys()):
        raise VisdError(
            f"{len(odd)} questions are in one run only, the first is {odd[0]!r}: evaluate the same questions."
        )
    benchmark = benchmarks.load(names[0])
    tables = [Tables([side[name] for name in sorted(side)], benchmark) for side in sides]
    weights = resampled(len(tables[0].units), seed)
    points = [table.values(np.ones((1, weights.shape[1]))) for table in tables]
    drawn = [table.values(weights) for table in tables]
    rows = {}
    for name in points[0]:
        a, b = (float(point[name][0]) for point in points)
        with np.errstate(invalid="ignore"):  # two infinite logarithmic means have no difference
            differences = np.nan_to_num(drawn[1][name] - drawn[0][name], nan=0.0, posinf=np.inf, neginf=-np.inf)
        rows[name] = (a, b, Interval(b - a, *bounds(differences), weights.shape[1]))
    return Comparison(names[0], len(sides[0]), rows, _mcnemar(*sides), _warnings(*documents))


def _load(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    paths = folder / "results.json", folder / "samples.jsonl"
    for path in paths:
        if not path.is_file():
            raise VisdError(
                f"{folder} holds no {path.name}; finish `python -m eval.run benchmark=... out={folder}` first."
            )
    document = read_json(paths[0])
    if "benchmark" not in document:
        raise VisdError(f"{folder} is an evaluation of a manifest, not of a benchmark.")
    return document, [record_from(fields, str(paths[1])) for fields in read_jsonl(paths[1])]


def _mcnemar(first: dict[str, Record], second: dict[str, Record]) -> McNemar | None:
    pairs = []
    for name, one in first.items():
        both = (one.scores(), second[name].scores())
        metric = next((m for m in ("accuracy", "score", "qa") if m in both[0]), None)
        if metric is None:
            continue
        values = both[0][metric], both[1][metric]
        if not set(values) <= {0.0, 1.0}:
            return None
        pairs.append(values)
    if not pairs:
        return None
    only = [sum(pair == (1.0, 0.0) for pair in pairs), sum(pair == (0.0, 1.0) for pair in pairs)]
    return McNemar(only[0], only[1], mcnemar(*only))


def _warnings(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, ...]:
    found = []
    for name in ("name", "video", "decoding", "prompt"):
        if first["protocol"][name] != second["protocol"][name]:
            found.append(f"the protocols differ ({name}): the difference is not the models' alone")
    if first["prompt_hash"] != second["prompt_hash"]:
        found.append("the prompts differ: the difference is not the models' alone")
    return tuple(found)


def show(comparison: Comparison) -> str:
    """As Markdown."""
    lines = [
        f"### {comparison.benchmark}, {comparison.questions} questions",
        "",
        "| | A | B | B - A |",
        "| --- | --- | --- | --- |",
    ]
    for name, (a, b, d) in comparison.rows.items():
        low, high = ("-" if bound is None else f"{bound:+.3f}" for bound in (d.low, d.high))
        lines.append(f"| {name} | {a:.3f} | {b:.3f} | {d.mean:+.3f} [{low}, {high}] |")
    if comparison.test is not None:
        t = comparison.test
        lines += [
            "",
            f"McNemar: {t.only_first} right in A alone, {t.only_second} in B alone, p = {t.p:.4g} (exact, two-sided).",
        ]
    return "\n".join([*lines, *(f"Warning: {text}." for text in comparison.warnings)])


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(show(compare(Path(sys.argv[1]), Path(sys.argv[2]))))
    except VisdError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
