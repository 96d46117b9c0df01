"""One process: the module as it is, and any torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visd.parallel import storage
from visd.parallel.base import Backend, OptimizerFactory, StepResult
from visd.parallel.place import Place
from visd.types import VisdError


class SingleProcess(Backend):
    """No communication. On a GPU with bf16: float32 weights, activations by autocast."""

    mode = "none"
    sharded = False

    def __init__(self, place: Place, device: torch.device, bf16: bool):
        self.rank, self.world_size, self.local_rank = place.rank, place.world_size, place.local_rank
        self.device = device
        self.bf16 = bf16
        self.module: nn.Module = nn.Identity()
        self.optimizer: torch.optim.Optimizer | None = None
        self.max_grad_norm = math.inf

    def setup(self, module: nn.Module, optimizer: OptimizerFactory | None, max_grad_norm: float) -> None:
        self.module = module.to(self.device)
        self.max_grad_norm = max_grad_norm
        if optimizer is not None:
            self.optimizer = optimizer(trained_parameters(module))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._autocast():
            return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, lr: float) -> StepResult:
        optimizer = self._optimizer()
        norm = self._clip_gradients(trained_parameters(self.module))
        skipped = not math.isfinite(norm)
        if not skipped:
            set_learning_rate(optimizer, lr)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, skipped)

    def forget_steps(self) -> None:
        self._optimizer().state.clear()

    @contextmanager
    def whole_weights(self) -> Iterator[nn.Module]:
        with torch.no_grad(), self._autocast():
            yield self.module

    def local_shards(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def shard_starts(self) -> dict[str, int]:
        return {name: self._part(value).start for name, value in self._tensors().items() if value.requires_grad}

    def whole_tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.module.named_parameters():
            if name in names:
                yield name, value.detach()

    def full_state(self) -> dict[str, Tensor]:
        if not self.is_main:
            return {}
        return {name: value.detach().to("cpu", copy=True) for name, value in self._tensors().items()}

    @torch.no_grad()
    def load_full_state(self, state: dict[str, Tensor]) -> None:
        own = self._tensors()
        storage.check_names(own, state)
        for name, value in own.items():
            value.copy_(state[name])

    def fingerprint(self) -> str:
        tensors = self._tensors()
        return storage.model_fingerprint((name, tuple(t.shape), t.dtype) for name, t in tensors.items())

    def save_training_state(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.sharded or self.is_main:
            weights = {name: self._part(value) for name, value in self._tensors().items()}
            storage.save_parts(folder, "weights", self.rank, weights)
            storage.save_parts(folder, "optimizer", self.rank, self._optimizer_state())
        if self.is_main:
            storage.write_header(folder, storage.Header(self.mode, self.world_size, self.fingerprint()))

    @torch.no_grad()
    def load_training_state(self, folder: Path) -> None:
        storage.check_header(folder, self.fingerprint())
        weights = storage.Parts(folder, "weights")
        own = self._tensors()
        storage.check_names(own, weights.names)
        for name, value in own.items():
            storage.fill(self._part(value), weights, name)
        self._load_optimizer_state(storage.Parts(folder, "optimizer"))

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        return values.detach().clone()

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        """There is nobody to wait for."""

    def close(self) -> None:
        """There is no group to leave."""

    def _clip_gradients(self, trained: list[nn.Parameter]) -> float:
        """Scale gradients down to the largest norm allowed; returns the norm they had."""
        return float(nn.utils.clip_grad_norm_(trained, self.max_grad_norm))

    def _tensors(self) -> dict[str, Tensor]:
        """What is saved of the module, by name, as this rank stores it."""
        return saved_tensors(self.module)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise VisdError("this backend was set up for inference only: it has no optimiser.")
        return self.optimizer

    def _parameter_names(self) -> list[str]:
        """Names of the optimiser's parameters, in the optimiser's order."""
        names = {id(p): name for name, p in self.module.named_parameters()}
        return [names[id(p)] for group in self._optimizer().param_groups for p in group["params"]]

    def _part(self, value: Tensor) -> storage.Part:
        """What this rank holds of a tensor."""
        return storage.Part(value.detach())

    def _like(self, parameter: Tensor, values: Tensor) -> Tensor:
        """A flat run of elements as the optimiser keeps it beside a parameter."""
        return values.view(parameter.shape)

    def _optimizer_state(self) -> dict[str, storage.Part]:
        """By `PARAMETER/KEY`."""
        state = self._optimizer().state_dict()["state"]
        names = self._parameter_names()
        return {f"{names[i]}/{key}": self._part(value) for i, values in state.items() for key, value in values.items()}

    def _load_optimizer_state(self, saved: storage.Parts) -> None:
        optimizer = self._optimizer()
        index = {name: i for i, name in enumerate(self._parameter_names())}
        parameters = self._tensors()
        state: dict[int, dict[str, Tensor]] = {}
        for path in saved.names:
            name, _, key = path.rpartition("/")
            if key == storage.MASTER:  # the weights themselves are the masters here
                continue
            value = saved.scalar(path)
            if value is None:
                part = self._part(parameters[name])
                value = self._like(parameters[name], saved.read(path, part.start, part.values.numel()))
            state.setdefault(index[name], {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that take gradients.

    Raises:
        VisdError: there are none.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise VisdError("model.freeze leaves no parameter to train: freeze less.")
    return trained


def set_learning_rate(optimizer: Any, lr: float) -> None:
    """The step's learning rate, for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a shared tensor once, under its first name."""
    persistent = module.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    return dict(module.named_parameters()) | buffers
