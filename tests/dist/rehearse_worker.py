"""One rank of two steps with and without a rehearsal before them, in every mode: `python -m tests.dist.rehearse_worker WORLD MODEL OUT`."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

import torch
from torch import Tensor

from tests.dist.mixed_worker import LIMIT, MODES
from tests.runs import groups_with_advantages, small_config
from visd.parallel import distributed
from visd.parallel.storage import load_tensors
from visd.train.rehearse import rehearse
from visd.train.run import Run, set_up
from visd.train.teach import teacher_scores
from visd.train.update import update_policy


def two_steps(run: Run, folder: Path) -> dict[str, Tensor]:
    """This rank's weights, optimiser and gradient norms after them; the state is written into a new folder."""
    found = {}
    for step in range(2):
        groups = groups_with_advantages(run, step)
        update = update_policy(run, groups, teacher_scores(run, groups, step), {}, step)
        found[f"norm {step}"] = torch.tensor(update.metrics.values()["optim/grad_norm"])
        run.policy.forget_features()
    found |= {name: value.clone() for name, value in run.backend.local_shards().items()}
    run.backend.save_training_state(folder)
    run.backend.barrier()
    own = folder / f"optimizer_{run.backend.rank:05d}.safetensors"
    state = load_tensors(own if own.exists() else folder / "optimizer_00000.safetensors")
    return found | {f"optimizer {path}": value for path, value in state.items()}


def main(world: Path, model: Path, out: Path) -> None:
    for mode in MODES:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        plain, rehearsed = (two_steps(made(mode, world, model, out, first), out / f"{mode}_{first}") for first in (False, True))
        assert plain.keys() == rehearsed.keys() and any(path.endswith("exp_avg") for path in plain), mode
        assert any(bool(value.any()) for name, value in plain.items() if name.endswith("exp_avg")), mode
        different = [name for name, value in plain.items() if not torch.equal(value, rehearsed[name])]
        assert not different, (mode, different)


def made(mode: str, world: Path, model: Path, out: Path, first: bool) -> Run:
    settings = ("method=visd", f"parallel={mode}", "optim.lr=1e-3", "parallel.timeout_minutes=1.0")
    run = set_up(small_config(world, model, out, *settings))
    distributed.join = lambda *_: None  # type: ignore[assignment]  # all modes share the first one's group
    if first:
        done = rehearse(run)
        assert done is not None and len(set(run.backend.all_gather_object(done.peak))) == 1
    return run


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
    print("done", flush=True)
