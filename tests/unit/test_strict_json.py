"""JSON is read and written strictly, in one place, by everything that reads data or writes results."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest

from data_tools.__main__ import main
from data_tools.io.rows import load_json, read_rows
from eval.benchmarks.files import read_rows as benchmark_rows
from tests.tree import relative, with_suffix
from tests.unit.test_data_choose import record
from visd import strict_json
from visd.data.manifest import ManifestError, load_manifest
from visd.observe.files import finite_json, read_json, read_jsonl
from visd.types import VisdError

REFUSED = {
    "nan": ('{"a": NaN}', "NaN is no JSON value"),
    "infinity": ('{"a": [1, -Infinity]}', "-Infinity is no JSON value"),
    "too large": ('{"a": 1e999}', "1e999 is beyond the range"),
    "twice": ('{"a": {"b": 1, "b": 1}}', "field 'b' stands twice"),
    "half a pair": ('{"a": ["\\ud83d"]}', "field 'a[0]' holds half of a surrogate pair"),
    "half a pair as name": ('{"\\uDE00": 1}', "half of a surrogate pair"),
    "cut off": ('{"a": 1', "is not JSON"),
    "two values": ('{"a": 1} {"a": 2}', "is not JSON"),
    "endless number": ('{"a": ' + "9" * 5000 + "}", "digits"),
    "deep": ("[" * 200_000, "recursion"),
}
"""Texts that Python's own module reads in part, but that are no JSON."""


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str) -> None:
    text, said = REFUSED[kind]
    with pytest.raises(strict_json.JsonError, match=r"^here:3: ") as error:
        strict_json.loads(text, "here:3")
    assert said in str(error.value)


def test_what_is_read() -> None:
    text = '{"a": "\\ud83d\\ude00 \\\\ud800", "b": [1e308, -0.0, 10], "c": null, "d": {"a": true}}'
    value = strict_json.loads(b"\xef\xbb\xbf" + text.encode(), "here")
    assert value == json.loads(text) and strict_json.loads(strict_json.dumps(value), "again") == value
    with pytest.raises(strict_json.JsonError, match=r"here: is not UTF-8 .* at byte 8"):
        strict_json.loads(b'{"a": "\xff"}'.replace(b'"\xff', b'x"\xff'), "here")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [1.0, math.nan]}, "a[1]"),
        ({"a": {"b": -math.inf}}, "a.b"),
        ({"a": "\ud83d"}, "a"),
        ({"a": [object()]}, "a[0]"),
        (math.inf, "value"),
    ],
)
def test_what_is_not_written(value: object, place: str) -> None:
    with pytest.raises(strict_json.JsonError) as error:
        strict_json.dumps(value)
    assert str(error.value).startswith(f"{place}: cannot be written")


def test_a_document_says_what_was_not_finite() -> None:
    document = {"a": (1.0, math.inf), "b": {"c": math.nan, "d": 2}, "e": "x"}
    clean = strict_json.without_nonfinite(document)
    assert clean == {"a": [1.0, None], "b": {"c": None, "d": 2}, "e": "x", "nonfinite": {"a[1]": "inf", "b.c": "nan"}}
    assert strict_json.without_nonfinite({"a": 1.0}) == {"a": 1.0}
    assert json.loads(finite_json({"a": math.nan})) == {"a": None, "nonfinite": ["a"]}


@pytest.mark.parametrize("kind", REFUSED)
def test_every_reader_names_file_and_row(kind: str, tmp_path: Path) -> None:
    text, said = REFUSED[kind]
    lines, one, items = tmp_path / "rows.jsonl", tmp_path / "one.json", tmp_path / "list.json"
    lines.write_text(f'{{"a": 1}}\n{text}\n')
    one.write_text(text)
    items.write_text(f'[{{"a": 1}}, {text}]')
    for read, place in (
        (lambda: load_manifest(lines, tmp_path), None),
        (lambda: list(read_rows(lines)), f"{lines}:2"),
        (lambda: benchmark_rows(lines), f"{lines}:2"),
        (lambda: read_jsonl(lines), f"{lines}:2"),
        (lambda: load_json(one), f"{one}"),
        (lambda: read_json(one), f"{one}"),
    ):
        with pytest.raises(VisdError) as error:
            read()
        if place is not None:
            assert str(error.value).startswith(f"{place}: ") and said in str(error.value)
    with pytest.raises(ManifestError, match=r"list\.json:2: "):
        list(read_rows(items))


@pytest.mark.parametrize("kind", ["nan", "twice", "too large", "half a pair"])
def test_a_manifest_of_it_is_refused_by_tools_and_training(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = REFUSED[kind]
    manifest, out = tmp_path / "m.jsonl", tmp_path / "out.jsonl"
    good = json.dumps(record(0, "a.mp4"))
    manifest.write_text(f'{good}\n{good[:-1]}, "meta": {text}}}\n')
    with pytest.raises(ManifestError) as error:
        load_manifest(manifest, tmp_path)
    assert f"{manifest}:2" in str(error.value) and said.split(" holds")[0].split("'a")[0] in str(error.value)
    assert main(["sample", str(manifest), "--records", "1", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"{manifest}:2: " in told and [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_whole_numbers_without_end_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    row = record(0, "a.mp4")
    row["media"][0]["start"] = 10**400
    manifest.write_text(json.dumps(row) + "\n")
    with pytest.raises(ManifestError, match=r"m.jsonl:1: sample .* field 'media\[0\].start': is beyond the range"):
        load_manifest(manifest, tmp_path)


OTHERS = {
    "data_tools/annotate.py",  # the body of a request
    "eval/bench.py",  # texts that are hashed
    "eval/run.py",
    "eval/grounding.py",  # JSON within answers of a model
    "eval/bridges/sources.py",  # what goes through other programs as text
    "eval/bridges/tasks.py",
    "visd/observe/records.py",  # dumps of rollouts
    "data_tools/io/rows.py",  # the class of an error
}


def test_there_is_one_home() -> None:
    found = {
        name
        for path in with_suffix(".py")
        if (name := relative(path)).startswith(("data_tools/", "eval/", "visd/data/", "visd/observe/"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(alias.name == "json" for alias in node.names)
    }
    assert found == OTHERS
