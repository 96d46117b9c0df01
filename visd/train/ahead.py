"""One step ahead: answers that are sampled before the update of the step before theirs (`rollout.max_staleness=1`).

    step k: take the answers of k | sync | begin those of k + 1 | rewards, teacher, update of k | step k + 1: take ...

An engine elsewhere is asked in a thread, so that it samples while the trainer works; an engine in this process samples at
once. New weights go to the engine only when it owes no answers, so that all answers of a step are of one version. What has
been sampled and not yet learnt from is part of a checkpoint.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visd import strict_json
from visd.observe.accumulate import Metrics
from visd.observe.files import read_jsonl
from visd.parallel import Backend
from visd.policy.oom import memory_of
from visd.rollout.background import in_background
from visd.seeding import derive_seed
from visd.train.sharing import sampled_logp
from visd.types import DroppedSample, Prompt, Rollout, RolloutGroup, Sample, VisdError

if TYPE_CHECKING:
    from visd.train.run import Run

Pairs = Sequence[tuple[Sample, Prompt]]

PROBED, PROBE_TOKENS = 2, 32
"""Prompts of a rank, and tokens of the answer to each, by which engine and trainer are compared."""


@dataclass
class Pending:
    """Answers that the engine has been asked for."""

    step: int
    pairs: Pairs
    groups: Future[list[RolloutGroup]]
    seconds: float = 0.0  # that sampling them took, in a thread


@dataclass
class Ahead:
    """What is sampled, or being sampled, for the step to come."""

    pending: Pending | None = None
    stored: dict[str, tuple[Rollout, ...]] | None = None  # from a checkpoint, by sample id over all ranks
    agreement: Metrics = field(default_factory=Metrics)  # of engine and trainer with the newest weights

    @property
    def prompts(self) -> list[Prompt]:
        """Of this rank's answers."""
        return [prompt for _, prompt in self.pending.pairs] if self.pending is not None else []

    def wait(self, backend: Backend) -> None:
        """Until the engine owes no answers. All ranks call it, and all stop where one has got none."""
        if self.pending is not None:
            with backend.together():
                self.pending.groups.result()

    def take_agreement(self) -> Metrics:
        """Once; empty where nothing was compared."""
        found, self.agreement = self.agreement, Metrics()
        return found


def begin(run: Run, step: int, pairs: Pairs, sample: Callable[[], list[RolloutGroup]]) -> None:
    """Compare the engine with the trainer, whose weights it has been given, then have it sample. All ranks call it."""
    run.ahead.agreement = agreement(run, step, pairs[:PROBED])
    pending = run.ahead.pending = Pending(step, pairs, Future())
    if not run.engine.elsewhere:
        with run.timer.phase("rollout"):
            pending.groups.set_result(sample())
        return

    def timed() -> list[RolloutGroup]:
        began = time.perf_counter()
        groups = sample()
        pending.seconds = time.perf_counter() - began
        return groups

    pending.groups = in_background(timed)


def take(run: Run, step: int) -> list[RolloutGroup] | None:
    """This rank's groups of a step where they were sampled ahead. All ranks call it.

    Raises:
        VisdError: the engine failed, here or on another rank, or answers are too old.
    """
    if run.ahead.stored is not None:
        groups = with_prompts(run, run.step_prompts(step), run.ahead.stored)
        run.ahead.stored = None
    elif run.ahead.pending is not None:
        with run.timer.phase("rollout"):
            run.ahead.wait(run.backend)
        pending, run.ahead.pending = run.ahead.pending, None
        if run.engine.elsewhere:
            run.timer.add("ahead", pending.seconds)
        groups = pending.groups.result()
    else:
        return None
    with run.backend.together():
        check_versions(run, groups)
    return groups


def with_prompts(run: Run, pairs: Pairs, stored: dict[str, tuple[Rollout, ...]]) -> list[RolloutGroup]:
    """Stored answers beside their prompts; a sample that was left out when they were sampled is so again."""
    groups = []
    for sample, prompt in pairs:
        if sample.id in stored:
            groups.append(RolloutGroup(sample, prompt, stored[sample.id]))
        else:
            why = "the checkpoint holds no answers, since its prompt could not be made before"
            run.drops.add(DroppedSample(sample.id, "not_sampled", why))
    return groups


def check_versions(run: Run, groups: Sequence[RolloutGroup]) -> None:
    """Refuse answers of several versions of the weights, or of older ones than those before the last step's updates."""
    oldest = run.policy_version - run.config.rollout.max_staleness * run.config.objective.mini_batches
    versions = sorted({rollout.policy_version for group in groups for rollout in group.rollouts})
    if len(versions) > 1 or not all(oldest <= version <= run.policy_version for version in versions):
        raise VisdError(
            f"step {run.step + 1}: answers are of the weights of versions {versions}, rollout.max_staleness wants one "
            f"from {oldest} to {run.policy_version}. Resume from a checkpoint before this step."
        )


def agreement(run: Run, step: int, pairs: Pairs) -> Metrics:
    """`engine/logp_diff_...` of a short answer to each prompt, by the weights that engine and trainer have now.

    The step's own answers, which are compared where nothing is sampled ahead, come when the trainer's weights have changed.
    """
    prompts = [prompt for _, prompt in pairs]
    short = replace(run.sampling, n=1, max_new_tokens=min(PROBE_TOKENS, run.sampling.max_new_tokens))
    seeds = [[derive_seed("agreement", run.config.run.seed, step, prompt.sample_id)] for prompt in prompts]
    with (
        run.sampling_weights(),
        run.backend.together(),
        memory_of("rollout", (prompt.sample_id for prompt in prompts)),
    ):
        asked = run.engine.generate(prompts, short, seeds, run.policy_version)
    answers = [only for (only,) in asked]
    features = run.policy.encode(prompts)
    rows = [run.policy.row(*one) for one in zip(prompts, answers, features, strict=True)]
    temperature, budget = run.config.rollout.temperature, run.config.train.micro_batch_tokens
    with run.backend.whole_weights():
        scores = sampled_logp(run.policy, rows, temperature, budget, run.policy.shares_prefixes)
    metrics = Metrics()
    for answer, logp in zip(answers, scores, strict=True):
        gaps = [abs(a - b) for a, b in zip(logp.double().tolist(), answer.logp, strict=True)]
        metrics.mean("engine/logp_diff_mean", answer.of_own(gaps))
        metrics.max("engine/logp_diff_max", *answer.of_own(gaps))
        metrics.mean("engine/logp_diff_first", answer.of_own(gaps)[:1])
    return metrics


# ------------------------------------------------------------------------------------------------ checkpoints


def write_answers(groups: Sequence[RolloutGroup], rank: int, folder: Path) -> None:
    """A line of JSON for each of a rank's groups that is still to be learnt from."""
    lines = [
        strict_json.dumps({"sample": group.sample.id, "rollouts": [dataclasses.asdict(r) for r in group.rollouts]})
        for group in groups
    ]
    (folder / f"rank_{rank:05d}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_answers(folder: Path) -> dict[str, tuple[Rollout, ...]]:
    """The answers of all ranks by sample id; they belong to samples, so that any number of ranks may go on with them."""
    records = [record for path in sorted(folder.glob("rank_*.jsonl")) for record in read_jsonl(path)]
    return {record["sample"]: tuple(rollout_of(fields) for fields in record["rollouts"]) for record in records}


def rollout_of(fields: dict[str, Any]) -> Rollout:
    """A rollout from JSON, whose lists are tuples."""
    known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Rollout(**known)
