"""FSDP2 around a real model in the precision of GPUs, by one process; several are in test_backends and test_mixed_batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from tests.runs import groups_with_advantages, small_run, weights
from visd.parallel.fsdp2 import local
from visd.train.check import forecast
from visd.train.run import Run
from visd.train.teach import items_of
from visd.types import RolloutGroup, ScoreNeeds

pytestmark = pytest.mark.dist


def learn(run: Run, groups: list[RolloutGroup]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of all answers, and gradients of their sum, with recomputed activations as in training."""
    run.policy.set_training(True)
    rows = [item.row() for item in items_of(run, groups)]
    scores = run.policy.score(rows, temperature=1.0, needs=ScoreNeeds(sampled=True), forward=run.backend.forward)
    run.backend.backward(scores.logp.sum(), last=True)
    gradients = {n: local(p.grad).clone() for n, p in run.policy.model.named_parameters() if p.grad is not None}
    return scores.logp.detach(), gradients


def test_bfloat16_is_near_float32_and_weights_stay_float32(
    small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path
) -> None:
    common = ("model.freeze=[]", "model.gradient_checkpointing=true", "data.train=[train.jsonl,text_train.jsonl]")
    plain = small_run(small_world, tiny_qwen3_vl, tmp_path, *common)
    groups = groups_with_advantages(plain)
    expected, gradients = learn(plain, groups)
    run = small_run(small_world, tiny_qwen3_vl, tmp_path, *common, "parallel=fsdp2", "model.dtype=bfloat16")
    try:
        assert {w.dtype for w in weights(run).values()} == {torch.float32}
        found, own = learn(run, groups)
        assert (found - expected).abs().max() < 0.05
        assert own.keys() == gradients.keys() and {g.dtype for g in own.values()} == {torch.float32}
        a, b = (torch.cat([g.flatten() for g in part.values()]) for part in (own, gradients))
        assert torch.cosine_similarity(a, b, dim=0) > 0.999 and not torch.equal(a, b)
        with run.backend.whole_weights() as module:
            assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
            assert run.policy.score(
                [i.row() for i in items_of(run, groups)], temperature=1.0, needs=ScoreNeeds(sampled=True)
            )
    finally:
        run.backend.close()


def test_layers_and_a_trained_tower_are_units_and_ties_hold(
    small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen3_vl, tmp_path, "model.freeze=[]", "parallel=fsdp2")
    try:
        model = run.policy.model
        tower = model.hf.model.visual
        units = {module for module in model.modules() if isinstance(module, FSDPModule)}
        assert units == {model, tower, *tower.blocks, *tower.deepstack_merger_list, *model.text_model.layers}
        assert model.head.weight is model.hf.get_input_embeddings().weight
        run.backend.world_size = 2  # to forecast for
        memory, size = forecast(run), sum(4 * p.numel() for p in model.parameters())
        assert (memory.weights, memory.gradients, memory.optimizer) == (size / 2, size, size)
    finally:
        run.backend.close()
