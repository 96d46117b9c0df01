"""What lies where in the flat float32 masters that DeepSpeed's optimisers keep, so that their state can be stored by parameter.

Checked against DeepSpeed 0.19's `stage_1_and_2.py` and `stage3.py`. Between and after the parameters lies padding, which no
state names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visd.parallel.storage import MASTER, Part, Parts
from visd.types import VisdError

KEEP_MODE = "resume with the parallel.mode that wrote it."


@dataclass(frozen=True)
class Piece:
    """A run of a parameter's elements in one of this rank's masters."""

    name: str
    start: int  # of the first element, in the whole parameter
    offset: int  # of the same, in the master
    count: int  # 0: other ranks have all of it

    def of(self, flat: Tensor) -> Tensor:
        """Its elements of a tensor that is laid out like the master; a view."""
        return flat.narrow(0, self.offset, self.count)


def masters_of(optimizer: Any) -> list[Tensor]:
    """This rank's float32 parts, flat, one a group; the inner optimiser's state is kept by them."""
    stage3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    return list(optimizer.fp32_partitioned_groups_flat if stage3 else optimizer.single_partition_of_fp32_groups)


def zero2_pieces(optimizer: Any, names: Mapping[int, str], rank: int) -> list[list[Piece]]:
    """ZeRO-2 lays a group's parameters out in one flat tensor, of which each rank's master is an equal run.

    Args:
        names: by the parameter's id.
    """
    found = []
    for group, flat, size in zip(
        optimizer.bit16_groups, optimizer.bit16_groups_flat, optimizer.partition_size, strict=True
    ):
        first, pieces = rank * size, []
        for parameter in group:  # a view of the flat tensor
            place = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
            begin = max(place, first)
            end = max(min(place + parameter.numel(), first + size), begin)
            # clamped, so that a parameter of other ranks is an empty run inside the master
            pieces.append(Piece(names[id(parameter)], begin - place, min(begin - first, size), end - begin))
        found.append(pieces)
    return found


def zero3_pieces(optimizer: Any, names: Mapping[int, str], rank: int) -> list[list[Piece]]:
    """ZeRO-3 deals every parameter among the ranks; a master is this rank's runs of a group, one after the other."""
    found = []
    for group in optimizer.fp16_groups:
        offset, pieces = 0, []
        for parameter in group:
            size = parameter.ds_tensor.numel()
            own = own_part(parameter, rank).numel()
            pieces.append(Piece(names[id(parameter)], rank * size, offset, own))
            offset += size
        found.append(pieces)
    return found


def optimizer_parts(optimizer: Any, pieces: Sequence[Sequence[Piece]]) -> dict[str, Part]:
    """Masters and optimiser state by `PARAMETER/KEY`."""
    parts = {}
    for master, group in zip(masters_of(optimizer), pieces, strict=True):
        state = {MASTER: master, **optimizer.optimizer.state.get(master, {})}
        for piece in group:
            for key, value in state.items():
                if not value.ndim:
                    parts[f"{piece.name}/{key}"] = Part(value.clone())  # each needs memory of its own
                elif piece.count:
                    parts[f"{piece.name}/{key}"] = Part(piece.of(value), piece.start)
    return parts


@torch.no_grad()
def load_optimizer(optimizer: Any, pieces: Sequence[Sequence[Piece]], saved: Parts) -> None:
    """The inverse of `optimizer_parts`. Masters that were not stored stay as they are: what the weights say.

    Raises:
        VisdError: parameters of a group have taken different numbers of steps, which a flat master cannot keep apart.
    """
    names = set(saved.names)
    keys = sorted({name.rpartition("/")[2] for name in names})
    for master, group in zip(masters_of(optimizer), pieces, strict=True):
        state = {MASTER: master}
        for key in keys:
            stored = [piece for piece in group if f"{piece.name}/{key}" in names]
            if not stored:
                continue
            if key != MASTER and len(stored) < len(group):
                missing = next(piece.name for piece in group if piece not in stored)
                raise VisdError(f"{saved.folder} has no {key} of {missing!r}: {KEEP_MODE}")
            scalars = [saved.scalar(f"{piece.name}/{key}") for piece in stored]
            if scalars[0] is not None:
                state[key] = _common(scalars, key, saved)
                continue
            flat = state.setdefault(key, torch.zeros_like(master))
            for piece in stored:
                piece.of(flat).copy_(saved.read(f"{piece.name}/{key}", piece.start, piece.count))
        optimizer.optimizer.state[master] = {key: value for key, value in state.items() if key != MASTER}


def _common(scalars: Sequence[Tensor | None], key: str, saved: Parts) -> Tensor:
    """What all parameters of a group say."""
    first = scalars[0]
    assert first is not None
    if any(value is None or not torch.equal(value, first) for value in scalars):
        raise VisdError(f"{saved.folder}: {key} differs among parameters that ZeRO keeps as one: {KEEP_MODE}")
    return first  # torch keeps the step count, a scalar, on the CPU unless the optimiser is fused


def own_part(parameter: Any, rank: int) -> Tensor:
    """A flat view of what `rank` stores of a ZeRO-3 parameter, without the padding at the parameter's end.

    The padding is uninitialised memory, so that no norm may see it. Writing to the view changes the model at the next
    gather.
    """
    shard: Tensor = parameter.ds_tensor.data
    own = min(max(parameter.ds_numel - rank * shard.numel(), 0), shard.numel())
    return shard.narrow(0, 0, own)
