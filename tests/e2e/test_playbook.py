"""RESD's playbook lies readable in the run's folder, and a run that was stopped goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.runs import small_config
from visd.train.launch import run_stage


def test_the_playbook_survives_a_restart(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    settings = ("method=resd", "method.writer=rules", "rollout.n=1", "rollout.max_new_tokens=6", "train.steps=2")
    settings = (*settings, "data.train=[train.jsonl,text_train.jsonl]", "checkpoint.export=never")
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, straight, *settings)) == 0
    for _ in range(2):
        assert run_stage(small_config(small_world, tiny_qwen2_5_vl, stopped, *settings, "train.stop_after=1")) == 0
    books = [json.loads((folder / "playbook.json").read_text()) for folder in (straight, stopped)]
    assert books[0] == books[1] and books[0]["updates"] == 2 and books[0]["entries"]
    (first, second) = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert first["method/playbook_added"] == first["method/playbook_entries"] > 0
    assert second["term/distillation"] >= 0 and second["method/context_share"] == 1.0
