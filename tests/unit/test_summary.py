"""`summary.json` speaks of all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs import small_run
from visd.train.launch import summary


def test_what_several_ranks_met_counts_once(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the other rank: one sample that both dropped, one of its own, and as many decoded videos."""
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    run.drops.by_id.update({"a": "truncated", "b": "timeout"})
    run.reduced.update({"c": "frames"})
    others: dict[int, Any] = {
        id(run.drops.by_id): {"b": "timeout", "d": "truncated"},
        id(run.reduced): {"c": "frames", "e": "pixels"},
    }
    monkeypatch.setattr(run.backend, "all_gather_object", lambda own: [own, others.get(id(own), own)])
    found = summary(run, 0.0)
    assert found["drops"] == {"truncated": 2, "timeout": 1} and found["dropped_ids"] == ["a", "b", "d"]
    assert found["reduced"] == {"frames": 1, "pixels": 1}
    assert found["videos_decoded"] == 2 * run.videos_decoded
