"""scripts/launch for many nodes: real processes of training, two nodes on the loopback, and a few lines in the place of SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.dist.spawn import ENVIRONMENT, free_port
from tests.tree import ROOT

pytestmark = [pytest.mark.dist, pytest.mark.slow]

SCRIPT = "scripts/launch/slurm.sh"
LIMIT = 150.0
SRUN = """#!/usr/bin/env bash
echo "$@" >>"$SAID"
while [ "$1" != bash ]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & PIDS+=($!); done
status=0
for process in "${PIDS[@]}"; do wait "$process" || status=$?; done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
    "show hostnames") [ "$3" = "node[1-2]" ] && printf '127.0.0.1\\n127.0.0.2\\n' ;;
    *) echo "scontrol $*" >>"$SAID" ;;
esac
"""
PDSH = """#!/usr/bin/env bash
[ "$1 $2 $3 $4 $5" = "-S -f 1024 -w 127.0.0.1,127.0.0.2" ] || exit 9
shift 5
[ "$1" = "pkill -f " ] && exit 9
for node in 0 1; do bash -c "${*//%n/$node}" & PIDS+=($!); done
status=0
for process in "${PIDS[@]}"; do wait "$process" || status=$?; done
exit $status
"""
SMALL = (
    "experiment=demo", "parallel=ddp", "method=grpo", "train.prompts_per_step=2", "train.threads=1", "rollout.n=2",
    "rollout.max_new_tokens=4", "tracking.table_every=0", "tracking.progress=false", "data.frames.workers=0",
    "data.train=[text_train.jsonl]", "data.validation=[]", "data.test=[]", "checkpoint.every=0", "checkpoint.export=never",
)  # fmt: skip


def environment(tmp_path: Path) -> dict[str, str]:
    """Of a job on two nodes."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("pdsh", PDSH)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    job = {
        "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_CPUS_ON_NODE": "8",
        "PYTHON": sys.executable, "PROCESSES": "1", "MASTER_PORT": str(free_port()), "SAID": str(tmp_path / "said"),
        "PATH": f"{programs}:{plain['PATH']}",
    }  # fmt: skip
    return plain | ENVIRONMENT | job


def start(tmp_path: Path, *command: str) -> subprocess.Popen[bytes]:
    with (tmp_path / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=log, stderr=subprocess.STDOUT)


def records(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_job_stops_before_its_limit_and_the_run_goes_on(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """It goes on by the other launcher, `deepspeed --hostfile`, whose start is then tested as well."""
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = [*SMALL, f"data.root={small_world}", f"model.path={tiny_qwen2_5_vl}", f"run.dir={out}"]
    job = start(tmp_path, "bash", SCRIPT, *arguments, "train.steps=100000")
    end = time.monotonic() + LIMIT
    try:
        while not records(out):
            assert time.monotonic() < end and job.poll() is None, log.read_text()[-4000:]
            time.sleep(0.1)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(LIMIT) == 0, log.read_text()[-4000:]
    finally:
        job.kill()
    done = len(records(out))
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step_{done:06d}"]
    asked = (tmp_path / "said").read_text()
    assert "--ntasks-per-node 1 " in asked and "--cpus-per-task 8 " in asked and "scontrol requeue 77\n" in asked
    assert not list(ROOT.glob("slurm-77.stop"))

    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    again = start(
        tmp_path, sys.executable, str(Path(sys.executable).with_name("deepspeed")), "--hostfile",
        str(tmp_path / "hosts"), "--no_ssh_check", "--master_addr", "127.0.0.1", "--master_port", str(free_port()),
        "scripts/train.py", *arguments, f"train.steps={done + 1}",
    )  # fmt: skip
    try:
        assert again.wait(LIMIT) == 0, log.read_text()[-4000:]
    finally:
        again.kill()
    assert [record["step"] for record in records(out)] == list(range(1, done + 2))
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] and summary["processes"] == 2 and summary["parallel"] == "ddp"


def test_outside_a_job_it_says_how_it_is_called(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", SCRIPT], cwd=ROOT, env=plain, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "sbatch --nodes 2 --gpus-per-node 8" in done.stdout and "PROCESSES" in done.stdout
    job = environment(tmp_path)
    done = subprocess.run(
        ["bash", str(ROOT / SCRIPT)], cwd=tmp_path, env=job, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2 and "has no scripts/train.py" in done.stderr
