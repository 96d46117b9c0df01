"""Training learns: a reward that can be earned goes up, and what is frozen stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import small_config
from visd.train.launch import run_stage


@pytest.mark.slow
def test_the_reward_of_the_format_goes_up(warm_model: Path, small_world: Path, tmp_path: Path) -> None:
    """From a model that has seen six traces; the text questions are new to it.

    Its teacher has not learnt to use privileged text, so it is given little weight: with lam 1 and eps 0.8 it would drown the
    reward. Every three steps are one epoch.
    """
    run_stage(
        small_config(
            small_world, warm_model, tmp_path, "method=visd", "data.train=[text_train.jsonl]", "train.steps=60",
            "train.prompts_per_step=8", "rollout.n=8", "rollout.max_new_tokens=40", "optim.lr=3e-4", "optim.eps=1e-8",
            "reward.weights={format: 1.0}", "optim.schedule=constant", "method.lam=0.5", "method.eps=0.2", "checkpoint.every=0",
        )
    )  # fmt: skip
    rewards = [json.loads(line)["reward/format"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-12:]) / 12 > sum(rewards[:6]) / 6 + 0.1, rewards

    before, after = (load_file(folder / "model.safetensors") for folder in (warm_model, tmp_path / "model"))
    assert before.keys() == after.keys()
    frozen = [name for name in before if "visual." in name]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not all(torch.equal(before[name], after[name]) for name in before if name not in frozen)
