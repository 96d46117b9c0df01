"""What a step costs by formula against what torch counts, and what the meter makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models import FAMILIES, MEDIA_FAMILIES, tiny_hf, tiny_policy, video_prompt
from tests.runs import small_config, small_run
from visd.config import ConfigError, RunConfig
from visd.policy import head
from visd.policy.batch import Row
from visd.policy.costs import Architecture, Tower, bundle_work, from_config, sequence
from visd.policy.policy import Policy
from visd.policy.vision import encode_media
from visd.train.launch import run_stage
from visd.train.meter import Meter, measured_bandwidth, measured_flops
from visd.types import Rollout, RolloutGroup, Sample

SIZES = Architecture(8, 2, 2, 1, 4, 12, 50, tied=True)
ANSWERS = (5, 1, 3)


def costs(family: str) -> Architecture:
    return from_config(tiny_hf(family).config, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoders_operations_are_those_that_torch_counts(family: str) -> None:
    """Eager attention computes every pair, masked or not; experts one after the other compute those that are used."""
    hf, length = tiny_hf(family), 64
    hf.set_attn_implementation("eager")
    hf.config.get_text_config()._experts_implementation = "eager"
    sizes = costs(family)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hf(torch.arange(length)[None] % 80)
    own = sizes.forward_flops(length, length**2) + sizes.head_flops(length)
    assert own == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoders_parameters_are_those_it_has(family: str) -> None:
    hf = tiny_hf(family)
    tower = [p for n, p in hf.named_parameters() if ".visual." in n or "vision_tower" in n or "projector" in n]
    assert costs(family).language == sum(p.numel() for p in hf.parameters()) - sum(p.numel() for p in tower)


@pytest.mark.parametrize("family", MEDIA_FAMILIES)
def test_a_towers_operations_are_those_that_torch_counts(family: str) -> None:
    policy = tiny_policy(family)
    assert policy.tower is not None
    for module in policy.tower:
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")
    prompt = video_prompt(policy.family, "a", 3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encode_media(policy.family, list(policy.tower), [prompt.vision], [prompt.mm_token_type_ids])
    tower = costs(family).tower
    assert tower is not None
    assert tower.prompt_flops(prompt) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_backward_costs_two_forwards_and_without_weights_one() -> None:
    found = []
    for frozen in (False, True):
        hf = tiny_hf("text")
        hf.set_attn_implementation("eager")
        if frozen:
            hf.requires_grad_(False)
        embeds = hf.get_input_embeddings()(torch.arange(64)[None]).detach().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            hf(inputs_embeds=embeds).logits.sum().backward()
        sizes = costs("text")
        once = sizes.forward_flops(64, 64**2) + sizes.head_flops(64)
        found.append(counter.get_total_flops() / once)
    pairs = sizes.forward_flops(0, 64**2) / once  # attention has a gradient on both sides of its products, anyhow
    assert found == pytest.approx([3.0, 2.0 + pairs], rel=0.01)


def test_pairs_are_those_of_prompts_that_run_once() -> None:
    assert bundle_work(5, (3, 3)) == sequence(5, 3, 2, shared=True)
    assert bundle_work(5, (3,)) == sequence(8, 0, 1, shared=False)
    assert bundle_work(5, (3, 1)) == (9, 15 + (6 + 7 + 8) + 6)


def test_what_has_no_sizes_is_said() -> None:
    with pytest.raises(ConfigError, match=r"costs of 'odd' are not known .*num_attention_heads"):
        text = SimpleNamespace(hidden_size=8, num_hidden_layers=1)
        from_config(SimpleNamespace(get_text_config=lambda: text), "odd")
    with pytest.raises(ConfigError, match=r"vision tower of 'x' \(other\) are not known"):
        other = tiny_hf("qwen3_vl").config
        other.model_type = "other"
        from_config(other, "x")


def meter_of(
    policy: Policy, *, here: bool = True, module: bool = True, tflops: float = 1.0, gbps: float = 1e6
) -> Meter:
    config = RunConfig()
    config.tracking.peak_tflops, config.tracking.peak_gbps = tflops, gbps
    return Meter(config, policy, here, module)


def group_of(policy: Policy, name: str = "a") -> RolloutGroup:
    prompt = video_prompt(policy.family, name, 2)
    rollouts = [Rollout(tuple(range(7, 7 + n)), (0.0,) * n, "", ("",) * n, "eos", 0, 0) for n in ANSWERS]
    sample = Sample(name, "", "", (), (), None)  # type: ignore[arg-type]
    return RolloutGroup(sample, prompt, tuple(rollouts))


def rows_of(policy: Policy, group: RolloutGroup) -> list[Row]:
    (feature,) = policy.encode([group.prompt])
    return [Row(group.prompt, rollout.token_ids, feature) for rollout in group.rollouts]


def taken(meter: Meter, **seconds: float) -> dict[str, float]:
    return meter.take({"step": 10.0, **seconds}).values()


def test_floors_of_a_step_by_hand() -> None:
    """1 TFLOP/s: a floor in picoseconds is the number of operations."""
    policy = tiny_policy("qwen3_vl")
    group, sizes, meter = group_of(policy), costs("qwen3_vl"), meter_of(policy)
    prompt, answers = len(group.prompt), sum(ANSWERS)
    rows = rows_of(policy, group)
    meter.sampled([group])
    meter.scored("teacher", policy, rows, passes=2)
    meter.trained(policy, rows)
    found = taken(meter, rollout=2.0, teacher=1.0, update=4.0)
    scored = sizes.forward_flops(*bundle_work(prompt, ANSWERS)) + sizes.head_flops(answers)
    assert sizes.tower is not None
    tower = sizes.tower.prompt_flops(group.prompt)
    decoded = sizes.forward_flops(*bundle_work(prompt, [n - 1 for n in ANSWERS])) + sizes.head_flops(answers - 3 + 1)
    assert found["meter/rollout_floor"] == pytest.approx((decoded + tower) / 1e12)
    assert found["meter/teacher_floor"] == pytest.approx(2 * scored / 1e12)
    assert found["meter/update_floor"] == pytest.approx(3 * scored / 1e12)
    assert found["meter/update_over_floor"] == pytest.approx(4.0 / (3 * scored / 1e12))
    assert found["meter/update_mfu"] == pytest.approx(3 * scored / 1e12 / 4.0)
    assert found["meter/mfu"] == pytest.approx((decoded + tower + 5 * scored) / 1e12 / 10.0)
    assert found["meter/tokens_per_second"] == pytest.approx((3 * prompt + answers) / 10.0)
    assert found["meter/outside_share"] == pytest.approx(0.3)
    assert found["meter/peak_memory_gib"] > 0.05
    assert set(taken(meter)) == {"meter/peak_memory_gib"}, "the next step starts anew"


def test_a_slow_memory_raises_the_floor_of_sampling_alone() -> None:
    policy = tiny_policy("text")
    group, sizes = group_of(policy), costs("text")
    meter = meter_of(policy, gbps=1e-3)
    meter.sampled([group])
    meter.trained(policy, rows_of(policy, group))
    found = taken(meter, rollout=1.0, update=1.0)
    decoded = [n - 1 for n in ANSWERS]
    keys = 2 * sizes.layers * sizes.kv_heads * sizes.head_size
    cached = sum(len(group.prompt) + t for n in decoded for t in range(1, n + 1))
    read = 4 * (max(decoded) * (sizes.active + sizes.head) + cached * keys) / 1e6
    prefill = sizes.forward_flops(*bundle_work(len(group.prompt), ())) + sizes.head_flops(1)
    assert found["meter/rollout_floor"] == pytest.approx(read + prefill / 1e12)
    assert found["meter/update_floor"] < 1e-3 * read
    assert found["meter/rollout_mfu"] < 1e-3, "what is read is no operation"


def test_recomputing_belongs_to_the_floor_and_not_to_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("text")
    rows, sizes = rows_of(policy, group_of(policy)), costs("text")
    positions, seen = bundle_work(len(rows[0].prompt), ANSWERS)
    body, pairs = sizes.forward_flops(positions, seen), sizes.forward_flops(0, seen)
    last = sizes.head_flops(sum(ANSWERS))
    floors, used = [], []
    for elements, again in ((head.CHUNK_ELEMENTS, False), (1, False), (1, True)):
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
        meter = meter_of(policy)
        meter._config.gradient_checkpointing = again
        meter.trained(policy, rows)
        found = taken(meter, update=1.0)
        floors.append(found["meter/update_floor"] * 1e12)
        used.append(found["meter/update_mfu"] * 1e12)
    assert floors == pytest.approx([3 * body + 3 * last, 3 * body + 4 * last, 4 * body + 4 * last])
    assert used == pytest.approx([3 * body + 3 * last] * 3)
    policy.model.requires_grad_(False)
    meter.trained(policy, rows)
    assert taken(meter, update=1.0)["meter/update_mfu"] * 1e12 == pytest.approx(2 * body + 2 * last + pairs)


def test_media_are_encoded_once_a_step_or_by_every_pass_of_a_trained_tower() -> None:
    tower = costs("qwen2_5_vl").tower
    assert tower is not None
    floors = {}
    for name, inside, here, module in (
        ("once", False, True, True), ("engine's own", False, True, False), ("servers", False, False, False),
        ("trained", True, True, True),
    ):  # fmt: skip
        policy = tiny_policy("qwen2_5_vl", tower_inside=inside)
        group, meter = group_of(policy), meter_of(policy, here=here, module=module)
        rows = [Row(group.prompt, r.token_ids, None) for r in group.rollouts]
        meter.sampled([group])
        meter.scored("teacher", policy, rows)
        meter.trained(policy, rows)
        found = taken(meter, rollout=1.0, teacher=1.0, update=1.0)
        floors[name] = [found.get(f"meter/{phase}_floor", 0.0) * 1e12 for phase in ("rollout", "teacher", "update")]
    bare = [a - tower.prompt_flops(group.prompt) * n for a, n in zip(floors["once"], (1, 0, 0), strict=True)]
    for name, times in (("engine's own", (1, 1, 0)), ("trained", (1, 1, 3))):
        expected = [b + n * tower.prompt_flops(group.prompt) for b, n in zip(bare, times, strict=True)]
        assert floors[name] == pytest.approx(expected), name
    assert floors["servers"] == pytest.approx([0.0, floors["engine's own"][1], bare[2]])


def test_adapters_save_the_gradients_of_weights() -> None:
    policy = tiny_policy("text")
    rows = rows_of(policy, group_of(policy))
    floors = []
    for scale in (None, 2.0):
        policy.adapter_scale = scale
        meter = meter_of(policy)
        meter.trained(policy, rows)
        floors.append(taken(meter, update=1.0)["meter/update_floor"])
    _, seen = bundle_work(len(rows[0].prompt), ANSWERS)
    pairs = 3 * costs("text").forward_flops(0, seen) / 1e12
    assert floors[1] - pairs == pytest.approx((floors[0] - pairs) * 2 / 3)


def test_a_peak_is_measured_where_none_is_given() -> None:
    policy = tiny_policy("text")
    peak = meter_of(policy, tflops=0.0, gbps=0.0).peak
    assert 1e8 < peak.flops < 1e14 and 1e7 < peak.bandwidth < 1e13
    given = meter_of(policy, tflops=3.0, gbps=2.0).peak
    assert (given.flops, given.bandwidth) == (3e12, 2e9)
    cpu = torch.device("cpu")
    assert measured_flops(cpu, torch.float32) > 1e8 and measured_bandwidth(cpu) > 1e7


def test_a_tower_of_nothing_costs_nothing() -> None:
    tower = Tower(2, 8, 16, False, 8, 14, 2, 2, 0, 2)
    assert tower.flops(0, 4) == 0.0
    assert replace(SIZES, tower=tower).forward_flops(0, 0) == 0.0


def test_a_runs_log_says_it_all(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    settings = ("objective.kl_weight=0.1", "train.steps=1", "checkpoint.export=never", "tracking.peak_tflops=0.1")
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path, *settings)) == 0
    (found,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for phase in ("rollout", "teacher", "update"):
        floor, seconds = found[f"meter/{phase}_floor"], found[f"time/{phase}"]
        assert floor > 0 and found[f"meter/{phase}_over_floor"] == pytest.approx(seconds / floor)
        assert 0 < found[f"meter/{phase}_mfu"] <= floor / seconds * 1.001
    assert 0 < found["meter/mfu"] < 1 and 0 <= found["meter/outside_share"] < 1
    assert found["meter/tokens_per_second"] > found["rollout/tokens"] / found["time/step"]
    assert found["meter/peak_memory_gib"] > 0.1


def test_an_unknown_model_has_no_floors_and_a_warning(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    run.policy.model.hf.config.model_type = "other"
    group = group_of(tiny_policy("qwen2_5_vl"))
    run.meter.sampled([group])
    run.meter.trained(run.policy, [Row(group.prompt, (7, 8))])
    assert set(taken(run.meter)) == {"meter/peak_memory_gib"}
    assert caplog.text.count("meter: no floors") == 1
