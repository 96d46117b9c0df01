"""Checkpoints that are either whole or not there.

A checkpoint is written into `checkpoints/.tmp-step_NNNNNN`, its manifest last, and then renamed to
`checkpoints/step_NNNNNN`. A process killed at any moment leaves a folder that no start looks at and the next one removes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from visd.parallel.base import Backend
from visd.types import VisdError

log = logging.getLogger(__name__)

FORMAT = 2
MANIFEST = "manifest.json"
STATE = "state.json"
TEMPORARY = ".tmp-"
NAME = re.compile(r"step_(\d{6,})")
PACKAGES = ("torch", "transformers", "deepspeed", "visd")

Writer = Callable[[Path], None]
"""Writes this rank's files into a folder that exists; it may not communicate, so that no rank waits for a failed one."""


@dataclass
class TrainState:
    """What a run must know to go on, besides tensors. Everything is JSON."""

    step: int  # optimiser steps done
    policy_version: int  # optimiser steps that changed the weights
    identity: dict[str, Any]  # facts that must be the same to go on: the model's fingerprint, configuration fields
    counters: dict[str, int] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)  # Method.state_dict()
    extra: dict[str, Any] = field(default_factory=dict)  # whatever else the loop keeps


class CheckpointStore:
    """The checkpoints of one run folder, on a file system that all ranks see."""

    def __init__(self, run_dir: Path, keep: int, backend: Backend):
        """`keep`: newest checkpoints that stay; 0 keeps all."""
        self.folder = run_dir / "checkpoints"
        self.keep = keep
        self.backend = backend

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first; a folder without a manifest is reported and left alone."""
        found = []
        named = [path for path in self.folder.glob("step_*") if NAME.fullmatch(path.name)]
        for path in sorted(named, key=step_of):
            if (path / MANIFEST).is_file():
                found.append(path)
            else:
                log.warning("%s has no %s: it is no complete checkpoint and is ignored", path, MANIFEST)
        return found

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(self.all()), None)

    def clean(self, after: int) -> None:
        """Before a run goes on from step `after`: remove what a killed start left and checkpoints of later steps."""
        if self.backend.is_main:
            for path in self.folder.glob(f"{TEMPORARY}*"):
                shutil.rmtree(path)
            for path in self.all():
                if step_of(path) > after:
                    self._remove(path)
        self.backend.barrier()

    def write(self, state: TrainState, writers: Mapping[str, Writer]) -> Path:
        """Write a checkpoint, all ranks together, then remove the ones past `keep`.

        Args:
            writers: folder inside the checkpoint to who fills it, for example `backend` and `teacher`.

        Raises:
            VisdError: a rank could not write, for example because the disk is full; older checkpoints are untouched.
        """
        final = self.folder / f"step_{state.step:06d}"
        temporary = self.folder / f"{TEMPORARY}{final.name}"
        self._together(final, lambda: self._begin(temporary, state, writers))
        self._together(final, lambda: self._fill(temporary, writers))
        parts = self._together(final, lambda: describe_files(self._own_files(temporary)))
        self._together(final, lambda: self._finish(temporary, final, state, _merged(parts, temporary)))
        return final

    def load(self, path: Path, identity: Mapping[str, Any]) -> TrainState:
        """Check a checkpoint whole and return its state; the tensors lie in the folders its writers named.

        Raises:
            VisdError: a file is missing, truncated or modified, or the checkpoint is of another run; names the file or
                the field.
        """
        files = read_manifest(path)
        own = sorted(files)[self.backend.rank :: self.backend.world_size]
        problems = self.backend.all_gather_object([p for name in own if (p := problem_of(path / name, files[name]))])
        for problem in (problem for of_rank in problems for problem in of_rank):
            raise VisdError(f"{problem}: the checkpoint is damaged, delete {path} and resume from another one.")
        state = TrainState(**read_json(path / STATE))
        check_identity(path, state.identity, identity)
        return state

    def _begin(self, temporary: Path, state: TrainState, writers: Mapping[str, Writer]) -> None:
        if not self.backend.is_main:
            return
        if temporary.exists():
            shutil.rmtree(temporary)
        for name in writers:
            (temporary / name).mkdir(parents=True)
        write_json(temporary / STATE, asdict(state))

    def _fill(self, temporary: Path, writers: Mapping[str, Writer]) -> None:
        for name, writer in writers.items():
            writer(temporary / name)

    def _own_files(self, temporary: Path) -> list[Path]:
        """A share of all files to read back, so that ranks divide the hashing among themselves."""
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        return files[self.backend.rank :: self.backend.world_size]

    def _finish(self, temporary: Path, final: Path, state: TrainState, files: dict[str, Any]) -> None:
        if not self.backend.is_main:
            return
        manifest = {
            "format": FORMAT,
            "step": state.step,
            "mode": self.backend.mode,
            "world_size": self.backend.world_size,
            "versions": versions(),
            "files": files,
        }
        write_json(temporary / MANIFEST, manifest)
        for path in (temporary / MANIFEST, *(p for p in temporary.rglob("*") if p.is_dir()), temporary):
            sync(path)
        if final.exists():
            self._remove(final)
        temporary.rename(final)
        sync(self.folder)
        if self.keep:
            for path in self.all()[: -self.keep]:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Out of sight at once, then file by file."""
        doomed = path.with_name(f"{TEMPORARY}old-{path.name}")
        if doomed.exists():
            shutil.rmtree(doomed)
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _together(self, final: Path, action: Callable[[], Any]) -> list[Any]:
        """Every rank acts, and all learn whether all could; one entry a rank."""
        problem, result = None, None
        try:
            result = action()
        except OSError as error:
            problem = f"rank {self.backend.rank}: {error}"
        answers = self.backend.all_gather_object((problem, result))
        failed = [problem for problem, _ in answers if problem]
        if not failed:
            return [result for _, result in answers]
        if self.backend.is_main:
            shutil.rmtree(self.folder / f"{TEMPORARY}{final.name}", ignore_errors=True)
        newest = self.latest()
        kept = f"the newest whole one is {newest}" if newest else "there is none yet"
        raise VisdError(
            f"{final} could not be written ({'; '.join(failed)}); {kept}. Free space below {self.folder} and resume."
        )


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def check_identity(path: Path, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run.

    Raises:
        VisdError: names the first field that differs, with both values.
    """
    plain = json.loads(json.dumps(dict(own)))  # as it would come back from the file: lists for tuples
    for name in sorted(saved.keys() | own.keys()):
        if saved.get(name) != plain.get(name):
            raise VisdError(
                f"{path} was written with {name} = {saved.get(name)!r}, this run has {plain.get(name)!r}: "
                "set it as it was, or start in another run.dir."
            )


def describe_files(paths: list[Path]) -> dict[str, Any]:
    """Force files to the disk and read them back: size in bytes and SHA-256 by path."""
    described = {}
    for path in paths:
        sync(path)
        described[str(path)] = {"size": path.stat().st_size, "sha256": digest(path)}
    return described


def problem_of(path: Path, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with a file of a checkpoint, or None."""
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != expected["size"]:
        return f"{path} has {size} bytes instead of {expected['size']}"
    return None if digest(path) == expected["sha256"] else f"{path} was modified"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        VisdError: the file is missing or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VisdError(f"{path} cannot be read ({error}): {path.parent} is no complete checkpoint.") from error
    if not isinstance(value, dict):
        raise VisdError(f"{path} is no JSON object: {path.parent} is no complete checkpoint.")
    return value


def read_manifest(path: Path) -> dict[str, Any]:
    """Size and digest of every file of a checkpoint.

    Raises:
        VisdError: no manifest, or one of another format.
    """
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise VisdError(
            f"{path / MANIFEST} has format {manifest.get('format')!r}, this version reads {FORMAT}: finish the run with the version that began it."
        )
    files: dict[str, Any] = manifest["files"]
    return files


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _merged(parts: list[dict[str, Any]], root: Path) -> dict[str, Any]:
    return {str(Path(name).relative_to(root)): facts for part in parts for name, facts in part.items()}
