"""Files of a training state: tensors as safetensors, facts as JSON.

Ranks store what they hold of each tensor as `Part`s, runs of its elements that say where they begin. Whoever reads asks for
the elements it needs, whichever ranks wrote them: any number of ranks can go on from what any other number left, in any mode
that stores the same tensors.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from visd.types import VisdError

HEADER = "backend.json"


MASTER = "master"
"""Key of a parameter's float32 weights in an optimiser's state, where the model's own are of less precision."""

STARTS = "starts"
"""Entry of a file's metadata: JSON, by name of a tensor where in the whole its elements begin."""


@dataclass(frozen=True)
class Header:
    """What a folder of training state belongs to."""

    mode: str  # that wrote it, for people
    world_size: int  # the same
    model: str  # fingerprint


@dataclass(frozen=True)
class Part:
    """What a rank holds of a tensor: a run of its elements in row-major order."""

    values: Tensor  # of any shape; a tensor without dimensions is always whole
    start: int = 0  # place of its first element in the whole


def model_fingerprint(entries: Iterable[tuple[str, Sequence[int], torch.dtype]]) -> str:
    """A digest of (name, whole shape, dtype) of every tensor of a model, whatever their order."""
    lines = sorted(f"{name} {list(shape)} {dtype}" for name, shape, dtype in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device.

    Raises:
        OSError: the file could not be written whole, ENOSPC included.
    """
    plain = {name: value.detach().contiguous() for name, value in tensors.items()}
    try:
        save_file(plain, path, metadata)
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


def save_parts(folder: Path, kind: str, rank: int, parts: Mapping[str, Part]) -> None:
    """Write a rank's file of a kind: `KIND_RRRRR.safetensors`.

    Raises:
        OSError: as `save_tensors`.
    """
    flat = {name: part.values.reshape(-1) if part.values.ndim else part.values for name, part in parts.items()}
    starts = json.dumps({name: part.start for name, part in parts.items() if part.start})
    save_tensors(folder / f"{kind}_{rank:05d}.safetensors", flat, {STARTS: starts})


class Parts:
    """All ranks' files of a kind, to be read by elements of whole tensors.

    Raises:
        VisdError: there is no such file, or one is no whole safetensors file.
    """

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind = folder, kind
        self._found: dict[str, list[tuple[int, Path]]] = {}  # by name: where a file's elements begin
        for path in sorted(folder.glob(f"{kind}_*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    starts = json.loads((file.metadata() or {}).get(STARTS, "{}"))
                    for name in file.keys():  # noqa: SIM118  # the file is no dictionary
                        self._found.setdefault(name, []).append((starts.get(name, 0), path))
            except (OSError, SafetensorError) as error:
                raise VisdError(f"{path} cannot be read ({error}): take another checkpoint.") from error
        if not self._found and not any(folder.glob(f"{kind}_*.safetensors")):
            raise VisdError(f"{folder} holds no {kind}_*.safetensors: take another checkpoint.")

    @property
    def names(self) -> list[str]:
        return sorted(self._found)

    def read(self, name: str, start: int, count: int) -> Tensor:
        """Elements `start` to `start + count` of a tensor, flat, on the CPU.

        Raises:
            VisdError: no rank stored the tensor, or no rank some of these.
        """
        at, end = start, start + count
        runs: list[Tensor] = []
        for begin, path in sorted(self._found.get(name, [])):
            if begin > at:
                continue
            with safe_open(path, "pt") as file:
                stored = file.get_slice(name)
                (size,) = stored.get_shape()
                first, last = min(at - begin, size), min(end - begin, size)
                runs.append(stored[first:last])  # an empty one has its dtype to give
            at += last - first
            if at == end:
                return torch.cat(runs)
        raise VisdError(
            f"{self.folder} lacks elements {at} to {end} of {name!r} ({self.kind}): take another checkpoint."
        )

    def scalar(self, name: str) -> Tensor | None:
        """A tensor without dimensions; None if there is none of that name, or it has dimensions."""
        for _, path in self._found.get(name, []):
            with safe_open(path, "pt") as file:
                return file.get_tensor(name) if not file.get_slice(name).get_shape() else None
        return None


def fill(part: Part, saved: Parts, name: str) -> None:
    """Overwrite a part by what was stored of these elements."""
    whole = saved.scalar(name) if not part.values.ndim else None
    values = whole if whole is not None else saved.read(name, part.start, part.values.numel())
    part.values.copy_(values.view(part.values.shape))


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


def check_header(folder: Path, model: str) -> None:
    """Refuse training state that this run cannot go on from.

    Raises:
        VisdError: no header, or another model.
    """
    path = folder / HEADER
    try:
        found = Header(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise VisdError(f"{path} is no description of a training state ({error}).") from error
    if found.model != model:
        raise VisdError(
            f"{folder} holds another model (other names, shapes or dtypes), written with parallel.mode={found.mode} by "
            f"{found.world_size} processes: set model.path, model.freeze and parallel.mode as they were."
        )
