from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.observe_data import make_group
from visd.config import RunConfig
from visd.config_train import TrackingSection
from visd.observe.console import Progress, duration, group_table, plain_console
from visd.observe.files import JsonlLog, finite_json, read_jsonl
from visd.observe.records import rollout_records
from visd.observe.tracker import Tracker
from visd.types import VisdError


def quiet(**changes: object) -> TrackingSection:
    return TrackingSection(**{"progress": False, **changes})  # type: ignore[arg-type]


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in read_jsonl(path)]


def test_a_resumed_run_repeats_no_step(tmp_path: Path) -> None:
    first = Tracker(tmp_path, quiet(), 10, 0, True)
    for step in range(1, 6):
        first.log_step(step, {"reward/accuracy": 0.0})
        first.dump(step, rollout_records(step, [make_group("a", [1.0, 0.0])]))
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 6, "reward/acc')  # killed while writing
    second = Tracker(tmp_path, quiet(), 10, 3, True)
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == [f"step_{i:06d}.jsonl" for i in (1, 2, 3)]
    second.log_step(4, {"reward/accuracy": 1.0})
    second.close()
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert records[3]["reward/accuracy"] == 1.0
    assert records[3]["time/run"] > records[2]["time/run"]
    with pytest.raises(ValueError, match="step 7 came after those of step 4"):
        second.log_step(7, {})


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path / "run", TrackingSection(wandb="online"), 3, 0, False)
    tracker.config(RunConfig())
    tracker.log_step(1, {})
    tracker.dump(1, [])
    tracker.table(1, make_group("a", [1.0]))
    tracker.summary({})
    tracker.close()
    assert not (tmp_path / "run").exists()


def test_a_corrupt_line_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(VisdError, match=r"metrics\.jsonl:2: is not JSON"):
        Tracker(tmp_path, quiet(), 10, 3, True)


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from visd.config_train import TrackingSection; from visd.observe.tracker import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), TrackingSection(progress=False), 10**6, 0, True)\n"
        "for step in range(1, 10**6): t.log_step(step, {'a': 1.0})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    path = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 500) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps = steps_of(path)
    assert len(steps) > 3 and steps == list(range(1, len(steps) + 1))
    Tracker(tmp_path, quiet(), 10, 2, True).close()
    assert steps_of(path) == [1, 2]


def test_nonfinite_values_stay_valid_json_and_are_named() -> None:
    text = finite_json({"step": 1, "optim/grad_norm": math.inf, "loss": math.nan, "a": 1.0})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "optim/grad_norm": None,
        "loss": None,
        "a": 1.0,
        "nonfinite": ["loss", "optim/grad_norm"],
    }


def test_config_and_summary_are_written(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, quiet(), 3, 0, True)
    tracker.config(RunConfig())
    tracker.summary({"method": "visd", "drops": {"decode": 1}})
    tracker.close()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["rollout"]["n"] == 8
    assert json.loads((tmp_path / "summary.json").read_text())["drops"] == {"decode": 1}


def test_intervals_of_dumps_and_tables(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, quiet(dump_every=3, table_every=0), 9, 0, True)
    assert [s for s in range(1, 10) if tracker.wants_dump(s)] == [3, 6, 9]
    assert not any(tracker.wants_table(s) for s in range(1, 10))
    tracker.close()


def test_progress_without_a_terminal_prints_a_line_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    progress = Progress("train", 20, 10, stream=stream, every=5.0, clock=lambda: now[0])
    for _ in range(10):
        now[0] += 2.0
        progress.advance({"acc": 0.5})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: 11/20 steps, 2.0 s/step, 2s gone, 18s left, acc 0.5"
    assert lines[-1].startswith("train: 20/20") and lines[-1].endswith("0s left, acc 0.5")
    assert len(lines) == 4


def test_durations() -> None:
    assert [duration(s) for s in (41.6, 185, 7620)] == ["42s", "3m05s", "2h07m"]


def test_the_table_shows_the_rollouts_and_interprets_no_markup() -> None:
    group = make_group("[bold]a", [0.0, 1.0])
    stream = io.StringIO()
    plain_console(stream).print(group_table(3, group))
    text = stream.getvalue()
    assert "[bold]a" in text and "gold: red" in text
    assert text.index("1.20") < text.index("0.20")  # best first
    assert "+0.50" in text and "format" in text and "judge: logic" in text
    assert "spatial" not in text  # applies to no rollout of the group


def test_offline_wandb_keeps_a_run_and_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 1):
        tracker = Tracker(tmp_path, quiet(wandb="offline"), 3, start, True)
        tracker.log_step(start + 1, {"reward/accuracy": 0.5})
        tracker.close()
    run_id = (tmp_path / "wandb_id").read_text()
    assert list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))


def test_the_log_needs_no_earlier_file(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "new" / "metrics.jsonl", keep_until=0)
    assert log.last is None
    log.append({"step": 1})
    log.close()
    assert steps_of(tmp_path / "new" / "metrics.jsonl") == [1]
