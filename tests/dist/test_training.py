"""The whole training script in two processes: the same loss as in one, and no hang where only one rank has video."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.dist, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240  # s; a hang fails the test instead of the suite
COMMON = (
    "experiment=demo", "train.prompts_per_step=4", "train.threads=1", "tracking.table_every=0",
    "tracking.progress=false", "rollout.n=2", "rollout.max_new_tokens=8", "train.steps=2", "checkpoint.every=1",
    "checkpoint.keep=0",
)  # fmt: skip


def start(launcher: list[str], *overrides: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, "scripts/train.py", *COMMON, *overrides],
        cwd=ROOT, env=environment, timeout=LIMIT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def launcher(mode: str, port: int) -> list[str]:
    """One process, torchrun, or what users of DeepSpeed type."""
    if mode == "none":
        return [sys.executable]
    if mode == "zero3":
        deepspeed = Path(sys.executable).with_name("deepspeed")
        return [sys.executable, str(deepspeed), "--num_accelerators", "2", "--master_port", str(port)]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def mixed(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose manifests alternate so that in a step of four one rank gets text and the other video."""
    root = tmp_path_factory.mktemp("mixed")
    shutil.copytree(small_world / "videos", root / "videos")
    for kind in ("sft_train", "train"):
        video = (small_world / f"{kind}.jsonl").read_text().splitlines()
        text = (small_world / f"text_{kind}.jsonl").read_text().splitlines()
        (root / f"{kind}.jsonl").write_text("\n".join([*video[:2], *text[:2]]) + "\n")
    return root


@pytest.fixture(scope="module")
def single(mixed: Path, tiny_qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The supervised run in one process that the others are compared with."""
    out = tmp_path_factory.mktemp("single")
    start(launcher("none", 0), *sft(mixed, tiny_qwen2_5_vl, out))
    return out


def sft(root: Path, model: Path, out: Path) -> list[str]:
    """A trained tower, so that ranks without media must keep it in the graph."""
    return [
        "stage=sft", "method=grpo", f"data.root={root}", "data.train=[sft_train.jsonl]", f"model.path={model}",
        f"run.dir={out}", "model.freeze=[]", "optim.lr=1e-3", "validation.every=1", "data.validation=[train.jsonl]",
    ]  # fmt: skip


@pytest.mark.parametrize(("mode", "port"), [("ddp", 29611), ("zero2", 29612), ("zero3", 29613), ("fsdp2", 29614)])
def test_two_processes_agree_with_one_and_mixed_media_do_not_hang(
    mode: str, port: int, mixed: Path, single: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "sft"
    start(launcher(mode, port), *sft(mixed, tiny_qwen2_5_vl, trained), f"parallel={mode}")
    for one, two in zip(records(single), records(trained), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=2e-5)
        assert two["optim/grad_norm"] == pytest.approx(one["optim/grad_norm"], rel=1e-3)
        for name in ("accuracy", "format", "length_mean"):  # of greedy answers, each rank asking half of the questions
            assert two[f"validation/{name}"] == pytest.approx(one[f"validation/{name}"], abs=1e-5)

    rl = [
        f"data.root={mixed}",
        "data.train=[train.jsonl]",
        f"model.path={trained / 'model'}",
        f"run.dir={tmp_path / 'rl'}",
    ]
    start(launcher(mode, port + 20), *rl, f"parallel={mode}", "method=visd")
    assert [r["step"] for r in records(tmp_path / "rl")] == [1, 2]
    dumped = sorted((tmp_path / "rl" / "rollouts").glob("*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in dumped] == [8, 8]


def test_another_number_of_processes_goes_on_with_the_same_samples_and_rollouts(
    mixed: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """1 + 1 steps in one and two processes, and in two and one: what one process does in two."""
    for name, order in (("straight", ()), ("grown", ("none", "zero3")), ("shrunk", ("ddp", "none"))):
        common = [
            f"data.root={mixed}", "data.train=[train.jsonl]", f"model.path={tiny_qwen2_5_vl}", "method=visd",
            f"run.dir={tmp_path / name}", "optim.lr=1e-3",
        ]  # fmt: skip
        if not order:
            start(launcher("none", 0), *common)
        for i, mode in enumerate(order):
            stop = [] if i else ["train.stop_after=1"]
            start(launcher(mode, 29651 + i), *common, f"parallel={mode}", *stop)
    expected, rolled = records(tmp_path / "straight"), rollouts(tmp_path / "straight")
    assert len(rolled) == 16 and len(set(rolled)) > 8
    for name in ("grown", "shrunk"):
        assert rollouts(tmp_path / name) == rolled
        for one, other in zip(expected, records(tmp_path / name), strict=True):
            keys = [key for key in one if key.startswith(("loss", "optim/", "reward/", "teacher/", "student/"))]
            assert {"optim/grad_norm", "teacher/displacement"} <= set(keys)
            for key in keys:
                assert other[key] == pytest.approx(one[key], rel=1e-3, abs=2e-5), (name, key)


def rollouts(run_dir: Path) -> list[tuple[int, str, str]]:
    """Of all steps: step, sample and text."""
    return [
        (int(path.stem.removeprefix("step_")), rollout["sample_id"], rollout["text"])
        for path in sorted((run_dir / "rollouts").glob("*.jsonl"))
        for rollout in map(json.loads, path.read_text().splitlines())
    ]


def test_adapters_in_zero2_resume_bit_for_bit(
    mixed: Path, single: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """2 steps against 1 + restart + 1. Fresh adapters change nothing: the first loss is that of the model without."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"

    def adapted(out: Path) -> list[str]:
        settings = [item for item in sft(mixed, tiny_qwen2_5_vl, out) if not item.startswith(("model.freeze", "optim"))]
        return [*settings, "model.lora.rank=4", "optim.lr=1e-2", "parallel=zero2"]

    start(launcher("zero2", 29641), *adapted(straight))
    shutil.copytree(straight / "checkpoints" / "step_000001", resumed / "checkpoints" / "step_000001")
    start(launcher("zero2", 29642), *adapted(resumed))
    losses = [record["loss"] for record in records(straight)]
    assert losses[0] == pytest.approx(records(single)[0]["loss"], abs=2e-5) and losses[1] != losses[0]
    folder = Path("checkpoints") / "step_000002" / "backend"
    files = sorted((straight / folder).glob("*.safetensors"))
    assert len(files) == 3  # weights, and the optimiser's state of either rank
    for path in files:
        ours, theirs = load_file(path), load_file(resumed / folder / path.name)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items()), path.name
    base, exported = (load_file(path / "model.safetensors") for path in (tiny_qwen2_5_vl, straight / "model"))
    changed = {name for name, value in base.items() if not torch.equal(value, exported[name])}
    assert exported.keys() == base.keys() and changed and not any("visual" in name for name in changed)


def test_packed_weights_agree_on_two_processes(mixed: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    for name, mode in (("one", "none"), ("two", "ddp")):
        settings = [
            item for item in sft(mixed, tiny_qwen2_5_vl, tmp_path / name) if not item.startswith("model.freeze")
        ]
        packed = ["model.lora.rank=4", "model.lora.quantize=nf4", f"parallel={mode}"]
        start(launcher(mode, 29671 if mode == "ddp" else 0), *settings, *packed)
    one, two = ([record["loss"] for record in records(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=2e-5) and one[1] != one[0]
