"""Dynamic sampling and several updates a step: which groups are trained on, when, and by how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import assert_bit_equal, groups_with_advantages, made_up, small_run, weights
from visd.train.dynamic import mini_batches, varied_groups
from visd.train.run import Run
from visd.train.teach import old_scores
from visd.train.update import update_policy
from visd.types import Prompt, Rewards, Rollout, RolloutGroup, Sample


def scored(pairs: Sequence[tuple[Sample, Prompt]], flat: set[str]) -> list[RolloutGroup]:
    """Two answers a prompt, one of them right; both wrong for the samples in `flat`."""
    rollout = Rollout((1, 2), (0.0, 0.0), "x", ("x", ""), "eos", 0, 0)
    groups = []
    for sample, prompt in pairs:
        returns = (0.0, 0.0) if sample.id in flat else (1.0, 0.0)
        rewards = tuple(Rewards(r, {"accuracy": r}, bool(r), r) for r in returns)
        groups.append(RolloutGroup(sample, prompt, (rollout, rollout), rewards))
    return groups


@pytest.fixture
def run(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> Run:
    return small_run(
        small_world, tiny_qwen2_5_vl, tmp_path, "data.train=[text_train.jsonl]", "train.prompts_per_step=4",
        "objective=dapo",
    )  # fmt: skip


def ids(groups: Sequence[RolloutGroup]) -> list[str]:
    return [group.sample.id for group in groups]


def first_step(run: Run, flat: set[str]) -> tuple[list[RolloutGroup], list[RolloutGroup], list[list[str]]]:
    asked: list[list[str]] = []

    def sample(pairs: Sequence[tuple[Sample, Prompt]]) -> list[RolloutGroup]:
        asked.append([s.id for s, _ in pairs])
        return scored(pairs, flat)

    groups = scored(run.prompts(run.sampler.batch(0)), flat)
    return *varied_groups(run, groups, 0, sample), asked


def test_groups_without_variance_are_replaced_in_the_order_of_the_refill(run: Run) -> None:
    batch = [s.id for s in run.sampler.batch(0)]
    fresh = [s.id for s in run.refill_sampler.batch(0) if s.id not in batch]
    flat = {batch[1], batch[3], fresh[0]}
    kept, left_out, asked = first_step(run, flat)
    assert asked[0] == fresh, "a sample of the step is not sampled again"
    useful = [i for i in fresh if i not in flat]
    assert ids(kept)[:2] == [batch[0], batch[2]] and ids(kept)[2:] == useful[:2][: len(kept) - 2]
    assert len(set(ids(kept) + ids(left_out))) == len(kept) + len(left_out)
    assert set(ids(left_out)) >= {batch[1], batch[3], fresh[0]}, "what was sampled and not used is kept for the record"
    again = first_step(run, flat)
    assert ids(again[0]) == ids(kept), "a function of seed and step"


def test_it_goes_on_with_fewer_groups_after_the_last_round(run: Run) -> None:
    everything = {s.id for s in run.sampler.samples}
    kept, left_out, asked = first_step(run, everything)
    assert not kept and len(asked) == run.config.objective.refill_rounds
    assert len(left_out) == 4 + sum(map(len, asked))


def test_drop_samples_nothing_more_and_off_keeps_all(run: Run) -> None:
    batch = [s.id for s in run.sampler.batch(0)]
    run.config.objective.dynamic_sampling = "drop"
    kept, left_out, asked = first_step(run, {batch[1]})
    assert ids(kept) == [batch[0], *batch[2:]] and ids(left_out) == [batch[1]] and not asked
    run.config.objective.dynamic_sampling = "off"
    kept, left_out, _ = first_step(run, {batch[1]})
    assert ids(kept) == batch and not left_out


def test_a_length_penalty_makes_equal_rewards_differ(run: Run) -> None:
    """Variance is that of the returns which the group is compared by."""
    run.config.objective.dynamic_sampling = "drop"
    groups = scored(run.prompts(run.sampler.batch(0)), {s.id for s in run.sampler.samples})
    longest = run.config.rollout.max_new_tokens
    long = Rollout((1,) * longest, (0.0,) * longest, "x", ("x",) + ("",) * (longest - 1), "length", 0, 0)
    groups[0] = replace(groups[0], rollouts=(groups[0].rollouts[0], long))
    kept, _ = varied_groups(run, groups, 0, lambda pairs: [])
    assert ids(kept) == ids(groups[:1])


def test_two_updates_a_step_differ_from_one_and_the_second_has_ratios(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    settings = ("data.train=[text_train.jsonl]", "method=grpo", "objective.old_logp=start", "optim.lr=1e-3")
    one = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings)
    two = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings, "objective.mini_batches=2")
    groups = groups_with_advantages(one)
    parts = mini_batches(two, groups)
    assert sorted(i for part in parts for i in ids(part)) == sorted(ids(groups)) and [len(p) for p in parts] == [1, 1]
    assert [ids(part) for part in mini_batches(two, groups[::-1])] == [ids(part) for part in parts]
    first = update_policy(one, groups, {}, {}, 0, old_scores(one, groups))
    second = update_policy(two, groups, {}, {}, 0, old_scores(two, groups))
    assert (first.made, second.made) == (1, 2) and len(second.traces) == len(first.traces) == 8
    assert first.metrics.values()["policy/ratio_max"] == pytest.approx(1, abs=1e-6)
    assert second.metrics.values()["policy/ratio_max"] > 1.001
    with pytest.raises(AssertionError):
        assert_bit_equal(weights(one), weights(two))


def test_a_dropped_group_leaves_the_denominators(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """Training on one group of two is training on it alone."""
    found = []
    for alone in (True, False):
        run = small_run(
            small_world, tiny_qwen2_5_vl, tmp_path, "data.train=[text_train.jsonl]", "method=grpo",
            "objective.dynamic_sampling=drop",
        )  # fmt: skip
        groups = groups_with_advantages(run)
        right = tuple(Rewards(float(i % 2), {}, bool(i % 2), float(i % 2)) for i in range(4))
        wrong = tuple(Rewards(0.0, {}, False, 0.0) for _ in range(4))
        groups = [replace(groups[0], rewards=right, advantages=made_up(4, 0)), replace(groups[1], rewards=wrong)]
        kept, left_out = (groups[:1], groups[1:]) if alone else varied_groups(run, groups, 0, lambda pairs: [])
        assert ids(left_out) == ids(groups[1:])
        update_policy(run, kept, {}, {}, 0)
        found.append(weights(run))
    assert_bit_equal(*found)
