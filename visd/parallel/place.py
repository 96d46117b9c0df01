"""Who and where this process is, as torchrun or the deepspeed launcher told it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from visd.types import VisdError


@dataclass(frozen=True)
class Place:
    """A process among its peers; a plain start is the only process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # processes on this machine


def read_place(environment: Mapping[str, str]) -> Place:
    """The place that a launcher put into the environment.

    Raises:
        VisdError: a variable is no number, or the launcher set only some of them.
    """
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return Place()
    local_sizes = [environment[name] for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in environment]
    try:
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        local_world_size = int(local_sizes[0]) if local_sizes else world_size
    except KeyError as error:
        raise VisdError(
            f"the environment names RANK or WORLD_SIZE but not {error.args[0]}: start with torchrun or deepspeed, "
            "or unset both for one process."
        ) from None
    except ValueError as error:
        raise VisdError(f"RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE is no whole number ({error}).") from None
    return Place(rank, world_size, local_rank, local_world_size)


def pick_device(local_rank: int) -> torch.device:
    """This process's GPU, or the CPU where there is none.

    Raises:
        VisdError: more processes than GPUs on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise VisdError(
            f"process {local_rank} of this machine has no GPU of its own ({torch.cuda.device_count()} GPUs): "
            "start one process a GPU."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def set_threads(threads: int, local_world_size: int) -> None:
    """Use `threads` CPU threads; 0 divides the usable cores among the processes of this machine."""
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_world_size))
