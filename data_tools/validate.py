"""`python -m data_tools validate`: everything that can be found wrong with manifests before a run.

    python -m data_tools validate train.jsonl --probe probe.jsonl --against test.jsonl --out findings.jsonl

Each record is read as training reads it; then its times, boxes, letters, answer type, reward and tags are checked (with
--probe also its files), and all records are compared: the same question about the same video, nearly the same one, and
questions or videos of the sets given by --against (evaluation sets), which training must not have seen. With --probe, copies of
a video are known by the fingerprints of their frames, whatever their name, size and encoding; without, by their path.

OUT has one line a finding: where, id, field, check, level, message. OUT.report.json counts them. The exit status is 0 without
errors (warnings may be left), 1 with errors, 2 if the work could not be done.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.checks import Finding, Level, check_sample
from data_tools.io.cli import check_ending, counted, guarded, tool_parser
from data_tools.io.manifests import record_of, write_lines
from data_tools.io.passes import SHARD_ROWS, Pass, add_pass_arguments, beside, check_manifests, run_pass
from data_tools.io.rows import Chunk, read_chunks
from data_tools.io.shards import ShardedWork, ShardReport, ShardResult
from data_tools.likeness import NEAR_WORDS, ROW, Pair, find_pairs, groups_of, question_words, row_of, shared_words
from data_tools.probed import load_probed, probed_arguments
from visd import strict_json
from visd.data.fields import ManifestError
from visd.data.manifest import sample_from_record
from visd.observe.files import write_atomic
from visd.types import Sample, VisdError

SHOWN = 20
"""Findings that are printed."""


def main(arguments: list[str]) -> int:
    parser = tool_parser("validate", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="training manifests")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="manifests of evaluation sets")
    parser.add_argument("--probe", type=Path, nargs="*", help="OUT files of `probe` for all media")
    parser.add_argument("--out", type=Path, required=True, help="findings to write (.jsonl)")
    add_pass_arguments(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    out: Path = chosen.out
    check_ending(out, ".jsonl")
    inputs = [*chosen.manifests, *chosen.against]
    if len({path.resolve() for path in inputs}) < len(inputs):
        raise VisdError("a manifest is given twice; name each once, as training or by --against")
    check_manifests(inputs)
    probe = probed_arguments(chosen.probe)
    task = Validation(tuple(str(path) for path in inputs), probe)
    comparison = Comparison(inputs, len(chosen.manifests), probe)
    return run_pass(
        out,
        inputs,
        task,
        Pass.chosen(chosen),
        lambda work, report: _finish(work, report, out, comparison),
        name="validate",
        also=probe,
    )


@dataclass(frozen=True)
class Validation:
    """Checks the records of a shard, each by itself."""

    files: tuple[str, ...]
    probe: tuple[Path, ...]

    def __call__(self, chunk: Chunk) -> ShardResult:
        probed = load_probed(self.probe) if self.probe else None
        file, result = self.files.index(chunk.path), ShardResult([], ShardReport(rows=len(chunk.rows)))
        rows, counts = [], Counter[str]()
        for where, row in chunk.placed():
            try:
                sample = sample_of(chunk, where, row)
            except ManifestError as error:
                name = error.place.sample_id if error.place else None
                found = [(name, schema_finding(error))]
            else:
                found = [(sample.id, finding) for finding in check_sample(sample, probed)]
                rows.append(row_of(sample, file, int(where.rsplit(":", 1)[1])))
            counts.update(f"{finding.level}:{finding.check}" for _, finding in found)
            result.lines += [line_of(finding, where, name) for name, finding in found]
        result.report.written, result.report.notes = len(result.lines), dict(counts)
        result.table = np.array(rows, ROW)
        return result


def sample_of(chunk: Chunk, where: str, row: Any) -> Sample:
    return sample_from_record(record_of(chunk.value(where, row), where, chunk.path.endswith(".parquet")), where)


def schema_finding(error: ManifestError) -> Finding:
    """What reading a record refuses."""
    if error.place is None:
        return Finding("error", "schema", "", str(error))
    return Finding("error", "schema", error.place.field, error.what)


def line_of(finding: Finding, where: str, name: str | None) -> str:
    return strict_json.dumps({"where": where, "id": name, **asdict(finding)})


@dataclass
class Comparison:
    """Compares all records with each other, after their shards are done."""

    inputs: list[Path]  # training sets, then evaluation sets
    training: int  # how many of them are training sets
    probe: tuple[Path, ...]
    counts: Counter[str] = field(default_factory=Counter)  # filled while findings are taken

    def lines(self, table: NDArray[Any]) -> Iterator[str]:
        """One line a finding."""
        pairs = list(find_pairs(table, self.training, load_probed(self.probe) if self.probe else None))
        twice = [group for group in groups_of(table["id"])]
        wanted = {place for pair in pairs for place in (pair.first, pair.second)}
        wanted |= {int(place) for group in twice for place in group}
        texts = self._texts(table, wanted)
        for group in twice:
            first = texts[int(group[0])]
            for place in group[1:].tolist():
                message = f"is already used by {first.where}; ids must be unique in a manifest"
                yield self._line(Finding("error", "id_twice", "id", message), texts[place])
        for pair in pairs:
            finding = finding_of(pair, table, texts[pair.first], texts[pair.second])
            if finding is not None:
                yield self._line(finding, texts[pair.second])

    def _line(self, finding: Finding, text: Text) -> str:
        self.counts[f"{finding.level}:{finding.check}"] += 1
        return line_of(finding, text.where, text.id)

    def _texts(self, table: NDArray[Any], wanted: set[int]) -> dict[int, Text]:
        """What the wanted rows say, by one more reading of the files they are in."""
        places = {(int(table["file"][i]), int(table["row"][i])): i for i in wanted}
        texts = {}
        for file, path in enumerate(self.inputs):
            if not any(number == file for number, _ in places):
                continue
            for chunk in read_chunks(path, SHARD_ROWS):
                for number, row in chunk.rows:
                    place = places.get((file, number))
                    if place is not None:
                        where = f"{path}:{number}"
                        sample = sample_of(chunk, where, row)
                        texts[place] = Text(where, sample.id, question_words(sample))
        return texts


@dataclass(frozen=True)
class Text:
    """What is told of a record, and compared."""

    where: str
    id: str
    words: frozenset[str]


def finding_of(pair: Pair, table: NDArray[Any], first: Text, second: Text) -> Finding | None:
    """What a pair of like records means; None if it means nothing. It is told of the second one."""
    other = f"{first.where} ({first.id!r})"
    if pair.likeness == "same":
        if pair.across:
            return Finding(
                "error", "leak", "messages", f"training has the same question and media, {other}; delete it there"
            )
        if table["answer"][pair.first] == table["answer"][pair.second]:
            return Finding("error", "duplicate", "messages", f"is the same as {other}; delete one")
        return Finding(
            "error", "contradiction", "answer.value", f"is another answer than that of the same question, {other}"
        )
    share = shared_words(first.words, second.words) if pair.likeness == "near" else 0.0
    if share >= NEAR_WORDS:
        alike = f"shares {share:.0%} of the words and the media with {other}"
        if pair.across:
            return Finding("error", "leak", "messages", f"{alike}, of the training set; delete it there")
        return Finding("warning", "near_duplicate", "messages", f"{alike}; delete one unless both are meant")
    if pair.across and table["video"][pair.second]:
        message = f"its video is also that of {other}, of the training set; use `split`, which keeps videos apart"
        return Finding("warning", "shared_video", "media[0].path", message)
    return None


def _finish(work: ShardedWork, report: ShardReport, out: Path, comparison: Comparison) -> int:
    def lines() -> Iterator[str]:
        yield from work.lines()
        yield from comparison.lines(work.table())

    write_lines(out, lines())
    counts = Counter(report.notes) + comparison.counts
    levels: dict[Level, dict[str, int]] = {
        level: {name.split(":")[1]: count for name, count in sorted(counts.items()) if name.startswith(level)}
        for level in ("error", "warning")
    }
    errors, warnings = (sum(levels[level].values()) for level in ("error", "warning"))
    about = {
        "records": report.rows,
        "training": [str(path) for path in comparison.inputs[: comparison.training]],
        "evaluation": [str(path) for path in comparison.inputs[comparison.training :]],
        "files_checked": bool(comparison.probe),
        "errors": levels["error"],
        "warnings": levels["warning"],
    }
    write_atomic(beside(out, "report.json"), strict_json.dumps(about, indent=2) + "\n")
    for line in islice(_shown(out), SHOWN):
        print(line)
    if errors + warnings > SHOWN:
        print(f"... {errors + warnings - SHOWN} more in {out}")
    print(f"{report.rows} records: {errors} errors ({counted(levels['error']) or 'none'}), "
          f"{warnings} warnings ({counted(levels['warning']) or 'none'})")  # fmt: skip
    if not comparison.probe:
        print("files were not looked at; give --probe")
    return 1 if errors else 0


def _shown(out: Path) -> Iterator[str]:
    """Findings as sentences, errors before warnings."""
    for level in ("error", "warning"):
        with out.open(encoding="utf-8") as file:
            for line in file:
                found = strict_json.loads(line, str(out))
                if found["level"] == level:
                    name = f" sample {found['id']!r}:" if found["id"] is not None else ""
                    what = f" field {found['field']!r}:" if found["field"] else ""
                    yield f"{level}: {found['where']}:{name}{what} {found['message']} [{found['check']}]"
