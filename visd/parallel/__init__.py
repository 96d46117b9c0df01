"""One interface over one process, DDP, ZeRO and FSDP2."""

from __future__ import annotations

import os
from datetime import timedelta

from visd.config import ConfigError, ParallelSection
from visd.parallel.base import Backend, OptimizerFactory, StepResult
from visd.parallel.place import pick_device, read_place, set_threads
from visd.parallel.single import SingleProcess

__all__ = ["Backend", "OptimizerFactory", "StepResult", "launch"]


def launch(section: ParallelSection, *, bf16: bool, threads: int) -> Backend:
    """Join the other processes of this run, as torchrun or the deepspeed launcher started them.

    Args:
        bf16: compute in bfloat16; float32 otherwise.
        threads: CPU threads of this process; 0 divides the cores among the processes of this machine.

    Raises:
        ConfigError: several processes with `parallel.mode=none`, or an option that the mode does not have.
        VisdError: an environment that no launcher makes, or fewer GPUs than processes.
    """
    place = read_place(os.environ)
    if section.mode == "none" and place.world_size > 1:
        raise ConfigError(
            f"parallel.mode: none is for one process but {place.world_size} were started; "
            "choose ddp, zero2, zero3 or fsdp2, or start without a launcher."
        )
    if section.offload_optimizer and not section.mode.startswith("zero"):
        raise ConfigError(f"parallel.offload_optimizer: works with zero2 and zero3, not with {section.mode}.")
    set_threads(threads, place.local_world_size)
    device = pick_device(place.local_rank)
    if section.mode == "none":
        return SingleProcess(place, device, bf16)

    from visd.parallel.ddp import DDP
    from visd.parallel.distributed import join
    from visd.parallel.fsdp2 import FSDP2
    from visd.parallel.zero import Zero

    join(place, device, timedelta(minutes=section.timeout_minutes), section.lifeline_seconds)
    if section.mode == "ddp":
        return DDP(place, device, bf16)
    if section.mode == "fsdp2":
        return FSDP2(place, device, bf16)
    return Zero(section, place, device, bf16)
