"""One rank of updates over random rows: `python -m tests.dist.plans_worker ROOT MODELS PLANS`.

How many rows a rank has, how long they are and what media they hold are its own draw, so that ranks plan different numbers of
micro-batches, or none.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from tests.dist.mixed import made_run
from visd.train import update
from visd.train.plan import Plan
from visd.train.run import Run
from visd.types import Rewards, Rollout, RolloutGroup

LIMIT = 60
"""Seconds that ten plans may take; whoever waits longer says where, and ends."""


def drawn_groups(run: Run, numbers: np.random.Generator) -> list[RolloutGroup]:
    """No to three prompts with one to four answers each; some answers have no advantage, so that nothing is learnt from them."""
    samples = list(run.sampler.samples)
    chosen = numbers.choice(len(samples), size=int(numbers.integers(0, 4)), replace=False)
    groups = []
    for sample, prompt in run.prompts([samples[i] for i in chosen]):
        lengths = numbers.integers(1, 25, int(numbers.integers(1, 5)))
        ids = [tuple(numbers.integers(10, 100, length).tolist()) for length in lengths]
        rollouts = tuple(Rollout(i, (0.0,) * len(i), "", ("",) * len(i), "length", 0, 0) for i in ids)
        advantages = tuple(numbers.choice((-1.0, 0.0, 0.5), len(ids)).tolist())
        rewards = (Rewards(0.0, {}, correct=False, accuracy=0.0),) * len(ids)
        groups.append(RolloutGroup(sample, prompt, rollouts, rewards, advantages=advantages))
    return groups


def collectives() -> int:
    """That this process has begun, over all groups."""
    return sum(group._get_sequence_number_for_group() for group in dist.distributed_c10d._world.pg_map)


def main(root: Path, models: Path, plans: int) -> None:
    # Nobody sampled these answers, so engine and trainer need not agree on them.
    run = made_run("trained", "fsdp2", root, models, "train.prompts_per_step=4", "rollout.max_mismatch=0")
    planned: list[int] = []  # micro-batches of the last update
    plan_rows = update.plan_rows

    def counted(*given: Any) -> Plan:
        plan = plan_rows(*given)
        planned.append(len(plan.batches))
        return plan

    update.plan_rows = counted
    uneven = 0
    for plan in range(plans):
        if plan % 10 == 0:
            faulthandler.dump_traceback_later(LIMIT, exit=True)
        run.config.train.micro_batch_tokens = (120, 160, 400)[plan % 3]
        groups = drawn_groups(run, np.random.default_rng([plan, run.backend.rank]))
        update.update_policy(run, groups, {}, {}, 0)
        run.policy.forget_features()
        uneven += len(set(run.backend.all_gather_object(planned.pop()))) > 1
        begun = collectives()
        assert len(set(run.backend.all_gather_object(begun))) == 1, f"plan {plan}"
    assert uneven > plans / 2
    faulthandler.cancel_dump_traceback_later()
    run.backend.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
