"""Shares of a benchmark under a launcher, and the GPU of each process."""

from __future__ import annotations

import pytest

from eval.shards import own_shard, stand_alone
from visd.config import ConfigError

TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}


def test_the_launcher_says_which_share() -> None:
    assert own_shard(TORCHRUN) == "9/16" and own_shard(SRUN) == "3/4"
    assert own_shard({**SRUN, **TORCHRUN}) == "9/16"  # torchrun inside a SLURM job counts its own processes
    with pytest.raises(ConfigError, match="auto needs torchrun or srun"):
        own_shard({"SLURM_PROCID": "0"})


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        (TORCHRUN, "1"),
        ({**TORCHRUN, "CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ({**SRUN, "CUDA_VISIBLE_DEVICES": "5"}, "5"),  # SLURM bound one to each task
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, "4,6"),
    ],
)
def test_each_process_sees_its_own_gpu_and_no_siblings(environment: dict[str, str], visible: str) -> None:
    own = dict(environment)
    stand_alone(own)
    assert own["CUDA_VISIBLE_DEVICES"] == visible and not own.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU, there are 2"):
        stand_alone({**TORCHRUN, "LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "0,1"})
