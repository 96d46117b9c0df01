"""Resume is bit-exact: 2 + restart + 2 steps equal 4, in weights, optimiser, teacher, data order and sampled tokens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.judge_server import GOOD, JudgeServer, Reply, completion, judged_by
from tests.runs import small_config
from visd.config import ConfigError, RunConfig
from visd.train.launch import run_stage
from visd.types import VisdError

ROOT = Path(__file__).resolve().parents[2]


def config(world: Path, model: Path, out: Path, *overrides: str) -> RunConfig:
    """Steps that always learn: the format alone earns reward parts, and the sampled answers differ."""
    return small_config(
        world, model, out, "train.steps=4", "checkpoint.every=1", "checkpoint.keep=0", "tracking.dump_every=1",
        "reward.weights={accuracy: 1.0, format: 1.0}", "data.train=[text_train.jsonl,train.jsonl]",
        *overrides,
    )  # fmt: skip


def tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted((run_dir / "checkpoints" / f"step_{step:06d}").rglob("*.safetensors")):
        found |= {f"{path.parent.name}/{path.stem}/{name}": value for name, value in load_file(path).items()}
    return found


def records(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    drop = ("time/", "meter/", "media/", "judge/replayed")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(drop)} for line in lines]


def dumps(run_dir: Path) -> list[str]:
    return [path.read_text() for path in sorted((run_dir / "rollouts").glob("*.jsonl"))]


def assert_same_run(a: Path, b: Path, step: int = 4) -> None:
    left, right = tensors(a, step), tensors(b, step)
    assert left.keys() == right.keys() and any(name.startswith("optimizer") or "exp_avg" in name for name in left)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert records(a) == records(b)
    assert dumps(a) == dumps(b)


def test_two_and_two_steps_equal_four(small_world: Path, warm_model: Path, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert run_stage(config(small_world, warm_model, straight, "rollout.max_new_tokens=40")) == 0
    for _ in range(2):
        part = config(small_world, warm_model, resumed, "rollout.max_new_tokens=40", "train.stop_after=2")
        assert run_stage(part) == 0
    assert_same_run(straight, resumed)
    moved = [
        torch.equal(v, tensors(straight, 1)[n]) for n, v in tensors(straight, 4).items() if n.startswith("teacher/")
    ]
    assert not all(moved), "nothing was learnt, so nothing was tested"


def test_supervised_training_resumes_bit_exactly(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    sft = ("stage=sft", "method=grpo", "data.train=[sft_train.jsonl]", "model.freeze=[]", "optim=muon")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_stage(config(small_world, tiny_qwen2_5_vl, straight, *sft))
    for _ in range(2):
        run_stage(config(small_world, tiny_qwen2_5_vl, resumed, *sft, "train.stop_after=2"))
    assert_same_run(straight, resumed)


def test_adapters_and_their_average_resume_bit_exactly(small_world: Path, warm_model: Path, tmp_path: Path) -> None:
    adapters = ("model.lora.rank=4", "method=visd", "rollout.max_new_tokens=24", "optim.lr=1e-2", "teacher.rate=0.3")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run_stage(config(small_world, warm_model, straight, *adapters))
    for _ in range(2):
        run_stage(config(small_world, warm_model, resumed, *adapters, "train.stop_after=2"))
    assert_same_run(straight, resumed)
    base, first, last = load_file(warm_model / "model.safetensors"), tensors(straight, 1), tensors(straight, 4)
    moved = [name for name, value in first.items() if not torch.equal(value, last[name])]
    assert any(name.startswith("teacher/") for name in moved)
    assert all("lora_" in name for name in moved), "the base moved"
    exported = load_file(straight / "model" / "model.safetensors")
    assert exported.keys() == base.keys()
    assert {name.split(".")[-2] for name in base if not torch.equal(base[name], exported[name])} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize("stage", [("method=grpo",), ("stage=sft", "method=grpo", "data.train=[sft_train.jsonl]")])
def test_a_file_ends_a_start_after_its_step(
    stage: tuple[str, ...], small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """The run takes it away and goes on when started again; one that ends anyway leaves it."""
    file, out = tmp_path / "stop", tmp_path / "run"
    for steps, left in ((1, False), (2, True)):
        file.touch()
        run_stage(config(small_world, tiny_qwen2_5_vl, out, *stage, "train.steps=2", f"run.stop_file={file}"))
        assert len(records(out)) == steps and file.exists() == left
        assert (out / "checkpoints" / f"step_{steps:06d}").is_dir()
        assert json.loads((out / "summary.json").read_text())["finished"] == left


def test_killed_at_any_moment_it_goes_on_as_if_it_had_not_been(
    small_world: Path, warm_model: Path, tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    overrides = ["rollout.max_new_tokens=24"]
    run_stage(config(small_world, warm_model, straight, *overrides))
    command = [
        sys.executable, "scripts/train.py", "experiment=demo", f"data.root={small_world}", f"model.path={warm_model}",
        f"run.dir={killed}", "train.steps=4", "train.prompts_per_step=2", "rollout.n=4", "train.threads=1",
        "tracking.table_every=0", "tracking.progress=false", "checkpoint.every=1", "checkpoint.keep=0",
        "tracking.dump_every=1", "reward.weights={accuracy: 1.0, format: 1.0}",
        "data.train=[text_train.jsonl,train.jsonl]", "optim.lr=1e-4", *overrides,
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # Killed while the checkpoint of step 2 is being written or just after it appeared.
    while not list((killed / "checkpoints").glob("*step_000002")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run_stage(config(small_world, warm_model, killed, *overrides))
    assert_same_run(straight, killed)


def opinion(number: int, body: dict[str, Any]) -> Reply:
    """Depends on what is asked and on nothing else; one in five is nonsense."""
    code = hashlib.sha256(json.dumps(body).encode()).digest()[0]
    told = {**GOOD, "answer": code % 11 / 10, "logic": code % 7 / 6}
    return Reply(completion("nonsense" if code % 5 == 0 else told), delay=0.01 * (code % 4))


def test_a_resumed_run_replays_its_judge(small_world: Path, warm_model: Path, tmp_path: Path) -> None:
    """Killed after its second checkpoint it ends as it would have, though the server has changed its mind."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    with JudgeServer(opinion) as server:
        settings = config(small_world, warm_model, straight, *judged_by(server, "judge.budget_calls=22"))
        run_stage(settings)
        asked = len(server.requests)
        shutil.copytree(straight, resumed)
        for folder in (resumed / "checkpoints").glob("step_00000[34]"):
            shutil.rmtree(folder)
        server.script = lambda number, body: Reply(status=400)
        settings.run.dir = str(resumed)
        run_stage(settings)
        assert len(server.requests) == asked == 22
    assert_same_run(straight, resumed)
    steps = records(straight)
    assert sum(step["judge/calls"] for step in steps) == asked
    assert steps[-1]["judge/status_over_budget"] > 0
    assert sum(step.get("judge/status_parse_failure", 0) for step in steps) > 0
    assert all(0 <= step["judge/disagreement"] <= 1 for step in steps if "judge/disagreement" in step)


def test_a_checkpoint_of_another_run_is_refused(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run_stage(config(small_world, tiny_qwen2_5_vl, tmp_path, "train.steps=1"))
    with pytest.raises(VisdError, match=r"optim\.lr = 0\.0001.*this run has 0\.5"):
        run_stage(config(small_world, tiny_qwen2_5_vl, tmp_path, "train.steps=2", "optim.lr=0.5"))
    with pytest.raises(ConfigError, match=r"run\.resume: never"):
        run_stage(config(small_world, tiny_qwen2_5_vl, tmp_path, "train.steps=2", "run.resume=never"))
    with pytest.raises(ConfigError, match=r"run\.resume: 'nowhere'"):
        run_stage(config(small_world, tiny_qwen2_5_vl, tmp_path, "train.steps=2", "run.resume=nowhere"))


def test_a_damaged_checkpoint_is_refused_and_named(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run_stage(config(small_world, tiny_qwen2_5_vl, tmp_path, "train.steps=1"))
    victim = next((tmp_path / "checkpoints" / "step_000001" / "backend").glob("weights*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(VisdError, match=victim.name):
        run_stage(config(small_world, tiny_qwen2_5_vl, tmp_path, "train.steps=2"))
