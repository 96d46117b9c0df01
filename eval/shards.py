"""Which share of a benchmark's questions a process answers, and on which GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from visd.config import ConfigError

LAUNCHERS = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
"""Variables by which torchrun and srun tell a process its number, how many there are, and its number on the machine."""


def share(shard: str) -> tuple[int, int]:
    """Index and count of a shard.

    Raises:
        ConfigError: it is not `index/count` with 0 <= index < count.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None:
        raise ConfigError(f"shard: {shard!r} is not index/count, for example 0/4, nor auto.")
    index, count = int(match[1]), int(match[2])
    if index >= count:
        raise ConfigError(f"shard: {shard!r} is no index/count with 0 <= index < count.")
    return index, count


def shard_file(out: Path, shard: str) -> Path:
    """Where a shard's answers are."""
    index, count = share(shard)
    return out / ("samples.jsonl" if count == 1 else f"samples-{index:05d}-of-{count:05d}.jsonl")


def own_shard(environment: Mapping[str, str]) -> str:
    """The share of a process that torchrun or srun started.

    Raises:
        ConfigError: neither did.
    """
    for number, count, _ in LAUNCHERS:
        if number in environment and count in environment:
            return f"{environment[number]}/{environment[count]}"
    raise ConfigError("shard: auto needs torchrun or srun, which number the processes; give index/count instead.")


def stand_alone(environment: MutableMapping[str, str]) -> None:
    """Show this process the GPU of its number on the machine alone, and no library that it has siblings.

    To be called before CUDA is first used. Where the launcher shows each process one GPU already, that is it.

    Raises:
        ConfigError: more processes than GPUs on the machine.
    """
    local = next((environment[name] for *_, name in LAUNCHERS if name in environment), None)
    if local is not None:
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        if len(visible) > 1 and int(local) >= len(visible):
            raise ConfigError(f"shard: process {local} of this machine has no GPU, there are {len(visible)}.")
        environment["CUDA_VISIBLE_DEVICES"] = visible[int(local) if len(visible) > 1 else 0] if visible else local
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
