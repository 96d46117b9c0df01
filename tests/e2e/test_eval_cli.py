"""`python -m eval.run` on real videos with a real, untrained model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eval.results import read_result
from eval.run import parse, run
from tests.tree import ROOT
from visd.observe.files import read_jsonl
from visd.types import VisdError

SETTINGS = ["samples=2", "max_new_tokens=8", "batch_prompts=5", "prompt.video.max_pixels=12544", "threads=1"]


def arguments(model: Path, root: Path, out: Path, data: str = "test.jsonl") -> list[str]:
    return [f"model={model}", f"data={data}", f"root={root}", f"out={out}", *SETTINGS]


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_world, tmp_path / "world"))


def test_an_evaluation_goes_on_where_it_stopped(tiny_qwen2_5_vl: Path, small_world: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(parse(arguments(tiny_qwen2_5_vl, small_world, whole)))
    run(parse(arguments(tiny_qwen2_5_vl, small_world, cut)))
    lines = (cut / "samples.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 12
    (cut / "samples.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    (cut / "results.json").unlink()
    run(parse(arguments(tiny_qwen2_5_vl, small_world, cut)))
    assert read_jsonl(cut / "samples.jsonl") == read_jsonl(whole / "samples.jsonl")
    assert read_result(cut / "results.json") == read_result(whole / "results.json")
    with pytest.raises(VisdError, match="another model, manifest or settings"):
        run(parse([*arguments(tiny_qwen2_5_vl, small_world, cut), "temperature=0.5"]))


def test_a_damaged_video_is_counted_and_stays_in_the_denominator(
    tiny_qwen2_5_vl: Path, world: Path, tmp_path: Path
) -> None:
    records = read_jsonl(world / "test.jsonl")
    damaged = records[0]["media"][0]["path"]
    lost = sum(record["media"][0]["path"] == damaged for record in records)
    (world / damaged).write_bytes((world / damaged).read_bytes()[:200])
    run(parse(arguments(tiny_qwen2_5_vl, world, tmp_path / "out")))
    result = read_result(tmp_path / "out" / "results.json")
    assert sum(result.dropped.values()) == lost > 0
    assert result.questions == result.modes["sampled"].accuracy.n == len(records)
    line = read_jsonl(tmp_path / "out" / "samples.jsonl")[0]
    assert line["dropped"] in result.dropped and damaged.split("/")[-1] in line["message"]


def test_questions_without_media(tiny_qwen2_5_vl: Path, small_world: Path, tmp_path: Path) -> None:
    run(parse(arguments(tiny_qwen2_5_vl, small_world, tmp_path / "out", "text_test.jsonl")))
    assert read_result(tmp_path / "out" / "results.json").questions == 12


@pytest.mark.slow
def test_the_command(tiny_qwen3_vl: Path, small_world: Path, tmp_path: Path) -> None:
    def command(*extra: str) -> subprocess.CompletedProcess[str]:
        given = [*arguments(tiny_qwen3_vl, small_world, tmp_path / "out"), *extra]
        return subprocess.run([sys.executable, "-m", "eval.run", *given], cwd=ROOT, capture_output=True, text=True)

    done = command("split=held-out")
    assert done.returncode == 0, done.stderr
    assert "held-out" in done.stdout and "accuracy" in done.stdout
    assert "evaluate: 12/12 questions" in done.stderr
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["split"] == "held-out" and document["settings"]["max_new_tokens"] == 8
    wrong = command("sampels=3")
    assert wrong.returncode == 1 and "sampels" in wrong.stderr and "Traceback" not in wrong.stderr
