"""What all modes of several processes share: joining the group, collectives, leaving."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from visd.parallel import lifeline
from visd.parallel.base import Backend
from visd.parallel.place import Place

OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def join(place: Place, device: torch.device, timeout: timedelta, lifeline_seconds: int) -> None:
    """Enter the process group; a collective that waits longer than `timeout` raises, and a process's death ends all."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    # A plain start has no rendezvous address; a store in this process needs none.
    store = dist.HashStore() if place.world_size == 1 else None
    dist.init_process_group(
        backend,
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" and place.world_size > 1 else None,
    )
    lifeline.start(place, lifeline_seconds)


class Distributed(Backend):
    """Collectives over the process group."""

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        reduced = values.detach().to(self.device, copy=True)
        dist.all_reduce(reduced, OPS[op])
        return reduced.to(values.device)

    def all_gather_object(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        dist.barrier(device_ids=[self.local_rank] if self.device.type == "cuda" else None)

    def close(self) -> None:
        lifeline.leave()
        if dist.is_initialized():
            dist.destroy_process_group()
