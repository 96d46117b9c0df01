"""Which groups of a step are trained on, and in which of its updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from visd.objective.advantage import group_advantages, returns_of
from visd.train.run import Run
from visd.types import Prompt, RolloutGroup, Sample

SampleGroups = Callable[[Sequence[tuple[Sample, Prompt]]], list[RolloutGroup]]
"""Prompts to groups with rewards."""


def varied_groups(
    run: Run, groups: Sequence[RolloutGroup], step: int, sample: SampleGroups
) -> tuple[list[RolloutGroup], list[RolloutGroup]]:
    """Dynamic sampling (DAPO, arXiv 2503.14476): the groups whose returns differ, and those left out, of this rank.

    `drop` leaves groups without variance out of the step and of its denominators. `refill` samples further prompts,
    from an order of their own that is a function of the seed and the step, until `train.prompts_per_step` groups are
    there over all ranks or `objective.refill_rounds` batches have been sampled; what is too much is left out, last
    first, so that the groups of a step do not depend on the number of ranks. All ranks call it.
    """
    mode = run.config.objective.dynamic_sampling
    if mode == "off":
        return list(groups), []
    kept: list[RolloutGroup] = []
    dropped: list[RolloutGroup] = []
    for group in groups:
        (kept if varies(run, group) else dropped).append(group)
    if mode == "drop":
        return kept, dropped
    rank, ranks = run.backend.rank, run.backend.world_size
    taken = {sample.id for sample in run.sampler.batch(step)}
    for round_ in range(run.config.objective.refill_rounds):
        missing = run.config.train.prompts_per_step - total(run, len(kept))
        if missing <= 0:
            break
        index = step * run.config.objective.refill_rounds + round_
        fresh = [s for s in run.refill_sampler.local(index, rank, ranks) if s.id not in taken]
        run.builder.prefetch(s.question() for s in fresh)
        new = sample(run.prompts(fresh))
        useful = {group.sample.id for group in new if varies(run, group)}
        chosen = first_of(run, [s.id for s in run.refill_sampler.batch(index)], useful, missing)
        kept += [group for group in new if group.sample.id in chosen]
        dropped += [group for group in new if group.sample.id not in chosen]
        taken |= {s.id for s in run.refill_sampler.batch(index)}
    return kept, dropped


def varies(run: Run, group: RolloutGroup) -> bool:
    """Whether any rollout of the group would get an advantage."""
    section = run.config.objective
    return any(group_advantages(returns_of(group, section, run.config.rollout.max_new_tokens), section))


def first_of(run: Run, order: Sequence[str], useful: set[str], count: int) -> set[str]:
    """The first `count` ids of `order` that are useful on any rank."""
    everywhere = set().union(*run.backend.all_gather_object(useful))
    return set([id_ for id_ in order if id_ in everywhere][:count])


def total(run: Run, number: int) -> int:
    """Sum over ranks."""
    return int(run.backend.all_reduce(torch.tensor(float(number))))


def mini_batches(run: Run, groups: Sequence[RolloutGroup]) -> list[list[RolloutGroup]]:
    """The groups of each of the step's updates, of this rank. All ranks call it.

    Groups are dealt out by the order of their sample ids over all ranks, so that an update has the same groups whatever
    the number of ranks; its last may be smaller by one than its first.
    """
    count = run.config.objective.mini_batches
    if count == 1:
        return [list(groups)]
    ids = run.backend.all_gather_object([group.sample.id for group in groups])
    place = {id_: n for n, id_ in enumerate(sorted(id_ for of_rank in ids for id_ in of_rank))}
    return [[group for group in groups if place[group.sample.id] % count == part] for part in range(count)]
