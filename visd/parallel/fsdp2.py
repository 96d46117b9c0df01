"""Fully sharded data parallel (FSDP2): weights, gradients and optimiser state divided among ranks by torch alone.

`fully_shard` is called directly. accelerate's wrapper would choose the units, the precision and the averaging of
gradients, and these three are what is set here.

Every unit (a decoder layer, the root) is one collective: its weights are gathered before it runs and freed after. Weights
and optimiser state are float32; on a GPU a unit is gathered, and computes, in bfloat16, and its gradients are summed in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from visd.parallel import storage
from visd.parallel.base import OptimizerFactory
from visd.parallel.distributed import Distributed
from visd.parallel.hooks import without_hooks
from visd.parallel.single import SingleProcess, saved_tensors


class FSDP2(Distributed, SingleProcess):
    """Any number of ranks, each with its rows of every parameter."""

    mode = "fsdp2"
    sharded = True

    def setup(self, module: nn.Module, optimizer: OptimizerFactory | None, max_grad_norm: float) -> None:
        """`module.shard_units()` lists what is gathered at a time, inner modules first; the root has the rest."""
        module.to(self.device)
        for value in saved_tensors(module).values():
            dist.broadcast(value.detach(), src=0)
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        self.units: list[FSDPModule] = []
        for unit in (*module.shard_units(), module):  # type: ignore[operator]
            # The root's input holds pixels and features in dtypes of their own, and is left as it is.
            policy = mixed_precision(cast_inputs=unit is not module) if self.bf16 else MixedPrecisionPolicy()
            sharded = fully_shard(unit, mesh=mesh, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)  # gradients are sums, not means over ranks
            sharded.set_force_sum_reduction_for_comms(True)  # gloo can only sum
            self.units.append(sharded)
        super().setup(module, optimizer, max_grad_norm)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Until the last micro-batch of a step each rank adds up whole gradients of its own."""
        self.units[-1].set_requires_gradient_sync(last)
        loss.backward()

    @contextmanager
    def whole_weights(self) -> Iterator[nn.Module]:
        """Without hooks: they would also record forwards that other ranks do not make, and gather ahead by them."""
        states = [fully_shard.state(unit) for unit in self.units]  # type: ignore[attr-defined]
        handles = [h for s in states for h in (s._pre_forward_hook_handle, s._post_forward_hook_handle)]
        with torch.no_grad(), without_hooks(handles):
            for unit in self.units:
                unit.unshard()
            try:
                yield self.module
            finally:
                self._release()

    def local_shards(self) -> dict[str, Tensor]:
        return {name: local(value) for name, value in self._tensors().items() if value.requires_grad}

    @torch.no_grad()
    def whole_tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, value in self._tensors().items():
            if name in names:
                yield name, value.full_tensor() if isinstance(value, DTensor) else value.detach()

    @torch.no_grad()
    def full_state(self) -> dict[str, Tensor]:
        state = {}
        for name, value in self._tensors().items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_main:
                state[name] = whole.detach().to("cpu", copy=True)
        return state

    @torch.no_grad()
    def load_full_state(self, state: dict[str, Tensor]) -> None:
        own = self._tensors()
        storage.check_names(own, state)
        for name, value in own.items():
            local(value).copy_(part_for(value, state[name]))

    def _release(self) -> None:
        """Free whole parameters that are still gathered, so that the next forward gathers what the shards hold."""
        for unit in self.units:
            unit.reshard()

    def _tensors(self) -> dict[str, Tensor]:
        self._release()
        return saved_tensors(self.module)

    def _clip_gradients(self, trained: list[nn.Parameter]) -> float:
        gradients = [local(p.grad) for p in trained if p.grad is not None]
        square = nn.utils.get_total_norm(gradients).double().square()
        norm = math.sqrt(self.all_reduce(square).item())
        if norm > self.max_grad_norm:
            torch._foreach_mul_(gradients, self.max_grad_norm / (norm + 1e-6))
        return norm

    def _part(self, value: Tensor) -> storage.Part:
        """`fully_shard` deals rows in equal runs, the last ones shorter or empty."""
        if not isinstance(value, DTensor):
            return super()._part(value)
        rows = -(-value.shape[0] // self.world_size)
        first = min(self.rank * rows, value.shape[0])
        return storage.Part(local(value), first * math.prod(value.shape[1:]))

    def _like(self, parameter: Tensor, values: Tensor) -> Tensor:
        return shard_like(parameter, values.view(local(parameter).shape))


def mixed_precision(*, cast_inputs: bool) -> MixedPrecisionPolicy:
    """Compute in bfloat16, sum gradients in float32."""
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=cast_inputs)


def local(value: Tensor) -> Tensor:
    """This rank's rows, to read and to write; all of a tensor that is not sharded."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value


def part_for(value: Tensor, whole: Tensor) -> Tensor:
    """What this rank stores of a whole tensor that belongs in place of `value`."""
    if not isinstance(value, DTensor):
        return whole
    whole = whole.to(value.device)
    return distribute_tensor(whole, value.device_mesh, value.placements, src_data_rank=None).to_local()


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A rank's rows as the sharded tensor that stands beside `parameter`."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
