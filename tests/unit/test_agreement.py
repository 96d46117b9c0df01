"""Engine and trainer agree, or the run stops; and what they differ by can be corrected for."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models import tiny_policy, video_prompt
from tests.runs import (
    assert_same_gradients,
    capture_gradients,
    groups_with_advantages,
    small_config,
    small_run,
    weights,
)
from visd.config import ConfigError
from visd.parallel.place import Place
from visd.parallel.single import SingleProcess
from visd.policy import lora
from visd.rollout.agreement import check_not_banned, check_prompt_ids
from visd.train.update import update_policy
from visd.types import RolloutGroup, VisdError


class Numbers:
    """A tokenizer whose tokens are their ids."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"t{i}" for i in ids]


def shifted(groups: list[RolloutGroup], by: float) -> list[RolloutGroup]:
    """The groups as an engine would give them whose log-probabilities are off by `by`."""

    def moved(group: RolloutGroup) -> RolloutGroup:
        rollouts = tuple(replace(r, logp=tuple(value + by for value in r.logp)) for r in group.rollouts)
        return replace(group, rollouts=rollouts)

    return [moved(group) for group in groups]


def test_other_prompt_ids_are_shown_where_they_differ() -> None:
    prompt = video_prompt(tiny_policy("text").family, "clip", grids=12)
    ids = prompt.input_ids.tolist()
    check_prompt_ids(prompt, ids, Numbers())
    with pytest.raises(VisdError) as error:
        check_prompt_ids(prompt, [*ids[:8], 77, *ids[8:]], Numbers())
    said = str(error.value)
    assert "'clip'" in said and f"has {len(ids) + 1} tokens, the trainer's {len(ids)}" in said
    assert "from token 8 on" in said and "t77" in said.split("engine:")[1] and "t77" not in said.split("engine:")[0]
    assert "t12 t13" in said  # what stands before the difference
    with pytest.raises(VisdError, match=f"from token {len(ids) - 1} on"):
        check_prompt_ids(prompt, ids[:-1], Numbers())


def test_a_banned_id_is_refused() -> None:
    check_not_banned("clip", [1, 2, 3], (90, 91))
    with pytest.raises(VisdError, match=r"'clip'.*banned id 91"):
        check_not_banned("clip", [1, 91, 3], (90, 91))


@pytest.mark.parametrize(
    ("gap", "cap", "factor"), [(0.5, 2.0, math.exp(0.5)), (-0.5, 2.0, math.exp(-0.5)), (0.5, 1.2, 1.2)]
)
def test_truncated_importance_scales_every_token(
    gap: float, cap: float, factor: float, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """With p of the trainer e^gap times that of the engine, gradients are min(e^gap, cap) times the plain ones."""
    settings = ("method=grpo", "rollout.max_mismatch=0")
    plain = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings)
    corrected = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings, f"objective.importance_cap={cap}")
    groups = groups_with_advantages(plain)
    expected, found = capture_gradients(plain), capture_gradients(corrected)
    update_policy(plain, groups, {}, {}, 0)
    values = update_policy(corrected, shifted(groups, -gap), {}, {}, 0).metrics.values()
    assert_same_gradients({n: g * factor for n, g in expected.items()}, found, relative=1e-5)
    assert values["engine/importance"] == pytest.approx(factor, rel=1e-4)
    assert values["engine/importance_cut"] == float(factor == cap)
    assert values["engine/logp_diff_first"] == pytest.approx(abs(gap), abs=1e-4)


@pytest.mark.parametrize("by", [0.3, math.nan])
def test_a_mismatch_stops_before_the_weights_change(
    by: float, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    groups, before = groups_with_advantages(run), weights(run)
    with pytest.raises(VisdError, match=r"differ by .* nats on the mean, rollout\.max_mismatch allows 0\.2"):
        update_policy(run, shifted(groups, by), {}, {}, 0)
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())
    run.config.rollout.max_mismatch = 0.0
    update_policy(run, shifted(groups, by), {}, {}, 0)
    assert any(not torch.equal(value, before[name]) for name, value in weights(run).items())


def test_correcting_twice_is_refused(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective\.importance_cap: old_logp=engine"):
        small_config(small_world, tiny_qwen2_5_vl, tmp_path, "objective.importance_cap=2", "objective.old_logp=engine")


def test_streamed_weights_are_the_merged_ones(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "model.lora.rank=4")
    with torch.no_grad():
        for parameter in run.policy.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    stream = run.backend.whole_tensors(run.policy.changing_names())
    found = dict(lora.merged_stream(stream, 8.0))
    expected = lora.merged(run.backend.full_state(), 8.0)
    assert len(found) == 7 * 4  # the adapted layers of four blocks, and nothing frozen
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    broken = ((name, v) for name, v in run.backend.full_state().items() if not name.endswith(lora.B))
    with pytest.raises(VisdError, match="is not whole"):
        list(lora.merged_stream(broken, 8.0))


def test_only_named_tensors_are_streamed_in_order() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    backend = SingleProcess(Place(), torch.device("cpu"), False)
    backend.setup(module, None, 1.0)
    assert [name for name, _ in backend.whole_tensors({"1.bias", "0.weight"})] == ["0.weight", "1.bias"]
