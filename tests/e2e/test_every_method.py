"""Every config in configs/method trains on video and text: frozen parts stay, metrics are finite, a resumed run is the same."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import small_config
from tests.tree import ROOT
from visd.train.launch import run_stage

METHODS = sorted(path.stem for path in (ROOT / "configs/method").glob("*.yaml"))
WITHOUT_TEACHER = {"grpo"}
SETTINGS = (
    "data.train=[train.jsonl]", "train.steps=3", "train.prompts_per_step=3", "rollout.max_new_tokens=32",
    "checkpoint.every=1", "checkpoint.keep=0", "checkpoint.export=never", "tracking.dump_every=0",
    "reward.weights={accuracy: 1.0, format: 1.0}",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, and the texts the warm model has seen, so that some of its answers are right."""
    root = tmp_path_factory.mktemp("methods")
    shutil.copytree(small_world / "videos", root / "videos")
    video = (small_world / "train.jsonl").read_text().splitlines()[:2]
    text = sorted((small_world / "text_sft_train.jsonl").read_text().splitlines(), key=len)[:4]
    (root / "train.jsonl").write_text("\n".join([*video, *text]) + "\n")
    return root


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step_{step:06d}" / "backend"
    return {
        name: value for path in sorted(folder.glob("weights*.safetensors")) for name, value in load_file(path).items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_resumes(method: str, world: Path, warm_model: Path, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    settings = (*SETTINGS, f"method={method}", "model.freeze=[vision]")
    assert run_stage(small_config(world, warm_model, straight, *settings)) == 0
    metrics = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3]
    wrong = {n: v for m in metrics for n, v in m.items() if isinstance(v, float) and not math.isfinite(v)}
    assert not wrong
    if method not in WITHOUT_TEACHER:
        assert any(m.get("weight/teacher_share", 0) > 0 for m in metrics), "no rollout had a teacher"

    before, after = load_file(warm_model / "model.safetensors"), weights(straight, 3)
    frozen = [name for name in before if "visual." in name]
    assert frozen and not [n for n in after if "visual." in n], "the frozen tower is not among what is trained"
    assert any(not torch.equal(after[n], weights(straight, 1)[n]) for n in after), "nothing was learnt"

    shutil.copytree(straight / "checkpoints/step_000002", resumed / "checkpoints/step_000002")
    assert run_stage(small_config(world, warm_model, resumed, *settings)) == 0
    again = weights(resumed, 3)
    assert again.keys() == after.keys() and all(torch.equal(again[n], after[n]) for n in after)
    last = json.loads((resumed / "metrics.jsonl").read_text().splitlines()[-1])
    drop = ("time/", "media/")
    assert {k: v for k, v in last.items() if not k.startswith(drop)} == {
        k: v for k, v in metrics[-1].items() if not k.startswith(drop)
    }
