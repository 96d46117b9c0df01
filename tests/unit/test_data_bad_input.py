"""Every tool, given what users get wrong, says what and where, exits with an error and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.__main__ import TOOLS, main
from tests.unit.test_data_choose import record, write

GOOD = json.dumps(record(0, "a.mp4"))


def with_path(path: str) -> str:
    return json.dumps(record(1, path))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "missing": (lambda path: None, "there is no such file"),
    "empty": (lambda path: path.write_text(""), "is empty"),
    "cut off": (lambda path: path.write_text(f"{GOOD}\n{GOOD[:80]}"), ":2: is not JSON"),
    "not UTF-8": (lambda path: path.write_bytes(GOOD.encode() + b'\n{"id": "\xff"}\n'), ":2: is not UTF-8"),
    "absolute path": (lambda path: path.write_text(f"{GOOD}\n{with_path('/etc/a.mp4')}\n"), "'/etc/a.mp4' is absolute"),
    "path above": (lambda path: path.write_text(f"{GOOD}\n{with_path('../a.mp4')}\n"), "'../a.mp4' climbs out"),
    "no object": (lambda path: path.write_text(f"{GOOD}\n[1]\n"), "must be an object"),
}


def commands(bad: Path, out: Path, root: Path) -> dict[str, list[str]]:
    return {
        "convert": ["--from", "manifest", str(bad), str(out / "o.jsonl")],
        "probe": [str(bad), "--root", str(root), "--out", str(out / "o.jsonl")],
        "validate": [str(bad), "--out", str(out / "o.jsonl")],
        "split": [str(bad), "--out", str(out)],
        "mix": [str(bad), "--weights", "s=1", "--out", str(out / "o.jsonl")],
        "sample": [str(bad), "--records", "1", "--out", str(out / "o.jsonl")],
        "filter": [str(bad), "--question-chars", "1:", "--out", str(out / "o.jsonl")],
        "stats": [str(bad), "--root", str(root), "--out", str(out / "o.html")],
        "annotate": [str(bad), "--root", str(root), "--out", str(out / "o.jsonl"), "--model", "m"],
    }


TESTED = sorted(set(TOOLS) - {"synth", "cache"})  # synth reads nothing; cache takes the arguments of a run, see below


@pytest.mark.parametrize("tool", TESTED)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_manifest(tool: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, said = BAD[kind]
    bad, out = tmp_path / "bad.jsonl", tmp_path / "out"
    out.mkdir()
    make(bad)
    assert main([tool, *commands(bad, out, tmp_path)[tool]]) != 0
    told = capsys.readouterr()
    if tool == "validate" and (out / "o.jsonl").exists():  # wrong records are what it is to find
        listed = (out / "o.jsonl").read_text()
        assert said.removeprefix(":2: ") in listed and "bad.jsonl:2" in listed and "bad.jsonl:2" in told.out
        return
    if tool == "convert" and kind not in ("folder", "missing", "empty", "cut off", "not UTF-8"):
        [line] = (out / "o.jsonl.dropped.jsonl").read_text().splitlines()  # a row that cannot be used is listed
        assert said in json.loads(line)["message"] and "dropped.jsonl" in told.err
        assert not (out / "o.jsonl").exists()
        return
    assert told.err.startswith("error: ") and said in told.err and str(bad) in told.err
    assert not list(out.iterdir())


@pytest.mark.parametrize("kind", ["folder", "missing", "cut off", "not UTF-8", "absolute path", "path above"])
def test_a_bad_manifest_of_cache(
    kind: str, tiny_qwen2_5_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BAD[kind][0](tmp_path / "bad.jsonl")
    store = tmp_path / "store"
    run = ["experiment=demo", f"model.path={tiny_qwen2_5_vl}", "data.train=[bad.jsonl]", "data.validation=[]"]
    more = ["data.test=[]", f"data.root={tmp_path}", f"data.frames.store={store}", "data.frames.workers=0"]
    assert main(["cache", *run, *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "bad.jsonl" in told and not list(store.glob("??/*"))


@pytest.mark.parametrize("tool", TESTED)
def test_what_is_there_is_not_replaced(tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, out = tmp_path / "good.jsonl", tmp_path / "out"
    write(good, [record(0, "a.mp4")])
    out.mkdir()
    for name in ("o.jsonl", "o.html", "train.jsonl"):
        (out / name).write_text("precious")
    assert main([tool, *commands(good, out, tmp_path)[tool]]) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path.read_text() for path in out.iterdir()} == {"precious"}


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_help(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([tool, "--help"])
    except SystemExit as end:
        status = int(end.code or 0)
    told = capsys.readouterr().out
    assert status == 0 and f"data_tools {tool}" in told


def test_an_unknown_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["polish"]) == 2 and "usage: python -m data_tools" in capsys.readouterr().err
