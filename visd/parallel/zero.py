"""ZeRO-2 and ZeRO-3 by DeepSpeed: optimiser state and gradients, in ZeRO-3 also weights, divided among ranks.

Masters and optimiser state are float32 in every case; on a GPU the weights of the module are bfloat16.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from visd.config import ConfigError, ParallelSection
from visd.parallel import storage
from visd.parallel.base import OptimizerFactory, StepResult
from visd.parallel.distributed import Distributed
from visd.parallel.hooks import without_hooks
from visd.parallel.masters import Piece, load_optimizer, optimizer_parts, own_part, zero2_pieces, zero3_pieces
from visd.parallel.place import Place
from visd.parallel.single import saved_tensors, set_learning_rate, trained_parameters
from visd.types import VisdError


class Zero(Distributed):
    """A DeepSpeed engine. Without an optimiser every rank simply keeps the whole module."""

    def __init__(self, section: ParallelSection, place: Place, device: torch.device, bf16: bool):
        self.mode = section.mode
        self.section = section
        self.rank, self.world_size, self.local_rank = place.rank, place.world_size, place.local_rank
        self.device = device
        self.bf16 = bf16
        self.module: nn.Module = nn.Identity()
        self.engine: Any = None
        self._deepspeed: Any = None

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        return self.mode == "zero3" and self.engine is not None

    def setup(self, module: nn.Module, optimizer: OptimizerFactory | None, max_grad_norm: float) -> None:
        self.module = module.to(self.device)
        if optimizer is None:
            return
        timeout = timedelta(minutes=self.section.timeout_minutes)
        os.environ.setdefault("LOCAL_RANK", str(self.local_rank))  # DeepSpeed insists on it, also in a plain start
        self._deepspeed = import_deepspeed(self.device, timeout)
        self.engine = self._deepspeed.initialize(
            model=module,
            optimizer=optimizer(trained_parameters(module)),
            config=engine_config(self.section, self.bf16, max_grad_norm, self.device),
        )[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.module if self.engine is None else self.engine)(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """DeepSpeed averages over ranks and, unless told not to, over micro-batches; here gradients are sums."""
        engine = self._engine()
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, lr: float) -> StepResult:
        engine = self._engine()
        set_learning_rate(engine.optimizer, lr)
        engine.step()
        return StepResult(float(engine.get_global_grad_norm()), not engine.was_step_applied())

    def forget_steps(self) -> None:
        self._engine().optimizer.optimizer.state.clear()

    @contextmanager
    def whole_weights(self) -> Iterator[nn.Module]:
        with torch.no_grad():
            if not self.sharded:
                yield self.module
                return
            self._release()
            offload = self.engine.optimizer.parameter_offload
            handles = [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]
            with (
                self._deepspeed.zero.GatheredParameters(list(self.module.parameters())),
                without_hooks(handles),
            ):
                yield self.module

    def local_shards(self) -> dict[str, Tensor]:
        self._release()
        return {name: self._part(p).values for name, p in self.module.named_parameters() if p.requires_grad}

    def shard_starts(self) -> dict[str, int]:
        return {name: self._part(p).start for name, p in self.module.named_parameters() if p.requires_grad}

    def whole_tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        self._release()
        for name, value in self.module.named_parameters():
            if name in names:
                with self._gathered(value):
                    yield name, value.detach()

    def full_state(self) -> dict[str, Tensor]:
        state = {}
        for name, value in saved_tensors(self.module).items():
            with self._gathered(value):
                if self.is_main:
                    state[name] = value.detach().to("cpu", copy=True)
        return state

    @torch.no_grad()
    def load_full_state(self, state: dict[str, Tensor]) -> None:
        own = saved_tensors(self.module)
        storage.check_names(own, state)
        self._release()
        for name, value in own.items():
            part = self._part(value)
            count = part.values.numel()
            part.values.copy_(state[name].reshape(-1)[part.start : part.start + count].view(part.values.shape))
        if self.engine is not None:
            self.engine.optimizer.refresh_fp32_params()

    def fingerprint(self) -> str:
        tensors = saved_tensors(self.module)
        return storage.model_fingerprint(
            (name, tuple(getattr(t, "ds_shape", t.shape)), t.dtype) for name, t in tensors.items()
        )

    def save_training_state(self, folder: Path) -> None:
        self._engine()
        folder.mkdir(parents=True, exist_ok=True)
        if self.sharded or self.is_main:
            weights = {name: self._part(value) for name, value in saved_tensors(self.module).items()}
            storage.save_parts(folder, "weights", self.rank, weights)
        storage.save_parts(folder, "optimizer", self.rank, optimizer_parts(self.engine.optimizer, self.pieces()))
        if self.is_main:
            storage.write_header(folder, storage.Header(self.mode, self.world_size, self.fingerprint()))

    @torch.no_grad()
    def load_training_state(self, folder: Path) -> None:
        self._engine()
        storage.check_header(folder, self.fingerprint())
        weights = storage.Parts(folder, "weights")
        own = saved_tensors(self.module)
        storage.check_names(own, weights.names)
        self._release()
        for name, value in own.items():
            storage.fill(self._part(value), weights, name)
        self.engine.optimizer.refresh_fp32_params()
        load_optimizer(self.engine.optimizer, self.pieces(), storage.Parts(folder, "optimizer"))

    def pieces(self) -> list[list[Piece]]:
        """What lies where in this rank's masters, one list for each."""
        names = {id(value): name for name, value in self.module.named_parameters()}
        find = zero3_pieces if self.sharded else zero2_pieces
        return find(self.engine.optimizer, names, self.rank)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.destroy()
        super().close()

    def _release(self) -> None:
        """Drop whole parameters that are still gathered, so that the next forward gathers what the shards hold."""
        if self.sharded:
            self.engine.optimizer.empty_partition_cache()

    def _engine(self) -> Any:
        if self.engine is None:
            raise VisdError("this backend was set up for inference only: it has no optimiser.")
        return self.engine

    def _part(self, value: Tensor) -> storage.Part:
        if not hasattr(value, "ds_tensor"):
            return storage.Part(value.detach())
        return storage.Part(own_part(value, self.rank), self.rank * value.ds_tensor.numel())

    @contextmanager
    def _gathered(self, value: Tensor) -> Iterator[None]:
        if not hasattr(value, "ds_tensor"):
            yield
            return
        with self._deepspeed.zero.GatheredParameters([value]):
            yield


def engine_config(section: ParallelSection, bf16: bool, max_grad_norm: float, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration; batch sizes in it mean nothing here, `backward` says what is the last micro-batch."""
    zero: dict[str, Any] = {
        "stage": int(section.mode.removeprefix("zero")),
        "overlap_comm": device.type == "cuda",
        # No parameter, however small, stays gathered: what the shards hold is what the next forward computes with.
        "stage3_param_persistence_threshold": 0,
    }
    if section.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 2**31,
    }


def import_deepspeed(device: torch.device, timeout: timedelta) -> Any:
    """DeepSpeed, joined to the process group that exists, with our time limit on its own group too.

    Raises:
        ConfigError: it is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise ConfigError("parallel.mode: zero2 and zero3 need DeepSpeed; pip install 'visd[deepspeed]'.") from error
    from deepspeed.utils import groups, logger

    logger.setLevel(logging.WARNING)
    # torch renames its collectives and DeepSpeed calls them by the old names, at every gather
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if device.type == "cpu":
        # It would be compiled for most of a minute at the first start and serves tensor-parallel inference only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    dist.distributed_c10d._set_pg_timeout(timeout, groups._clone_world_group())
    return deepspeed
