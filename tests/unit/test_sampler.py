"""The order of samples: permutations, no repeats inside a step, the same for any number of ranks."""

from __future__ import annotations

from collections import Counter

import pytest

from visd.data.sampler import StepSampler
from visd.types import Answer, Sample, VisdError


def samples(count: int) -> list[Sample]:
    return [Sample(f"s{i}", "test", "which", (), (), Answer("word", "red")) for i in range(count)]


def ids(batch: list[Sample]) -> list[str]:
    return [sample.id for sample in batch]


@pytest.mark.parametrize(("count", "per_step"), [(12, 4), (10, 4), (7, 5), (5, 5), (9, 1), (11, 7)])
def test_epochs_are_permutations_and_steps_have_no_repeats(count: int, per_step: int) -> None:
    sampler = StepSampler(samples(count), per_step, seed=3)
    steps = [ids(sampler.batch(step)) for step in range(3 * count)]
    assert all(len(set(step)) == per_step for step in steps)
    stream = [name for step in steps for name in step]
    for epoch in range(3 * per_step):
        assert len(set(stream[epoch * count : (epoch + 1) * count])) == count
    assert set(Counter(stream).values()) == {3 * per_step}


def test_pure_function_of_seed_and_step() -> None:
    everything = samples(10)
    forward = StepSampler(everything, 4, seed=1)
    expected = [ids(forward.batch(step)) for step in range(20)]
    fresh = StepSampler(everything, 4, seed=1)
    assert [ids(fresh.batch(step)) for step in reversed(range(20))] == expected[::-1]
    assert ids(StepSampler(everything, 4, seed=1).batch(17)) == expected[17]
    assert [ids(StepSampler(everything, 4, seed=2).batch(step)) for step in range(20)] != expected
    assert expected[0:5] != expected[5:10]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_batch_evenly(world_size: int) -> None:
    sampler = StepSampler(samples(10), 4, seed=0)
    for step in range(6):
        shares = [sampler.local(step, rank, world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {4 // world_size}
        assert [sample for share in shares for sample in share] == sampler.batch(step)


def test_refusals_name_the_field() -> None:
    with pytest.raises(VisdError, match=r"prompts_per_step = 8 is more than the 7 training samples"):
        StepSampler(samples(7), 8, seed=0)
    with pytest.raises(VisdError, match="not a multiple of the 3 ranks"):
        StepSampler(samples(10), 4, seed=0).local(0, 0, 3)
