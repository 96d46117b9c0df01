"""One step ahead in two processes: no hang, the answers of one process, and one process goes on with those of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.spawn import run
from tests.runs import small_config
from visd.train.launch import run_stage

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

SETTINGS = (
    "train.steps=3", "rollout.max_staleness=1", "objective.old_logp=engine", "rollout.max_new_tokens=8", "rollout.n=2",
    "data.train=[text_train.jsonl,train.jsonl]", "data.validation=[text_test.jsonl]", "validation.every=2",
    "validation.samples=2", "tracking.dump_every=1", "checkpoint.export=never",
)  # fmt: skip


def dumped(run_dir: Path, step: int) -> list[Any]:
    path = sorted((run_dir / "rollouts").glob("*.jsonl"))[step]
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((r["sample_id"], r["seed"], r["policy_version"], r["token_ids"]) for r in records)


def test_two_processes_sample_ahead_what_one_does(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, one, *SETTINGS)) == 0
    common = (
        "experiment=demo", "parallel=ddp", "train.prompts_per_step=2", "train.threads=1", "optim.lr=1e-4",
        "tracking.table_every=0", "tracking.progress=false", "data.frames.workers=0",
        f"data.root={small_world}", f"model.path={tiny_qwen2_5_vl}", f"run.dir={two}",
    )  # fmt: skip
    run("stop_worker", [str(tmp_path), "0", *common, *SETTINGS, "train.stop_after=2"], 2, tmp_path / "logs", timeout=150)
    assert not list(tmp_path.glob("rank_*.txt")), "a process stopped"
    stored = sorted((two / "checkpoints" / "step_000002" / "ahead").iterdir())
    assert [len(path.read_text().splitlines()) for path in stored] == [1, 1]
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, two, *SETTINGS)) == 0
    for step in range(3):
        assert dumped(two, step) == dumped(one, step)
