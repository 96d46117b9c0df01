"""`data_tools cache` fills the store that a run then reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.__main__ import main
from tests.runs import small_config
from visd.train.launch import run_stage


def arguments(world: Path, model: Path, store: Path) -> list[str]:
    return [
        "experiment=demo", f"data.root={world}", f"model.path={model}", f"data.frames.store={store}",
        "data.validation=[]", "data.test=[]", "data.frames.workers=0", "tracking.progress=false",
    ]  # fmt: skip


def test_a_run_after_it_decodes_nothing(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, told = tmp_path / "store", []
    for _ in range(2):
        assert main(["cache", *arguments(small_world, tiny_qwen2_5_vl, store)]) == 0
        told.append(capsys.readouterr().out)
    assert " 0 videos decoded" not in told[0] and " 0 videos decoded" in told[1]
    run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path / "run", f"data.frames.store={store}"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["videos_decoded"] == 0 and summary["steps"] == 2


def test_a_bad_file_is_named_and_the_rest_is_done(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in (small_world / "train.jsonl").read_text().splitlines()]
    first = lines[0]["media"][0]["path"]
    for line in lines:
        source = small_world / line["media"][0]["path"]
        target = tmp_path / line["media"][0]["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"" if line["media"][0]["path"] == first else source.read_bytes())
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert main(["cache", *arguments(tmp_path, tiny_qwen2_5_vl, tmp_path / "store")]) == 1
    out = capsys.readouterr().out
    assert f"empty: {tmp_path / first}" in out and "1 unusable {'empty': 1}" in out
    assert len(list((tmp_path / "store").glob("??/*"))) == len({line["media"][0]["path"] for line in lines}) - 1


def test_without_a_store_it_says_so(
    small_world: Path, tiny_qwen2_5_vl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", *arguments(small_world, tiny_qwen2_5_vl, Path(""))[:-5], "data.frames.store="]) == 2
    assert "data.frames.store: name the folder" in capsys.readouterr().err
