"""Evaluation while training: the numbers of `eval`, the best weights kept, and nothing of the training changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from eval.runner import Asking, evaluate
from tests.runs import small_config, small_run
from visd.config import ConfigError, RunConfig
from visd.train.launch import run_stage
from visd.train.run import set_up

ON = ("validation.every=2", "validation.samples=10", "data.validation=[validation.jsonl,text_validation.jsonl]")


def config(world: Path, model: Path, out: Path, *overrides: str) -> RunConfig:
    return small_config(
        world, model, out, "train.steps=5", "reward.weights={accuracy: 1.0, format: 1.0}", "optim.lr=3e-3",
        "data.train=[text_train.jsonl,train.jsonl]", "rollout.max_new_tokens=24", *overrides,
    )  # fmt: skip


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def validated(small_world: Path, warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("validated")
    assert run_stage(config(small_world, warm_model, out, *ON)) == 0
    return out


def test_it_comes_when_due_and_after_the_last_step(validated: Path) -> None:
    assert [r["step"] for r in records(validated) if "validation/accuracy" in r] == [2, 4, 5]


def test_the_numbers_are_those_of_eval(validated: Path, small_world: Path, warm_model: Path, tmp_path: Path) -> None:
    """The exported model, asked the same questions by `eval`'s own code."""
    run = small_run(small_world, validated / "model", tmp_path, *ON, "rollout.max_new_tokens=24")
    asking = Asking(samples=0, max_new_tokens=24)
    result = evaluate(run.engine, run.builder, run.questions, asking, run.config.reward)
    last = records(validated)[-1]
    greedy = result.modes["greedy"]
    assert last["validation/accuracy"] == pytest.approx(greedy.accuracy.mean, abs=1e-9)
    assert last["validation/format"] == pytest.approx(greedy.format_rate.mean, abs=1e-9)
    assert last["validation/length_mean"] > 1


def test_the_best_weights_are_kept(validated: Path) -> None:
    found = {r["step"]: r["validation/accuracy"] for r in records(validated) if "validation/accuracy" in r}
    best = json.loads((validated / "best" / "validation.json").read_text())
    assert best == json.loads((validated / "summary.json").read_text())["best"]
    assert best["accuracy"] == max(found.values())
    assert best["step"] == min(step for step, accuracy in found.items() if accuracy == best["accuracy"])
    kept, last = (load_file(validated / name / "model.safetensors") for name in ("best", "model"))
    assert kept.keys() == last.keys()
    assert all(equal(kept[name], last[name]) for name in kept) == (best["step"] == 5)


def test_training_is_what_it_is_without(validated: Path, small_world: Path, warm_model: Path, tmp_path: Path) -> None:
    assert run_stage(config(small_world, warm_model, tmp_path)) == 0
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (validated, tmp_path))
    assert all(equal(one[name], other[name]) for name in one)


def test_a_resumed_run_knows_the_best_so_far(
    validated: Path, small_world: Path, warm_model: Path, tmp_path: Path
) -> None:
    settings = (*ON, "checkpoint.every=1", "validation.keep_best=false")
    assert run_stage(config(small_world, warm_model, tmp_path, *settings, "train.stop_after=3")) == 0
    assert run_stage(config(small_world, warm_model, tmp_path, *settings)) == 0
    assert not (tmp_path / "best").exists()
    assert (
        json.loads((tmp_path / "summary.json").read_text())["best"]
        == json.loads((validated / "summary.json").read_text())["best"]
    )


def test_questions_that_cannot_be_asked_count_as_wrong(small_world: Path, warm_model: Path, tmp_path: Path) -> None:
    lines = (small_world / "validation.jsonl").read_text().splitlines()[:2]
    broken = json.loads(lines[0])
    broken["id"] = "broken"
    broken["media"][0]["path"] = "videos/missing.mp4"
    (small_world / "with_broken.jsonl").write_text("\n".join([lines[1], json.dumps(broken)]) + "\n")
    settings = ("validation.every=1", "data.validation=[with_broken.jsonl]", "data.max_dropped=0.5", "train.steps=1")
    assert run_stage(config(small_world, warm_model, tmp_path, *settings)) == 0
    assert records(tmp_path)[-1]["validation/dropped"] == 0.5


def test_without_questions_it_is_refused_before_the_first_step(
    small_world: Path, warm_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation: names no manifest"):
        set_up(config(small_world, warm_model, tmp_path, "validation.every=1", "data.validation=[]"))
