"""From a checked configuration to a finished run."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.table import Table

from visd.config import RunConfig
from visd.observe.tracker import Tracker
from visd.parallel import lifeline
from visd.train.check import check_run
from visd.train.loop import train
from visd.train.publish import check_publishing, publish
from visd.train.rehearse import due, rehearse
from visd.train.run import Run, set_up, union
from visd.train.sft import train_sft
from visd.train.state import export_model, resume

log = logging.getLogger(__name__)


def run_stage(config: RunConfig) -> int:
    """Set up, resume, train, export; returns the exit status."""
    with ExitStack() as closing:
        try:
            check_publishing(config.checkpoint)
            run = set_up(config)
            closing.callback(run.backend.close)
            if run.judge is not None:
                closing.callback(run.judge.close)
            return stage(run, closing)
        except BaseException as error:
            lifeline.leave(error)  # first of all: other processes may be waiting, and closing may take long
            raise


def stage(run: Run, closing: ExitStack) -> int:
    """What `run_stage` does with a run that stands."""
    config = run.config
    if run.backend.is_main:
        print_parameters(run)
        if run.key_frames is not None:
            log.warning(run.key_frames.told)
    if due(config, run.backend.device):
        run.rehearsal = rehearse(run)
    if config.check_only:
        return check_run(run)
    resume(run)
    title = f"{run_name(config)} {config.stage}"
    run.tracker = Tracker(run.dir, config.tracking, config.train.steps, run.step, run.backend.is_main, title)
    closing.callback(run.tracker.close)
    run.tracker.config(config)
    (train_sft if config.stage == "sft" else train)(run)
    finished = run.step == config.train.steps
    if finished and config.checkpoint.export != "never":
        export_model(run, run.dir / "model")
    run.tracker.summary(summary(run, run.tracker.wall_seconds))
    if finished and config.checkpoint.push_to_hub and run.backend.is_main:
        publish(config.checkpoint, run.dir / "model")
    return 0


def run_name(config: RunConfig) -> str:
    """The method's name, as its file is called."""
    return str(config.method["_target_"]).split(".")[-2]


def summary(run: Run, wall_seconds: float) -> dict[str, Any]:
    """`summary.json` of a training run, over all ranks; `wall_seconds` over all its starts. All ranks call it."""
    backend = run.backend
    dropped, reduced = union(backend, run.drops.by_id), union(backend, run.reduced)
    videos = {media.path for sample in run.sampler.samples for media in sample.media if media.kind == "video"}
    return {
        "method": run_name(run.config),
        "stage": run.config.stage,
        "seed": run.config.run.seed,
        "steps": run.step,
        "finished": run.step == run.config.train.steps,
        "wall_seconds": round(wall_seconds, 1),
        "videos_decoded": sum(backend.all_gather_object(run.videos_decoded)),
        "videos_total": len(videos),
        "drops": dict(Counter(dropped.values())),
        "dropped_ids": sorted(dropped),
        "reduced": dict(Counter(reduced.values())),
        "shared_prefix": run.policy.shares_prefixes,
        "unshared": run.unshared,
        **({"rehearsal": dataclasses.asdict(run.rehearsal)} if run.rehearsal is not None else {}),
        **({"key_frames": dataclasses.asdict(run.key_frames)} if run.key_frames is not None else {}),
        **({"best": dataclasses.asdict(run.best)} if run.best is not None else {}),
        "processes": backend.world_size,
        "parallel": run.config.parallel.mode,
    }


def print_parameters(run: Run) -> None:
    """What is trained and what is frozen."""
    table = Table(title=f"parameters of {run.config.model.path}")
    for name in ("part", "trained", "frozen"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for row in run.policy.parameter_table():
        table.add_row(row.part, f"{row.trained:,}", f"{row.frozen:,}")
    Console(file=sys.stderr).print(table)
