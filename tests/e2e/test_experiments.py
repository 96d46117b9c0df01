"""Every experiment for real models takes a step with a tiny one: all its settings fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visd.cli import compose_config
from visd.config import load
from visd.train.launch import run_stage

SMALLER = (
    "parallel=none", "train.steps=1", "train.prompts_per_step=2", "train.threads=1", "rollout.n=2", "rollout.batch_prompts=0",
    "rollout.max_new_tokens=6", "prompt.video.min_pixels=784", "prompt.video.max_pixels=12544", "prompt.video.max_frames=8",
    "tracking.table_every=0", "tracking.progress=false", "data.frames.workers=0", "optim.warmup_steps=0",
)  # fmt: skip
MODELS = {
    "visd_qwen2_5_vl_7b": "tiny_qwen2_5_vl",
    "visd_qwen3_vl_8b": "tiny_qwen3_vl",
    "visd_qwen3_vl_4b_lora_1gpu": "tiny_qwen3_vl",
    "grpo_video_r1": "tiny_qwen2_5_vl",
    "text_qwen3_4b": "tiny_qwen2_5_vl",
}


@pytest.mark.parametrize("experiment", MODELS)
def test_an_experiment_takes_a_step(
    experiment: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(MODELS[experiment])
    data = "text_train.jsonl" if experiment.startswith("text") else "train.jsonl"
    overrides = [f"experiment={experiment}", f"model.path={model}", f"data.root={small_world}", f"data.train=[{data}]"]
    config = load(compose_config([*overrides, f"run.dir={tmp_path}", *SMALLER]))
    assert run_stage(config) == 0
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert metrics["step"] == 1 and metrics["rollout/count"] == 4
    assert (tmp_path / "model" / "model.safetensors").is_file()
