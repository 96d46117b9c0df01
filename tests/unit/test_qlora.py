"""QLoRA: which weights are packed, that everybody computes with the same ones, and that runs and exports hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.runs import (
    assert_bit_equal,
    assert_same_gradients,
    capture_gradients,
    groups_with_advantages,
    small_config,
    small_run,
)
from tests.unit.test_lora import move, scores
from visd.config import ConfigError, RewardSection
from visd.policy import lora
from visd.policy.quantize import STORED, bytes_of, is_quantized, numbers_of, plain_weight
from visd.rollout.weights import plain_weights
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.check import forecast
from visd.train.launch import run_stage
from visd.train.run import Run
from visd.train.state import export_model
from visd.train.update import update_policy
from visd.types import Rewards, Sample

LORA = ("model.lora.rank=4", "model.lora.alpha=8")
QLORA = (*LORA, "model.lora.quantize=nf4")


@pytest.fixture
def packed(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> Run:
    return small_run(small_world, tiny_qwen2_5_vl, tmp_path / "packed", *QLORA, "method=grpo")


def quantized(run: Run) -> dict[str, nn.Parameter]:
    return {name: p for name, p in run.policy.model.named_parameters() if is_quantized(p)}


@pytest.fixture
def twin(packed: Run, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> Run:
    """The same adapters on whole weights that are what the packed ones stand for."""
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path / "twin", *LORA, "method=grpo")
    own = dict(run.policy.model.named_parameters())
    with torch.no_grad():
        for name, parameter in packed.policy.model.named_parameters():
            own[name].copy_(plain_weight(parameter))
    return run


def test_linear_layers_of_the_language_model_are_packed_and_nothing_else(packed: Run) -> None:
    found = quantized(packed)
    assert len(found) == 7 * 4 and all(".language_model.layers." in name and lora.is_adapted(name) for name in found)
    assert not any(p.requires_grad for p in found.values())
    numbers, stored = sum(map(numbers_of, found.values())), sum(map(bytes_of, found.values()))
    assert stored / numbers == pytest.approx(STORED, rel=0.01)
    table = {row.part: row for row in packed.policy.parameter_table()}
    rest = sum(p.numel() for n, p in packed.policy.model.named_parameters() if not p.requires_grad and n not in found)
    assert table["language"].frozen == numbers + rest, "numbers are counted, not the bytes that hold them"


def test_the_forecast_counts_packed_weights_by_their_bytes(packed: Run, twin: Run) -> None:
    numbers = sum(map(numbers_of, quantized(packed).values()))
    saved = forecast(twin).weights - forecast(packed).weights
    assert saved == pytest.approx(numbers * (4 - STORED), rel=1e-3)


def test_scores_and_gradients_are_those_of_the_weights_it_stands_for(packed: Run, twin: Run) -> None:
    for run in (packed, twin):
        move(run)
    groups = groups_with_advantages(twin)
    torch.testing.assert_close(scores(packed, groups), scores(twin, groups), atol=1e-5, rtol=1e-5)
    kept = []
    for run in (packed, twin):
        kept.append(capture_gradients(run))
        update_policy(run, groups, {}, {}, 0)
    assert len(kept[0]) == 2 * 7 * 4
    assert_same_gradients(*kept, relative=1e-5)


def test_what_leaves_is_what_the_forward_computes_with(packed: Run, twin: Run, tmp_path: Path) -> None:
    """To another engine: every packed weight, adapted or not. To a folder: plain weights that transformers loads."""
    for run in (packed, twin):
        move(run)
    sent, expected = (dict(plain_weights(run.policy, run.backend)) for run in (packed, twin))
    assert sent.keys() == expected.keys()
    for name, value in sent.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)
    export_model(packed, tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.arange(30)[None]
    with packed.backend.whole_weights():
        own = packed.policy.model.hf(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, own, atol=1e-4, rtol=1e-4)


def test_layers_without_adapter_are_packed_and_sent_too(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *QLORA, "model.lora.targets=[q_proj]")
    names = {name.removeprefix("hf.") for name in quantized(run)}
    assert len(names) == 7 * 4
    assert {name.replace(".base_layer.", ".") for name in names} <= dict(plain_weights(run.policy, run.backend)).keys()


def test_adapters_learn_the_base_stays_and_a_run_goes_on_bit_for_bit(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a teacher that is the base with averaged adapters, on videos and text; what is right is made up."""

    def by_chance(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
        right = derive_seed(text) % 2
        return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))

    monkeypatch.setattr(loop, "score", by_chance)
    settings = (
        *QLORA,
        "method=visd",
        "teacher.weights=ema",
        "data.train=[train.jsonl,text_train.jsonl]",
        "train.steps=4",
    )
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, whole, *settings)) == 0
    for _ in range(2):
        assert run_stage(small_config(small_world, tiny_qwen2_5_vl, parts, *settings, "train.stop_after=2")) == 0
    one, other = (
        AutoModelForImageTextToText.from_pretrained(folder / "model").state_dict() for folder in (whole, parts)
    )
    assert_bit_equal(one, other)
    start = small_run(small_world, tiny_qwen2_5_vl, tmp_path / "start", *QLORA)
    with torch.no_grad():
        before = dict(plain_weights(start.policy, start.backend))
    moved = [name for name, value in before.items() if not torch.equal(one[name], value)]
    assert len(moved) == 7 * 4 and all(name.endswith("_proj.weight") for name in moved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("model.lora.quantize=nf4",), r"model\.lora\.quantize.*model\.lora\.rank"),
        ((*QLORA, "parallel=zero3"), r"model\.lora\.quantize: zero3.*take none or ddp"),
        ((*LORA, "model.lora.quantize=int3"), r"model\.lora\.quantize.*nf4"),
    ],
)
def test_what_is_refused(
    settings: tuple[str, ...], message: str, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings)


def test_without_bitsandbytes_it_says_what_to_install(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(ConfigError, match=r"model\.lora\.quantize: needs bitsandbytes; pip install 'visd\[qlora\]'"):
        small_run(small_world, tiny_qwen2_5_vl, tmp_path, *QLORA)
