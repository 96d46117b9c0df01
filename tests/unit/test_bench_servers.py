"""What the bench of servers reads off a run's metrics."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.bench.servers import times


def test_a_step_is_what_lies_between_two_ends(tmp_path: Path) -> None:
    ends, waits = [9.0, 11.0, 14.0, 16.0, 99.0], [5.0, 1.0, 2.0, 0.5, 0.0]
    lines = [{"time/run": end, "time/rollout": wait, "time/update": end} for end, wait in zip(ends, waits, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    step, waiting, update = times(tmp_path / "metrics.jsonl")
    assert (step, waiting, update) == (2.0, 1.0, 14.0)  # neither the first step nor the last
