"""The same tools on Ray give the same files; without Ray they say what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data_tools.__main__ import main
from scripts.bench import data_tools as bench
from tests.unit.test_data_choose import record, write


def test_ray_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    source = tmp_path / "in.json"
    bench.write_input(source, 600)
    found = []
    for engine in ("processes", "ray"):
        folder = tmp_path / engine
        folder.mkdir()
        pace = ["--shard-rows", "100", "--engine", engine, "--num-workers", "2"]
        assert main(["convert", "--from", "stgr", str(source), str(folder / "m.jsonl"), *pace]) == 0
        assert (
            main(["sample", str(folder / "m.jsonl"), "--records", "50", "--out", str(folder / "s.jsonl"), *pace]) == 0
        )
        found.append([(folder / name).read_bytes() for name in ("m.jsonl", "s.jsonl", "m.jsonl.report.json")])
        assert sorted(path.name for path in folder.iterdir()) == ["m.jsonl", "m.jsonl.report.json", "s.jsonl"]
    assert found[0] == found[1]


def test_an_error_of_a_task_on_ray_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    manifest = write(tmp_path / "m.jsonl", [record(0, "a.mp4"), record(1, "/a.mp4")])
    assert main(["sample", str(manifest), "--records", "1", "--out", str(tmp_path / "s.jsonl"), "--engine", "ray"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"error: {manifest}:2") and "is absolute" in told


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    manifest = write(tmp_path / "m.jsonl", [record(0, "a.mp4")])
    assert main(["sample", str(manifest), "--records", "1", "--out", str(tmp_path / "s.jsonl"), "--engine", "ray"]) == 2
    assert "pip install visd[ray]" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
