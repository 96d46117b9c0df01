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
        return {name: self._local(p) for name, p in self.module.named_parameters() if p.requires_grad}

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
            if hasattr(value, "ds_tensor"):
                shard = own_part(value, self.rank)
                start = self.rank * value.ds_tensor.numel()
                shard.copy_(state[name].reshape(-1)[start : start + shard.numel()])
            else:
                value.copy_(state[name])
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
        weights = {name: self._local(value) for name, value in saved_tensors(self.module).items()}
        if self.sharded or self.is_main:
            storage.save_tensors(folder / self._weights_file(), weights)
        storage.save_tensors(folder / f"optimizer_{self.rank:05d}.safetensors", self._optimizer_state())
        if self.is_main:
            storage.write_header(folder, self._header())

    @torch.no_grad()
    def load_training_state(self, folder: Path) -> None:
        self._engine()
        storage.check_header(folder, self._header())
        weights = storage.load_tensors(folder / self._weights_file())
        own = saved_tensors(self.module)
        storage.check_names(own, weights)
        self._release()
        for name, value in own.items():
            self._local(value).copy_(weights[name])
        self._load_optimizer_state(storage.load_tensors(folder / f"optimizer_{self.rank:05d}.safetensors"))

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

    def _weights_file(self) -> str:
        return f"weights_{self.rank:05d}.safetensors" if self.sharded else "weights.safetensors"

    def _local(self, value: Tensor) -> Tensor:
        return own_part(value, self.rank) if hasattr(value, "ds_tensor") else value.detach()

    @contextmanager
    def _gathered(self, value: Tensor) -> Iterator[None]:
        if not hasattr(value, "ds_tensor"):
            yield
            return
        with self._deepspeed.zero.GatheredParameters([value]):
            yield

    def _header(self) -> storage.Header:
        return storage.Header(self.mode, self.world_size, self.fingerprint())

    def _masters(self) -> list[Tensor]:
        """This rank's float32 parts, flat, one a group; the optimiser's state is kept by them."""
        optimizer = self.engine.optimizer
        return list(
            optimizer.fp32_partitioned_groups_flat if self.sharded else optimizer.single_partition_of_fp32_groups
        )

    def _optimizer_state(self) -> dict[str, Tensor]:
        inner = self.engine.optimizer.optimizer
        tensors = {}
        for i, master in enumerate(self._masters()):
            tensors[f"{i}/master"] = master
            tensors |= {f"{i}/{key}": value for key, value in inner.state.get(master, {}).items()}
        return tensors

    def _load_optimizer_state(self, tensors: dict[str, Tensor]) -> None:
        inner = self.engine.optimizer.optimizer
        masters = self._masters()
        for master in masters:
            inner.state.pop(master, None)
        for path, value in tensors.items():
            index, _, key = path.partition("/")
            master = masters[int(index)]
            if key == "master":
                master.copy_(value)
            else:
                # torch keeps the step count, a scalar, on the CPU unless the optimiser is fused
                inner.state.setdefault(master, {})[key] = value.to(master.device) if value.ndim else value


def own_part(parameter: Any, rank: int) -> Tensor:
    """A flat view of what `rank` stores of a ZeRO-3 parameter, without the padding at the parameter's end.

    The padding is uninitialised memory, so that no norm may see it. Writing to the view changes the model at the next
    gather.
    """
    shard: Tensor = parameter.ds_tensor.data
    own = min(max(parameter.ds_numel - rank * shard.numel(), 0), shard.numel())
    return shard.narrow(0, 0, own)


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
