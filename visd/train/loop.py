"""The algorithm, top to bottom.

    sample -> prompts -> rollouts -> rewards -> judge -> advantages -> teacher -> update -> EMA

The loop never asks which method runs, how many processes there are or who samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from visd.judge.base import Judge
from visd.objective.advantage import group_advantages, returns_of
from visd.policy.oom import memory_of
from visd.reward.combine import score
from visd.seeding import derive_seed
from visd.train.ahead import begin, take
from visd.train.dynamic import varied_groups
from visd.train.record import record_step
from visd.train.run import Run
from visd.train.services import StepServices
from visd.train.sharing import confirm
from visd.train.state import save_if_due
from visd.train.teach import old_scores, reference_scores, teacher_scores
from visd.train.update import update_policy
from visd.train.validate import validate_if_due
from visd.types import Prompt, RolloutGroup, Sample

log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Run the remaining steps, then write the final checkpoint."""
    last = last_step(run)
    while run.step < last:
        step = run.step
        judge = run.judge if run.method.wants_judge(step) else None
        early = judge if run.config.objective.dynamic_sampling == "off" else None
        groups = step_rollouts(run, step, early)
        sample_ahead(run, step + 1)
        groups = rewarded(run, groups, step)
        groups, left_out = varied_groups(run, groups, step, partial(rewarded_rollouts, run, step))
        with run.backend.together(), run.timer.phase("judge"):
            groups = with_reports(judge, groups)
        groups = [with_advantages(run, group) for group in groups]
        with run.timer.phase("prepare"):
            confirm(run, groups)
            groups = list(run.method.prepare(groups, StepServices(run)))
        run.engine.rest()
        with run.timer.phase("teacher"):
            teacher = teacher_scores(run, groups, step)
            reference = reference_scores(run, groups)
            old = old_scores(run, groups)
        with run.timer.phase("update"):
            update = update_policy(run, groups, teacher, reference, step, old)
        with run.timer.phase("ema"):
            run.policy_version += update.made
            if update.made and run.teacher is not None and run.method.active(step):
                run.teacher.update(run.backend, run.policy_version, update.made)
        run.forget_features()
        run.step += 1
        update.metrics.update(validate_if_due(run))
        record_step(run, groups, update, [with_advantages(run, group) for group in left_out])
        last = stop_asked(run, last)
        save_if_due(run, last)


def last_step(run: Run) -> int:
    """The step after which this start ends."""
    train = run.config.train
    return min(train.steps, run.step + train.stop_after) if train.stop_after else train.steps


def stop_asked(run: Run, last: int) -> int:
    """The step after which this start ends: this one, where `run.stop_file` asks for it, or else `last`.

    All ranks call it. A run that ends with this step anyway leaves the file, so that who put it there can tell.
    """
    name, backend = run.config.run.stop_file, run.backend
    if not name or run.step == last:
        return last
    asked = backend.is_main and Path(name).exists()
    if not backend.all_reduce(torch.tensor(float(asked)), "max").item():
        return last
    if backend.is_main:
        Path(name).unlink()
        log.info("stopping after step %d, as %s asks; start again to go on", run.step, name)
    return run.step


def step_rollouts(run: Run, step: int, judge: Judge | None) -> list[RolloutGroup]:
    """The step's rollouts: those sampled ahead, else new ones by the newest weights; none where the method wants none."""
    groups = take(run, step)
    if groups is not None:
        return groups
    pairs = run.step_prompts(step)
    if not run.method.wants_rollouts(step):
        return [RolloutGroup(sample, prompt, ()) for sample, prompt in pairs]
    run.sync_engine()
    with run.timer.phase("rollout"):
        return sample_rollouts(run, pairs, step, judge)


def sample_ahead(run: Run, step: int) -> None:
    """With `rollout.max_staleness=1`, have the rollouts of a step begun by the weights before the update of the one before it."""
    if not run.config.rollout.max_staleness or step == run.config.train.steps or not run.method.wants_rollouts(step):
        return
    pairs = run.step_prompts(step)
    run.sync_engine()
    begin(run, step, pairs, partial(sample_rollouts, run, pairs, step, version=run.policy_version))


def rewarded_rollouts(run: Run, step: int, pairs: Sequence[tuple[Sample, Prompt]]) -> list[RolloutGroup]:
    """Rollouts of further prompts with their verifiable rewards."""
    with run.timer.phase("rollout"):
        groups = sample_rollouts(run, pairs, step)
    return rewarded(run, groups, step)


def sample_rollouts(
    run: Run,
    pairs: Sequence[tuple[Sample, Prompt]],
    step: int,
    judge: Judge | None = None,
    version: int | None = None,
) -> list[RolloutGroup]:
    """G rollouts a prompt; the seed of each depends on run, step, sample and generation, not on who samples it.

    Args:
        judge: is given each batch as soon as it is there, so that it can judge while the next one is generated.
        version: of the engine's weights; default: of the policy's, which may change while another thread samples.
    """
    sampling = run.sampling
    version = run.policy_version if version is None else version
    size = run.config.rollout.batch_prompts or max(len(pairs), 1)
    groups: list[RolloutGroup] = []
    with run.sampling_weights():
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            seeds = [
                [derive_seed("rollout", run.config.run.seed, step, sample.id, g) for g in range(sampling.n)]
                for sample, _ in part
            ]
            with memory_of("rollout", (sample.id for sample, _ in part)):
                rollouts = run.engine.generate([prompt for _, prompt in part], sampling, seeds, version)
            batch = [RolloutGroup(s, p, r) for (s, p), r in zip(part, rollouts, strict=True)]
            run.meter.sampled(batch)
            if judge is not None:
                judge.submit(batch)
            groups += batch
    return groups


def rewarded(run: Run, groups: Sequence[RolloutGroup], step: int) -> list[RolloutGroup]:
    """The groups with their verifiable rewards."""
    with run.backend.together(), run.timer.phase("reward"):
        return [with_rewards(run, group, step) for group in groups]


def with_rewards(run: Run, group: RolloutGroup, step: int) -> RolloutGroup:
    """Verifiable rewards of every rollout."""
    progress = step / run.config.train.steps
    rewards = (score(group.sample, rollout.own_text, run.config.reward, progress) for rollout in group.rollouts)
    return replace(group, rewards=tuple(rewards))


def with_reports(judge: Judge | None, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The judge's report of every rollout, or none at all."""
    if judge is None:
        return list(groups)
    return [replace(group, reports=reports) for group, reports in zip(groups, judge.judge(groups), strict=True)]


def with_advantages(run: Run, group: RolloutGroup) -> RolloutGroup:
    """Direction: how each rollout compares with its group."""
    objective = run.config.objective
    returns = returns_of(group, objective, run.config.rollout.max_new_tokens)
    return replace(group, advantages=group_advantages(returns, objective))
