"""A run's state to and from its checkpoints, and its model as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from visd.config import ConfigError
from visd.policy.policy import export
from visd.teacher.weights import TeacherWeights
from visd.train.ahead import read_answers, write_answers
from visd.train.checkpoint import CheckpointStore, TrainState, Writer
from visd.train.run import Best, Run
from visd.types import VisdError

log = logging.getLogger(__name__)

MAY_CHANGE = (
    "check_only", "run.dir", "run.resume", "run.stop_file", "checkpoint", "train.steps", "train.stop_after", "train.threads", "train.rehearse", "train.max_mention_rate", "train.max_copied_share",
    "data.root", "data.validation", "data.test", "data.max_dropped", "data.frames",
    "prompt.video.timeout", "parallel", "tracking", "validation", "rollout.batch_prompts", "rollout.max_mismatch",
    *(f"rollout.engine.{name}" for name in (
        "memory_share", "cache_gb", "eager", "sleep", "urls", "timeout", "start_wait", "requests", "address",
    )),
    *(f"judge.{name}" for name in (
        "base_url", "api_key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "retries",
        "backoff", "budget_calls", "budget_tokens", "budget_usd", "usd_per_million_prompt", "usd_per_million_completion",
        "window", "max_failure_rate", "max_disagreement", "cache", "cache_dir",
    )),
)  # fmt: skip
"""Fields that a resumed run may set differently; all others decide what it computes."""


def save_checkpoint(run: Run) -> Path:
    """Write the state after `run.step` steps. All ranks call it."""
    writers: dict[str, Writer] = {"backend": run.backend.save_training_state}
    for name, weights in teachers(run).items():
        writers[name] = partial(weights.save, run.backend)
    if run.ahead.pending is not None:
        run.ahead.wait(run.backend)
        writers["ahead"] = partial(write_answers, run.ahead.pending.groups.result(), run.backend.rank)
    if run.config.checkpoint.export == "all":
        state = run.backend.full_state()
        writers["model"] = lambda folder: write_model(run, state, folder)
    return store_of(run).write(
        TrainState(
            step=run.step,
            policy_version=run.policy_version,
            identity=identity(run),
            method=run.method.state_dict(),
            extra={
                "drops": gathered_drops(run),
                "judge": gathered_judges(run),
                "reduced": run.backend.all_gather_object(run.reduced),
                "best": dataclasses.asdict(run.best) if run.best is not None else None,
                "leaks": run.leaks.state_dict(),
            },
        ),
        writers,
    )


def save_if_due(run: Run, last: int) -> None:
    """Write a checkpoint every `checkpoint.every` steps and after step `last`, where this start ends."""
    every = run.config.checkpoint.every
    if run.step == last or (every and run.step % every == 0):
        save_checkpoint(run)


def resume(run: Run) -> None:
    """Go on from a checkpoint as `run.resume` says. All ranks call it.

    Raises:
        ConfigError: `never` with a folder that holds steps, or a path without a checkpoint.
        VisdError: a damaged checkpoint, or one of another run.
    """
    store, wanted = store_of(run), run.config.run.resume
    path = store.latest() if wanted == "auto" else None
    if wanted == "never" and store.latest() is not None:
        raise ConfigError(
            f"run.resume: never, but {store.folder} holds checkpoints; choose another run.dir or run.resume=auto."
        )
    if wanted not in ("auto", "never"):
        path = Path(wanted)
        if not path.is_dir():
            raise ConfigError(f"run.resume: {wanted!r} is neither auto, never nor a checkpoint folder.")
    if path is not None:
        restore(run, store, path)
        log.info("resumed from %s after %d steps", path, run.step)
    store.clean(after=run.step)


def restore(run: Run, store: CheckpointStore, path: Path) -> None:
    """Put a checkpoint's state in place."""
    state = store.load(path, identity(run))
    run.backend.load_training_state(path / "backend")
    for name, weights in teachers(run).items():
        weights.load(run.backend, path / name)
    run.method.load_state_dict(state.method)
    run.step, run.policy_version = state.step, state.policy_version
    run.drops.by_id.update(own_share(run, state.extra["drops"]))
    if run.judge is not None and (judges := state.extra.get("judge")):  # the identity says it is the same judge
        run.judge.load_state_dicts(judges)
    run.reduced.update(own_share(run, state.extra["reduced"]))
    run.leaks.load_state_dict(state.extra["leaks"])
    run.best = Best(**best) if (best := state.extra.get("best")) else None
    if (path / "ahead").is_dir():
        run.ahead.stored = read_answers(path / "ahead")


def own_share(run: Run, saved: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What this rank noted, of one entry a rank; where another number of ranks goes on, the main one has all notes."""
    if len(saved) == run.backend.world_size:
        return dict(saved[run.backend.rank])
    return {key: value for notes in saved for key, value in notes.items()} if run.backend.is_main else {}


def teachers(run: Run) -> dict[str, TeacherWeights]:
    """Weights besides the student's, by the folder they are saved in."""
    named = {"teacher": run.teacher, "reference": run.reference}
    return {name: weights for name, weights in named.items() if weights is not None}


def gathered_drops(run: Run) -> list[dict[str, str]]:
    """Dropped sample ids and reasons, one entry a rank."""
    return run.backend.all_gather_object(run.drops.by_id)


def gathered_judges(run: Run) -> list[dict[str, Any]]:
    """What each rank's judge must remember."""
    return run.backend.all_gather_object(run.judge.state_dict() if run.judge is not None else {})


def store_of(run: Run) -> CheckpointStore:
    return CheckpointStore(run.dir, run.config.checkpoint.keep, run.backend)


def identity(run: Run) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this run's."""
    fields = {
        name: value
        for name, value in flat(dataclasses.asdict(run.config)).items()
        if not any(name == may or name.startswith(may + ".") for may in MAY_CHANGE)
    }
    return {"model": run.backend.fingerprint(), **fields}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to values."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def export_model(run: Run, folder: Path) -> None:
    """Write the trained model as an ordinary Hugging Face folder, whole or not at all. All ranks call it."""
    state = run.backend.full_state()
    if run.backend.is_main:
        part = folder.with_name(f".{folder.name}.part")
        if part.exists():
            shutil.rmtree(part)
        write_model(run, state, part)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    run.backend.barrier()


def write_model(run: Run, state: dict[str, Tensor], folder: Path) -> None:
    """Weights, configs, tokenizer, processor and chat template; the main rank alone has the whole weights."""
    if not run.backend.is_main:
        return
    try:
        export(run.policy, state, folder)
        run.processor.save(folder)
    except OSError as error:
        raise VisdError(f"the model could not be written to {folder} ({error}); free space and resume.") from error
