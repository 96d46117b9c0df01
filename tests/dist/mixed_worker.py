"""One rank of the mixed steps in every mode: `python -m tests.dist.mixed_worker ROOT MODELS OUT`."""

from __future__ import annotations

import faulthandler
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.dist.mixed import SPLITS, TOWERS, made_run, take_step
from tests.models import FAMILIES, tiny_policy, video_prompt
from visd.parallel import distributed
from visd.parallel.base import Backend
from visd.parallel.fsdp2 import FSDP2
from visd.parallel.place import Place
from visd.policy import head
from visd.policy.batch import Row
from visd.policy.policy import Forward, Policy
from visd.types import ScoreNeeds

MODES = ("ddp", "fsdp2", "zero2", "zero3")
TRIED = [(mode, tower) for tower in TOWERS for mode in MODES if (mode, tower) != ("zero2", "trained")]
LIMIT = 90
"""Seconds that the steps of one mode and tower may take; whoever waits longer says where, and ends."""


def check_family(family: str, group: Backend) -> None:
    """Of two ranks one has text and one a video: the trained towers of all families stay in step."""
    single, policy = tiny_policy(family, tower_inside=True), tiny_policy(family, tower_inside=True)
    rows = [
        Row(video_prompt(tiny_policy("text").family, "text"), (7, 8, 9)),
        Row(video_prompt(policy.family, "video"), (8, 9)),
    ]
    for row in rows:
        loss(single, row, None).backward()
    norm = nn.utils.get_total_norm([p.grad for p in single.model.parameters() if p.grad is not None]).item()
    backend = FSDP2(Place(group.rank, group.world_size, group.local_rank), group.device, bf16=False)
    backend.setup(policy.model, lambda parameters: torch.optim.SGD(parameters), 1e9)
    for turn in range(2):
        backend.backward(loss(policy, rows[(group.rank + turn) % 2], backend.forward), last=True)
        assert backend.step(0.0).grad_norm == pytest.approx(norm, rel=1e-5), family


def loss(policy: Policy, row: Row, forward: Forward | None) -> Tensor:
    return -policy.score([row], temperature=1.0, needs=ScoreNeeds(sampled=True), forward=forward).logp.sum()


def main(root: Path, models: Path, out: Path) -> None:
    head.CHUNK_ELEMENTS = 1 << 13  # so that heads whose weights are cut up compute some positions again, too
    for mode, tower in TRIED:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        run = made_run(tower, mode, root, models)
        distributed.join = lambda *_: None  # type: ignore[assignment]  # all modes share the first one's group
        outcomes = {name: asdict(take_step(run, split[run.backend.rank])) for name, split in SPLITS.items()}
        if run.backend.is_main:
            (out / f"{mode} {tower}.json").write_text(json.dumps(outcomes))
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    for family in FAMILIES:
        check_family(family, run.backend)
    if run.backend.is_main:
        (out / "families.json").write_text(json.dumps(FAMILIES))
    faulthandler.cancel_dump_traceback_later()
    run.backend.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
