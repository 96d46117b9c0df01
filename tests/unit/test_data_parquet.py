"""Manifests in Parquet: the same records as in JSON Lines for tools, training and evaluation, read as streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main
from tests.unit.test_data_choose import record, write
from visd.data import parquet
from visd.data.manifest import ManifestError, load_manifest, sample_from_record, sample_to_record

arrow = pytest.importorskip("pyarrow")

LETTER = {"type": "letter", "value": "B", "options": ["rot „ä“", "blau\n2"]}
ROWS = [
    record(0, "a.mp4", answer=LETTER, meta={"deep": [{"a": None, "b": [1, 2.5, "x"]}], "n": 3}),
    record(1, "", answer={"type": "number", "value": 3, "tolerance": 0.5}),
    record(2, "a.mp4+b.mp4", answer={"type": "window", "value": [1, 2.5]}, rationale="<think>so</think>"),
    record(
        3,
        "a.mp4",
        answer={"type": "box", "value": [0.1, 0.2, 0.3, 0.4]},
        evidence={"windows": [[0, 1]], "boxes": [{"t": 1, "name": "dog", "xyxy": [0.1, 0.2, 0.3, 0.4]}]},
        reward={"name": "rules"},
    ),
    record(4, "b.mp4", meta={}, rationale=None),
]
"""Fields left out, empty, null and full; whole and broken numbers; every type of answer's value."""


def as_columns(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    parquet.write_records(path, rows)
    return path


def test_there_and_back(tmp_path: Path) -> None:
    lines = write(tmp_path / "m.jsonl", ROWS)
    samples = load_manifest(lines, tmp_path)
    assert samples == [sample_from_record(row, "x") for row in ROWS]
    assert load_manifest(as_columns(tmp_path / "raw.parquet"), tmp_path) == samples
    table, back = tmp_path / "m.parquet", tmp_path / "back.jsonl"
    assert main(["convert", "--from", "manifest", str(lines), str(table), "--shard-rows", "2"]) == 0
    assert main(["convert", "--from", "manifest", str(table), str(back), "--shard-rows", "2"]) == 0
    assert load_manifest(table, tmp_path) == load_manifest(back, tmp_path) == samples
    assert back.read_text() == "".join(
        json.dumps(sample_to_record(sample), ensure_ascii=False) + "\n" for sample in samples
    )


def test_every_tool_reads_and_writes_it(tmp_path: Path) -> None:
    rows = [record(n, f"v{n % 7}.mp4", "ab"[n % 2]) for n in range(40)]
    lines, table = write(tmp_path / "m.jsonl", rows), as_columns(tmp_path / "m.parquet", rows)

    def both(tool: str, *arguments: str) -> None:
        found = []
        for given, ending in ((lines, ".jsonl"), (table, ".parquet")):
            out = tmp_path / f"{tool}{ending}"
            assert main([tool, str(given), *arguments, "--out", str(out), "--shard-rows", "9"]) == 0
            found.append(load_manifest(out, tmp_path))
        assert found[0] == found[1] and found[0]

    both("sample", "--records", "5")
    both("mix", "--weights", "a=1,b=1")
    both("filter", "--question-chars", "1:14")
    for given, ending in ((lines, ".jsonl"), (table, ".parquet")):
        split = ["split", str(given), "--out", str(tmp_path / ending), "--format", ending]
        assert main([*split, "--shares", "train=0.5,test=0.5"]) == 0
    for name in ("train", "test"):
        assert load_manifest(tmp_path / f".jsonl/{name}.jsonl", tmp_path) == load_manifest(
            tmp_path / f".parquet/{name}.parquet", tmp_path
        )


def test_findings_name_the_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = as_columns(tmp_path / "m.parquet", [record(0, "a.mp4"), record(1, "/a.mp4"), record(0, "b.mp4")])
    assert main(["validate", str(table), "--out", str(tmp_path / "found.jsonl")]) == 1
    told = capsys.readouterr().out
    assert f"{table}:2" in told and "is absolute" in told and f"{table}:3" in told
    with pytest.raises(ManifestError, match=r"m\.parquet:2: sample 'r1': field 'media\[0\]\.path': .* is absolute"):
        load_manifest(table, tmp_path)
    table = as_columns(table, [record(0, "a.mp4"), record(0, "b.mp4")])
    with pytest.raises(ManifestError, match=r"m\.parquet:2: .* already used in row 1"):
        load_manifest(table, tmp_path)


def changed(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Write a table whose rows another program has changed."""
    table = arrow.parquet.read_table(path)
    rows = table.to_pylist()
    change(rows)
    arrow.parquet.write_table(arrow.Table.from_pylist(rows, table.schema), path)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "m.parquet: "),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "m.parquet: "),
    "empty": (lambda path: path.write_bytes(b""), "m.parquet: "),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is no Parquet file that can be read"),
    "text": (lambda path: path.write_text("{}"), "is no Parquet file that can be read"),
    "nan": (lambda path: changed(path, lambda rows: rows[1]["media"][0].update(start=float("nan"))), ":2: sample 'r1'"),
    "half a column": (lambda path: changed(path, lambda rows: rows[1].update(meta='{"a": NaN}')), ":2: sample 'r1'"),
    "no value": (lambda path: changed(path, lambda rows: rows[1]["answer"].update(value=None)), ":2: sample 'r1'"),
    "no id": (lambda path: changed(path, lambda rows: rows[1].update(id=None)), ":2: field 'id'"),
    "above": (lambda path: changed(path, lambda rows: rows[1]["media"][0].update(path="../a")), "climbs out by '..'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_table(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = BAD[kind]
    table, out = as_columns(tmp_path / "m.parquet", [record(0, "a.mp4"), record(1, "b.mp4")]), tmp_path / "out.parquet"
    make(table)
    with pytest.raises(ManifestError) as error:
        load_manifest(table, tmp_path)
    assert said in str(error.value)
    assert main(["sample", str(table), "--records", "1", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and said in told and "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} <= {"m.parquet"}


def test_columns_of_another_set_are_named(tmp_path: Path) -> None:
    table = tmp_path / "m.parquet"
    arrow.parquet.write_table(arrow.Table.from_pylist([{"id": "a", "question": "?"}]), table)
    with pytest.raises(ManifestError, match=r"m\.parquet:1: sample 'a': field 'question': is not a known field"):
        load_manifest(table, tmp_path)


@pytest.mark.parametrize("group", [500, 1_000_000])
def test_memory_does_not_follow_the_file(group: int, tmp_path: Path) -> None:
    """What Arrow holds at most while rows are read, for files of ten times the rows and for one large row group."""
    rows = [record(n, f"v{n}.mp4", meta={"text": f"{n} " * 200}) for n in range(500)]
    table = arrow.Table.from_pylist([parquet.to_columns(row) for row in rows])
    peaks = []
    for copies in (3, 30):
        path = tmp_path / f"{copies}.parquet"
        arrow.parquet.write_table(arrow.concat_tables([table] * copies), path, row_group_size=group)
        held, count, before = 0, 0, arrow.total_allocated_bytes()
        for batch, total in parquet.read_batches(path, 100):
            held, count = max(held, arrow.total_allocated_bytes() - before), count + len(batch)
            assert total == 500 * copies
        assert count == total
        peaks.append(held)
    assert peaks[1] <= 1.2 * peaks[0], peaks


def test_evaluation_and_training_read_it(small_world: Path, tmp_path: Path) -> None:
    from visd.config import RunConfig
    from visd.train.run import load_samples

    samples = load_manifest(small_world / "test.jsonl", small_world)
    table = tmp_path / "test.parquet"
    assert main(["convert", "--from", "manifest", str(small_world / "test.jsonl"), str(table)]) == 0
    config = RunConfig()
    config.data.root, config.data.train = str(small_world), [str(table)]
    assert load_samples(config, "train") == samples
