"""The teacher's weights: which they are, how they follow the student's, and how they take their place.

Everything happens on what a rank stores of each trained parameter, so that no mode needs communication and ZeRO-3 and
FSDP2 need no gather; frozen parameters are the student's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from visd.config import TeacherSection
from visd.parallel.base import Backend
from visd.parallel.storage import Part, Parts, save_parts
from visd.types import VisdError

KIND = "teacher"
KEEP = "keep teacher.weights, teacher.ema_dtype and the model as they were."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TeacherWeights:
    """Weights by `teacher.weights`.

    ema: an average kept in `teacher.ema_dtype`, beside the shards on their device.
    snapshot: a copy of the student made every `teacher.snapshot_every` optimiser steps.
    frozen: the student as it was when attached.
    live: the student as it is.
    trust_region: frozen and live together, see `scorer.score_mixed`; here it is `frozen`.
    external: another model, see `external.ExternalTeacher`; it has no such weights.

    Every mode keeps the start in the student's dtype on the CPU, to measure displacements (frozen: also to use it).
    """

    def __init__(self, section: TeacherSection):
        self.section = section
        self._start: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}  # ema and snapshot

    @torch.no_grad()
    def attach(self, backend: Backend) -> None:
        """Begin as the student, whose weights are remembered as the start."""
        shards = backend.local_shards()
        self._start = {name: shard.to("cpu", copy=True) for name, shard in shards.items()}
        if self.section.weights in ("ema", "snapshot"):
            self._own = {name: shard.to(self._dtype(shard), copy=True) for name, shard in shards.items()}

    @torch.no_grad()
    def update(self, backend: Backend, step: int, made: int = 1) -> None:
        """Follow the student. Call after an optimiser step that was not skipped, or after several.

        Args:
            step: optimiser steps done, these included; a snapshot is taken where one of them divides evenly.
            made: optimiser steps since the last call.
        """
        if self.section.weights == "snapshot" and step % self.section.snapshot_every < made:
            for name, shard in backend.local_shards().items():
                self._own[name].copy_(shard)
        elif self.section.weights == "ema":
            for name, shard in backend.local_shards().items():
                average(self._own[name], shard, self.section.rate)

    @contextmanager
    def applied(self, backend: Backend) -> Iterator[None]:
        """The teacher's weights in the student's place; afterwards the student's are back, bit for bit.

        All ranks enter together, outside `whole_weights`.
        """
        if self.section.weights == "live":
            yield
            return
        shards = backend.local_shards()
        student = {name: shard.clone() for name, shard in shards.items()}
        copy_all(self._teacher(), shards)
        try:
            yield
        finally:
            copy_all(student, backend.local_shards())

    @torch.no_grad()
    def displacement(self, backend: Backend) -> tuple[float, float]:
        """L2 distance of teacher and student from the start, over all trained parameters. All ranks call it."""
        shards = backend.local_shards()
        teacher = shards if self.section.weights == "live" else self._teacher()
        squares = torch.zeros(2, dtype=torch.float64)
        for name, shard in shards.items():
            start = self._start[name].to(shard.device)
            # A teacher kept in another dtype starts at the rounded start, not at the start.
            squares[0] += _square_distance(teacher[name].to(shard.device), start.to(teacher[name].dtype))
            squares[1] += _square_distance(shard, start)
        if backend.sharded:
            squares = backend.all_reduce(squares)
        moved, student = squares.sqrt().tolist()
        return moved, student

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's tensors by name: `start/...`, and `teacher/...` where the mode has weights of its own."""
        start = {f"start/{name}": value for name, value in self._start.items()}
        return start | {f"teacher/{name}": value for name, value in self._own.items()}

    def save(self, backend: Backend, folder: Path) -> None:
        """Write this rank's file; the main rank's serves all where ranks hold the same."""
        if backend.sharded or backend.is_main:
            starts = backend.shard_starts()
            parts = {name: Part(value, starts[name.partition("/")[2]]) for name, value in self.state_dict().items()}
            save_parts(folder, KIND, backend.rank, parts)

    @torch.no_grad()
    def load(self, backend: Backend, folder: Path) -> None:
        """The inverse of `save`, whatever number of ranks and mode wrote it. Call after `attach`.

        Raises:
            VisdError: a tensor is missing, left over, or of another size or dtype.
        """
        saved, own, starts = Parts(folder, KIND), self.state_dict(), backend.shard_starts()
        for name in sorted(own.keys() ^ set(saved.names)):
            raise VisdError(f"{folder}: the saved teacher {'lacks' if name in own else 'also has'} {name!r}: {KEEP}")
        for name, value in own.items():
            given = saved.read(name, starts[name.partition("/")[2]], value.numel())
            if given.dtype != value.dtype:
                raise VisdError(f"{folder}: the saved teacher has {name!r} in {given.dtype}, not {value.dtype}: {KEEP}")
            value.copy_(given.view(value.shape))

    def _teacher(self) -> dict[str, Tensor]:
        return self._own or self._start

    def _dtype(self, shard: Tensor) -> torch.dtype:
        return DTYPES[self.section.ema_dtype] if self.section.weights == "ema" else shard.dtype


def average(teacher: Tensor, student: Tensor, rate: float) -> None:
    """`theta_T <- (1 - rate) theta_T + rate theta_S`, in place.

    In float32 as T + (rate * (S - T)), each operation rounded on its own: a teacher that has arrived stays, and the
    result does not depend on how parameters are cut into shards (a fused multiply-add is used for some lengths only).
    In bfloat16 as T * (1 - rate) + rate * S, two roundings to bfloat16, which loses a step below the spacing of
    bfloat16 numbers: that is how published code does it, kept for comparison.
    """
    if teacher.dtype == torch.float32:
        teacher.add_(student.to(torch.float32, copy=True).sub_(teacher).mul_(rate))
    else:
        teacher.mul_(1 - rate).add_(student.to(teacher.dtype), alpha=rate)


@torch.no_grad()
def copy_all(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Overwrite every target tensor by the source's of the same name."""
    for name, value in target.items():
        value.copy_(source[name])


def _square_distance(a: Tensor, b: Tensor) -> float:
    difference = a.to(torch.float32, copy=True).sub_(b)
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
