"""Inputs of whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import small_config
from visd.train.launch import run_stage


@pytest.fixture(scope="session")
def warm_model(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few supervised steps on a handful of short texts, so that answers have tags and rewards differ."""
    out = tmp_path_factory.mktemp("warm")
    lines = (small_world / "text_sft_train.jsonl").read_text().splitlines(keepends=True)
    (out / "few.jsonl").write_text("".join(sorted(lines, key=len)[:6]))
    settings = small_config(
        out, tiny_qwen2_5_vl, out, "stage=sft", "method=grpo", "data.train=[few.jsonl]", "model.freeze=[]",
        "train.steps=40", "train.prompts_per_step=6", "optim.lr=3e-3", "optim.schedule=constant", "checkpoint.every=0",
        "sft.privileged_share=0.0",
    )  # fmt: skip
    assert run_stage(settings) == 0
    loss = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(loss[-5:]) / 5 < 0.3 * loss[0], "supervised training does not learn"
    return out / "model"
