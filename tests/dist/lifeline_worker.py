"""Groups of processes of which one ends: `python -m tests.dist.lifeline_worker FOLDER CASE...`, a case being WHAT:RANK:RANKS.

RANK does WHAT while the others sleep, as they would in a collective; in `agree` all do the same. All are forked from this
process, so that the libraries are imported once. FOLDER gets the output of every rank and `codes.json`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from tests.dist.spawn import free_port
from visd.config import ParallelSection
from visd.parallel import ddp, fsdp2, launch, lifeline, zero
from visd.types import VisdError

IMPORTED = (ddp, fsdp2, zero)
"""What `launch` imports: here, once for all processes."""
WAIT = 60.0
"""Seconds; far beyond what any test expects."""


def main(folder: Path, cases: list[str]) -> None:
    started = {}
    for case in cases:
        what, special, ranks = case.split(":")
        port = free_port()
        started[case] = [fork(folder, what, int(special), rank, int(ranks), port) for rank in range(int(ranks))]
    codes = {case: [code_of(process) for process in processes] for case, processes in started.items()}
    (folder / "codes.json").write_text(json.dumps(codes))


def fork(folder: Path, what: str, special: int, rank: int, ranks: int, port: int) -> int:
    """A rank's process id."""
    if process := os.fork():
        return process
    os.dup2(os.open(folder / f"{what}:{special}:{ranks}:{rank}.log", os.O_WRONLY | os.O_CREAT), 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    status = 1
    try:
        run(what, special)
        status = 0
    except VisdError as error:
        lifeline.leave(error)
        logging.error("%s", error)
        status = 2
    finally:
        os._exit(status)


def code_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(what: str, special: int) -> None:
    backend = launch(ParallelSection("ddp"), bf16=False, threads=1)
    backend.barrier()
    if backend.rank == special or what == "agree":
        end(what, backend.rank)
    else:
        time.sleep(1 + backend.rank if what == "close" else WAIT)
    backend.close()


def end(what: str, rank: int) -> None:
    """Whatever this rank ends of; nothing for `close`."""
    if what == "raise":
        raise VisdError("the shelf\nis full")
    if what == "agree":
        time.sleep(0.3 * rank)
        raise VisdError("the same for all")
    if what == "die":
        if os.fork() == 0:  # a child that outlives its parent
            time.sleep(WAIT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
