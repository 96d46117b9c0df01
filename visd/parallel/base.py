"""One interface over one process, DDP, ZeRO and FSDP2: the rest of visd never asks which of them runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visd.types import VisdError


@dataclass(frozen=True)
class StepResult:
    """What an optimiser step did."""

    grad_norm: float  # global, before clipping
    skipped: bool  # True when gradients were not finite and nothing was updated


OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Backend(ABC):
    """A parallel mode.

    Losses given to `backward` are already divided by global denominators: the gradient of the step is the **sum**
    over micro-batches and ranks, in every mode. Every rank calls `forward`/`backward`/`step` equally often.
    """

    mode: str  # none, ddp, zero2, zero3, fsdp2
    sharded: bool  # True: `local_shards` are parts that no other rank holds; False: every rank holds the same wholes
    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @abstractmethod
    def setup(self, module: nn.Module, optimizer: OptimizerFactory | None, max_grad_norm: float) -> None:
        """Wrap the module; frozen parameters stay frozen. `optimizer=None` sets up for inference only.

        FSDP2 asks the module for its `shard_units()`.
        """

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped module's forward."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate gradients; `last` marks the step's final micro-batch, where ranks may reduce."""

    @abstractmethod
    def step(self, lr: float) -> StepResult:
        """Clip, update at learning rate `lr`, clear gradients."""

    @abstractmethod
    def forget_steps(self) -> None:
        """Put the optimiser back to where it was before its first step; weights stay as they are."""

    @abstractmethod
    @contextmanager
    def whole_weights(self) -> Iterator[nn.Module]:
        """Every rank holds the whole module and may run it without the others: generation, teacher, export.

        Entered and left by all ranks together, with gradients off inside; not for backward. Where `forward` runs
        under autocast, so does the body.
        """
        yield  # type: ignore[misc]

    @abstractmethod
    def local_shards(self) -> dict[str, Tensor]:
        """Trainable parameters by name as this rank stores them; writing to a tensor in place changes the model.

        Never call inside `whole_weights`, nor between a forward and its backward. Call again for each round of writes:
        the call also drops whole copies that an earlier forward left.
        """

    @abstractmethod
    def shard_starts(self) -> dict[str, int]:
        """By name where in the whole parameter, row-major, what `local_shards` gives begins; its elements follow one another."""

    @abstractmethod
    def whole_tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The named parameters in the module's order, whole, on this rank's device, one at a time on every rank.

        All ranks go through to the end, outside `whole_weights`. A tensor may be gone when the next one is asked for.
        """

    @abstractmethod
    def full_state(self) -> dict[str, Tensor]:
        """All parameters and buffers of the module by name, whole, on the CPU, on the main rank; empty elsewhere."""

    @abstractmethod
    def load_full_state(self, state: dict[str, Tensor]) -> None:
        """Set parameters by name from whole tensors (all ranks call it with the same tensors)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A digest of the module's tensors by name, whole shape and dtype: the same on all ranks and in all modes."""

    @abstractmethod
    def save_training_state(self, folder: Path) -> None:
        """Weights, optimiser: all that this backend needs to go on bit-exactly. All ranks call it.

        A rank returns when its own files are written, without waiting for the others. What is stored says which elements
        of which parameter it is, so that any number of ranks can read it.
        """

    @abstractmethod
    def load_training_state(self, folder: Path) -> None:
        """The inverse of `save_training_state`, whatever number of ranks and mode wrote the folder.

        Raises:
            VisdError: the folder holds another model, other dtypes included, or the optimiser lacks state of a parameter.
        """

    @abstractmethod
    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        """Sum, max or min over ranks; returns a new tensor."""

    @abstractmethod
    def all_gather_object(self, value: Any) -> list[Any]:
        """One entry a rank."""

    @abstractmethod
    def barrier(self) -> None: ...

    @contextmanager
    def together(self) -> Iterator[None]:
        """Where one rank fails inside, all do: none waits in a later collective for a rank that has gone.

        All ranks enter and leave it equally often; what is inside makes no collective calls.

        Raises:
            VisdError: another rank failed; says which and why. A rank's own error is raised as it is.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if not self.all_reduce(torch.tensor(float(failure is not None)), "max").item():
            return
        said = self.all_gather_object(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        rank, why = next((rank, why) for rank, why in enumerate(said) if why is not None)
        raise VisdError(f"process {rank} stopped, and so do the others: {why}")

    @abstractmethod
    def close(self) -> None:
        """Say goodbye to the other processes and leave the group."""
