"""Files of a backend's training state: tensors as safetensors, facts as JSON."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visd.types import VisdError

HEADER = "backend.json"


@dataclass(frozen=True)
class Header:
    """What a folder of training state belongs to."""

    mode: str
    world_size: int
    model: str  # fingerprint


def model_fingerprint(entries: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> str:
    """A digest of (name, whole shape, dtype) of every tensor of a model, whatever their order."""
    lines = sorted(f"{name} {list(shape)} {dtype}" for name, shape, dtype in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device.

    Raises:
        OSError: the file could not be written whole, ENOSPC included.
    """
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, path)
    except SafetensorError as error:
        full = "os error 28" in str(error)  # the library wraps the operating system's error in its own
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error
    expected = sum(value.nbytes for value in plain.values())
    if path.stat().st_size < expected:
        raise OSError(errno.EIO, "written short", str(path))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote, on the CPU.

    Raises:
        VisdError: the file is missing or is no whole safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise VisdError(f"{path} cannot be read ({error}): take another checkpoint.") from error


def check_names(own: Iterable[str], given: Iterable[str]) -> None:
    """Refuse a state that lacks a tensor or holds one too many.

    Raises:
        VisdError: names the first tensor in question.
    """
    missing, extra = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or extra:
        problem = f"lacks {missing[0]!r}" if missing else f"holds {extra[0]!r}, which the model does not have"
        raise VisdError(f"the weights {problem}: they belong to another model.")


def write_header(folder: Path, header: Header) -> None:
    (folder / HEADER).write_text(json.dumps(asdict(header), indent=1) + "\n", encoding="utf-8")


def check_header(folder: Path, expected: Header) -> None:
    """Refuse training state that this run cannot go on from.

    Raises:
        VisdError: no header, or another mode, number of processes or model.
    """
    path = folder / HEADER
    try:
        found = Header(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise VisdError(f"{path} is no description of a training state ({error}).") from error
    if found.mode != expected.mode:
        raise VisdError(
            f"{folder} was written with parallel.mode={found.mode}, this run has {expected.mode}: resume with the same."
        )
    if found.world_size != expected.world_size:
        raise VisdError(
            f"{folder} was written by {found.world_size} processes, this run has {expected.world_size}: resume with as many."
        )
    if found.model != expected.model:
        raise VisdError(
            f"{folder} holds another model (other names, shapes or dtypes): set model.path and model.freeze as they were."
        )
