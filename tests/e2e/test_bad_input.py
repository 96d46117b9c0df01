"""What users get wrong: each ends as one sentence that names the culprit, or as a counted drop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.runs import small_config
from visd.cli import main
from visd.train.launch import run_stage
from visd.types import VisdError


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    copy = tmp_path / "world"
    shutil.copytree(small_world, copy)
    return copy


def first_video(world: Path) -> tuple[str, Path]:
    record = json.loads((world / "train.jsonl").read_text().splitlines()[0])
    return record["id"], world / record["media"][0]["path"]


def edit_first(world: Path, change: Callable[[dict[str, Any]], None]) -> str:
    lines = (world / "train.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    change(record)
    (world / "train.jsonl").write_text("\n".join([json.dumps(record), *lines[1:]]) + "\n")
    return str(record["id"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"no video at all" * 50), "unreadable"),
        (lambda p: p.unlink(), "missing"),
    ],
    ids=["empty", "not a video", "missing"],
)
def test_a_bad_video_is_a_counted_drop(
    damage: Callable[[Path], None], reason: str, world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    sample, path = first_video(world)
    damage(path)
    steps = ["train.steps=4", "train.prompts_per_step=6", "rollout.n=2", "rollout.max_new_tokens=4"]
    run_stage(small_config(world, tiny_qwen2_5_vl, tmp_path / "run", "data.max_dropped=0.5", *steps))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["drops"].keys() == {reason} and sample in summary["dropped_ids"]
    assert summary["steps"] == 4


def test_too_many_drops_stop_the_run(world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    _, path = first_video(world)
    path.write_bytes(path.read_bytes()[:200])
    config = small_config(world, tiny_qwen2_5_vl, tmp_path / "run", "train.prompts_per_step=24", "train.steps=1")
    with pytest.raises(VisdError, match=r"of 24 samples were dropped .*data\.max_dropped = 0\.01"):
        run_stage(config)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.pop("answer"), "answer"),
        (lambda r: r["media"][0].update(path="../outside.mp4"), "path"),
        (lambda r: r["media"][0].update(path="/etc/passwd"), "path"),
        (lambda r: r.update(answer={"type": "letter", "value": "F", "options": ["a", "b"]}), "answer"),
        (lambda r: r["evidence"].update(windows=[[1.0, 99.0]]), "windows"),
        (lambda r: r.update(colour="red"), "colour"),
    ],
    ids=["no answer", "path above root", "absolute path", "letter", "window", "unknown field"],
)
def test_a_bad_manifest_line_is_named(
    change: Callable[[dict[str, Any]], None], field: str, world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    edit_first(world, change)
    with pytest.raises(VisdError) as error:
        run_stage(small_config(world, tiny_qwen2_5_vl, tmp_path / "run"))
    assert "train.jsonl:1" in str(error.value) and field in str(error.value)


def test_a_line_that_is_not_json_is_named(world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    lines = (world / "train.jsonl").read_text().splitlines()
    (world / "train.jsonl").write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]))
    with pytest.raises(VisdError, match=r"train\.jsonl:2"):
        run_stage(small_config(world, tiny_qwen2_5_vl, tmp_path / "run"))


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_that_do_not_fit_stop_the_run(change: str, world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen2_5_vl, model)
    weights = load_file(model / "model.safetensors")
    name = next(n for n in weights if "layers.0" in n and "weight" in n)
    if change == "missing":
        del weights[name]
    else:
        weights["model.surplus.weight"] = weights[name].clone()
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VisdError, match=r"model\.path.*(layers\.0|surplus)"):
        run_stage(small_config(world, model, tmp_path / "run"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.stepz=3"], "train.stepz"),
        (["train.steps=many"], "train.steps"),
        (["method.lamb=1"], "lamb"),
        (["method.eps=1.5"], "method.eps"),
        (["teacher.context=[answer,solution]"], "solution"),
        (["reward.weights={beauty: 1.0}"], "beauty"),
        (["model.path=nowhere/at/all"], "model.path"),
        (["data.train=[none.jsonl]"], "none.jsonl"),
        (["data.train=[]"], "data.train"),
        (["train.micro_batch_tokens=20", "train.steps=1"], "train.micro_batch_tokens"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_bad_configuration_is_one_sentence(
    arguments: list[str],
    said: str,
    world: Path,
    tiny_qwen2_5_vl: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = [
        "experiment=demo", f"data.root={world}", f"model.path={tiny_qwen2_5_vl}", f"run.dir={tmp_path / 'run'}",
        "train.prompts_per_step=2", "stage=sft", "data.train=[sft_train.jsonl]", "tracking.progress=false",
    ]  # fmt: skip
    assert main([*base, *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and said in last


def test_check_only_reports_and_writes_nothing(
    world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run_stage(small_config(world, tiny_qwen2_5_vl, out, "check_only=true")) == 0
    said = capsys.readouterr().out
    assert "train: 24 samples" in said and "memory of one process" in said and "check: ok" in said
    assert not out.exists()
    first_video(world)[1].write_bytes(b"")
    assert run_stage(small_config(world, tiny_qwen2_5_vl, out, "check_only=true")) == 1
    assert "empty" in capsys.readouterr().out
