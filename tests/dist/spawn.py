"""Starting a worker script as several processes, as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.tree import ROOT

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(script: str, arguments: list[str], world_size: int, logs: Path) -> list[subprocess.Popen[bytes]]:
    """Start `tests.dist.<script>` once a rank; `world_size=0` is a plain start, without a launcher's variables."""
    logs.mkdir(parents=True, exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    port, processes = free_port(), []
    for rank in range(max(1, world_size)):
        launcher = {
            "RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = plain | ENVIRONMENT | ({k: str(v) for k, v in launcher.items()} if world_size else {})
        with (logs / f"rank_{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"tests.dist.{script}", *arguments],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def wait(processes: list[subprocess.Popen[bytes]], timeout: float) -> list[int]:
    """Exit codes; whoever is left after `timeout` seconds, or after the first failure, is killed."""
    end = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if any(process.poll() not in (None, 0) for process in processes):
                time.sleep(1.0)
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return [process.wait() for process in processes]


def run(script: str, arguments: list[str], world_size: int, logs: Path, timeout: float = 120) -> None:
    """Run to the end; a failure shows what every rank printed."""
    codes = wait(start(script, arguments, world_size, logs), timeout)
    if any(codes):
        text = "\n".join(f"--- {path.name}\n{path.read_text()[-6000:]}" for path in sorted(logs.glob("rank_*.log")))
        raise AssertionError(f"exit codes {codes}\n{text}")
