"""Data parallel: every rank holds the whole model and gradients are summed once a step.

torch's DistributedDataParallel decides in the forward pass whether the backward pass will reduce, and averages. Here
the last micro-batch is only known at its backward pass and gradients are sums, so the reduction is written out: one
all-reduce a bucket after the last backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visd.parallel.base import OptimizerFactory
from visd.parallel.distributed import Distributed
from visd.parallel.single import SingleProcess, saved_tensors, trained_parameters

BUCKET_BYTES = 64 * 2**20
"""Size of one all-reduce: large enough to hide its latency, small enough to cost little memory."""


class DDP(Distributed, SingleProcess):
    """Any number of ranks with the same weights."""

    mode = "ddp"

    def setup(self, module: nn.Module, optimizer: OptimizerFactory | None, max_grad_norm: float) -> None:
        super().setup(module, optimizer, max_grad_norm)
        for value in saved_tensors(self.module).values():
            dist.broadcast(value.detach(), src=0)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        if last:
            self._sum_gradients()

    @torch.no_grad()
    def _sum_gradients(self) -> None:
        """A parameter without gradient on every rank stays without, as it would in one process."""
        trained = trained_parameters(self.module)
        used = self.all_reduce(torch.tensor([float(p.grad is not None) for p in trained]), "max")
        gradients = []
        for parameter, anywhere in zip(trained, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, in groups of one dtype and about `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.nbytes for t in bucket) + tensor.nbytes > BUCKET_BYTES
        if bucket and (full or bucket[0].dtype != tensor.dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
