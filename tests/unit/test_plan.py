"""A plan's parameters, operations and bytes are those of real models and real runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.plan import SIZES, Cluster, Data, main, memory_of, phases_of, plan, trained_parameters
from scripts.plan_model import PUBLISHED, architecture, plannable
from tests.models import tiny_hf
from tests.runs import small_run
from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import ConfigError, RunConfig, load
from visd.policy.costs import Architecture, from_config, sequence
from visd.train.check import forecast
from visd.train.forecast import GIB

REAL = ("visd_qwen2_5_vl_7b", "visd_qwen3_vl_8b", "visd_qwen3_vl_4b_lora_1gpu", "grpo_video_r1", "text_qwen3_4b")
QWEN25, QWEN3 = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"], PUBLISHED["Qwen/Qwen3-VL-8B-Instruct"]


def config_of(*overrides: str) -> RunConfig:
    return load(compose_config(["experiment=visd_qwen2_5_vl_7b", *overrides]))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "text"])
def test_parameters_are_those_of_the_model(family: str) -> None:
    hf = tiny_hf(family)
    sizes = from_config(hf.config, "tiny")
    every = sum(p.numel() for p in hf.parameters())
    tower = [p for name, p in hf.named_parameters() if ".visual." in name]
    assert sizes.language == every - sum(p.numel() for p in tower)
    if sizes.tower is not None:  # norms, biases and tables of positions are left out
        assert sizes.tower.parameters == pytest.approx(sum(p.numel() for p in tower), rel=0.1)


@pytest.mark.parametrize(("sizes", "body", "head"), [(QWEN25, 6.525e9, 0.545e9), (QWEN3, 6.946e9, 0.622e9)])
def test_published_models_have_their_published_size(sizes: Architecture, body: float, head: float) -> None:
    assert sizes.body == pytest.approx(body, rel=1e-3) and sizes.head == pytest.approx(head, rel=1e-3)


def test_operations_are_those_that_torch_counts() -> None:
    """Without a causal mask in the count: torch counts every pair."""
    hf, length = tiny_hf("text"), 96
    hf.set_attn_implementation("eager")  # whose products torch counts on every device
    sizes = from_config(hf.config, "tiny")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hf(torch.arange(length)[None] % 90)
    own = sizes.forward_flops(length, length * length) + sizes.head_flops(length)
    assert own == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_pairs_of_a_group_with_and_without_sharing() -> None:
    """Counted one by one: every token sees itself and all before it in its own sequence."""
    prompt, own, group = 5, 3, 4
    alone = sum(range(1, prompt + own + 1))
    assert sequence(prompt, own, group, False) == (group * (prompt + own), group * alone)
    shared = sum(range(1, prompt + 1)) + group * sum(range(prompt + 1, prompt + own + 1))
    assert sequence(prompt, own, group, True) == (prompt + group * own, shared)
    assert sequence(prompt, own, 1, True) == sequence(prompt, own, 1, False)


@pytest.mark.parametrize(
    ("sizes", "prompt", "visual", "petaflop"),
    [(QWEN25, 1280, 1024, 0.46), (QWEN25, 8492, 8192, 1.11), (QWEN25, 16684, 16384, 1.98), (QWEN3, 8492, 8192, 1.24)],
)
def test_floor_of_a_prompt(sizes: Architecture, prompt: int, visual: int, petaflop: float) -> None:
    """Eight answers of 512 tokens, 600 privileged ones, full recomputation: worked out by hand elsewhere."""
    config = config_of("rollout.n=8", "train.prompts_per_step=1")
    data = Data(visual=visual, cell=256, text=prompt - visual, response=512, privileged=600)
    cluster = Cluster(utilisation=1.0)
    phases = phases_of(config, sizes, data, cluster, gpus=1, prompts=1)
    operations = (phases.encode + phases.teacher + phases.update) * cluster.gpu.flops
    assert operations / 1e15 == pytest.approx(petaflop, rel=0.07)


@pytest.mark.parametrize("more", [(), ("model.lora.rank=4",)])
def test_memory_is_what_a_real_run_forecasts(
    more: tuple[str, ...], small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=visd", "model.dtype=bfloat16", *more)
    found = forecast(run)
    sizes = architecture(str(tiny_qwen2_5_vl))
    assert trained_parameters(run.config, sizes) == sum(
        p.numel() for p in run.policy.model.parameters() if p.requires_grad
    )
    planned = memory_of(run.config, sizes, Data(), gpus=1, prompts=2)
    assert planned.resident == pytest.approx(found.total, rel=0.05)


def test_sharding_divides_and_more_cards_are_never_slower() -> None:
    config, sizes = config_of("train.prompts_per_step=1024"), QWEN25
    plans = [plan(config, sizes, Data(), Cluster(), gpus) for gpus in SIZES]
    assert all(a.memory.resident > b.memory.resident for a, b in pairwise(plans))
    assert all(a.phases.total > b.phases.total for a, b in pairwise(plans))
    few = plan(config_of("train.prompts_per_step=16"), sizes, Data(), Cluster(), 1024)
    assert few.prompts == 1024
    full = replace(config.parallel, mode="ddp")
    whole = [memory_of(replace(config, parallel=full), sizes, Data(), gpus, 1024).resident for gpus in (8, 64)]
    assert whole[0] == whole[1] > 100 * GIB


def test_the_bottleneck_is_named() -> None:
    config, sizes = config_of(), QWEN25
    assert plan(config, sizes, Data(visual=16384, cell=256), Cluster(network=1e15), 8).phases.bottleneck == "update"
    assert plan(config, sizes, Data(), Cluster(network=1e8), 64).phases.bottleneck == "communication"
    answers = config_of("rollout.n=1", "train.prompts_per_step=8")
    long = Data(visual=64, text=32, response=4096, privileged=0)
    assert plan(answers, sizes, long, Cluster(network=1e15), 8).phases.bottleneck == "decode"


@pytest.mark.parametrize("experiment", REAL)
def test_every_real_experiment_can_be_planned(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = "1" if experiment.endswith("1gpu") else "8"
    assert main(["--gpu", "h100", "--gpus", gpus, f"experiment={experiment}"]) == 0
    printed = capsys.readouterr().out
    row = [cell.strip() for cell in printed.splitlines() if f"│ {gpus.rjust(4)} " in cell or f" {gpus} │" in cell]
    assert row and "yes" in row[0], printed


@pytest.mark.parametrize("experiment", REAL)
def test_the_readme_says_what_is_planned(experiment: str) -> None:
    data = {
        "visd_qwen3_vl_8b": Data(8192, 256, 300, 512, 600),
        "text_qwen3_4b": Data(0, 128, 256, 2048, 100),
        "visd_qwen2_5_vl_7b": Data(),
    }.get(experiment, Data(visual=1024))
    config = load(compose_config([f"experiment={experiment}"]))
    gpus = 1 if experiment.endswith("1gpu") else 8
    found = plan(config, architecture(config.model.path), data, Cluster(), gpus)
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{experiment}`"))
    memory, seconds = (float(cell) for cell in row.strip("| ").split("|")[-2:])
    assert memory == pytest.approx(found.memory.peak / GIB, abs=0.06)
    assert seconds == pytest.approx(found.phases.total, abs=0.06)


def test_what_cannot_be_planned_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"has experts"):
        plannable(tiny_hf("qwen3_vl_moe").config, "moe")
    with pytest.raises(ConfigError, match=r"does not know the vision tower of 'internvl'"):
        plannable(tiny_hf("internvl").config, "vl")
    assert main(["experiment=visd_qwen2_5_vl_7b", f"model.path={ROOT / 'nowhere'}"]) == 2
    assert "has no config to plan with" in capsys.readouterr().err
