"""What stops one rank stops all of them, at once and with its reason."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.dist.spawn import run, start
from tests.judge_server import JudgeServer, judged_by

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

COMMON = (
    "experiment=demo", "parallel=ddp", "train.prompts_per_step=2", "train.threads=1", "train.steps=4", "rollout.n=2",
    "rollout.max_new_tokens=4", "tracking.table_every=0", "tracking.progress=false", "data.frames.workers=0",
    "checkpoint.every=0", "data.validation=[]", "data.test=[]", "checkpoint.export=never",
)  # fmt: skip


def messages(tmp_path: Path, world: Path, model: Path, special: int, *overrides: str) -> list[str]:
    """What each of two ranks said at its end."""
    where = [f"data.root={world}", f"model.path={model}", f"run.dir={tmp_path / 'run'}"]
    run("stop_worker", [str(tmp_path), str(special), *COMMON, *where, *overrides], 2, tmp_path / "logs", timeout=150)
    return [(tmp_path / f"rank_{rank}.txt").read_text() for rank in range(2)]


def test_a_judge_that_fails_one_rank(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    with JudgeServer() as gone:
        pass
    with JudgeServer() as server:
        limits = ["judge.max_failure_rate=0.1", "judge.window=4", "judge.retries=0"]
        dead = f"!judge.base_url={gone.url}"
        zero, one = messages(
            tmp_path,
            small_world,
            tiny_qwen2_5_vl,
            1,
            "data.train=[text_train.jsonl]",
            *judged_by(server),
            *limits,
            dead,
        )
    assert one.startswith("the judge failed")
    assert zero.startswith("process 1 stopped, and so do the others: VisdError: the judge failed")


def test_a_sample_that_only_one_rank_meets(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    root = tmp_path / "world"
    root.mkdir()
    first, *rest = (small_world / "text_train.jsonl").read_text().splitlines()[:4]
    broken = json.loads(first)
    broken["messages"][-1]["content"] += " <|im_end|>"
    (root / "train.jsonl").write_text("\n".join([json.dumps(broken), *rest]) + "\n")
    said = messages(
        tmp_path, root, tiny_qwen2_5_vl, 0, "data.train=[train.jsonl]", "method=grpo", "data.max_dropped=0.0"
    )
    own, other = sorted(said, key=lambda text: text.startswith("process"))
    assert own.startswith("1 of 4 samples were dropped (reserved_token: 1)")
    assert other.startswith("process ") and own in other


def test_a_rank_that_is_killed_in_a_step(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """The other one says so and ends with its own status, and the run goes on from the newest checkpoint."""
    out = tmp_path / "run"
    arguments = [
        str(tmp_path), "0", *COMMON, f"data.root={small_world}", f"model.path={tiny_qwen2_5_vl}", f"run.dir={out}",
        "data.train=[text_train.jsonl]", "method=grpo", "checkpoint.every=1",
    ]  # fmt: skip
    other, killed = started = start("stop_worker", arguments, 2, tmp_path / "first")
    end = time.monotonic() + 100
    try:
        while not (out / "checkpoints" / "step_000001").exists():
            assert time.monotonic() < end and killed.poll() is None, (tmp_path / "first" / "rank_1.log").read_text()
            time.sleep(0.01)
        killed.kill()
        assert other.wait(30) == 3  # a collective alone would wait for parallel.timeout_minutes, 10
    finally:
        for process in started:
            process.kill()
    assert killed.wait() == -signal.SIGKILL
    said = (tmp_path / "first" / "rank_0.log").read_text()
    assert "error: process 1 died without a word, and so the others stop" in said and "Traceback" not in said
    done = len((out / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 4
    run("stop_worker", arguments, 2, tmp_path / "second")
    assert not list(tmp_path.glob("rank_*.txt"))
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
