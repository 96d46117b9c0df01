"""Children that write checkpoints until they are killed, and a parent that looks at what they left.

`main()` takes a folder and a number of rounds from the command line and prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.unit.test_checkpoint import IDENTITY, state_at, store_in, writers
from visd.parallel.storage import load_tensors


def write_forever(folder: Path, step: int, report: int) -> None:
    """Clean up like a new start, then write step after step; each finished one is reported."""
    store = store_in(folder, keep=2)
    store.clean(after=step)
    while True:
        step += 1
        store.write(state_at(step), writers(float(step)))
        os.write(report, f"{step}\n".encode())


def one_round(folder: Path, step: int, whole: int, seconds: float) -> int:
    """Newest step that loads whole after a child was killed `seconds` after its `whole`-th checkpoint."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            write_forever(folder, step, write)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as pipe:
        reported = [int(pipe.readline()) for _ in range(whole)]
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child ended by itself"
        reported += [int(line) for line in pipe]
    store = store_in(folder)
    newest = store.latest()
    if newest is None:
        assert not reported
        return 0
    state = store.load(newest, IDENTITY)
    value = load_tensors(newest / "backend" / "weights.safetensors")["w"]
    assert value.unique().tolist() == [float(state.step)]
    assert state.step >= max([step, *reported])
    return state.step


def time_of_a_write(folder: Path) -> float:
    started = time.monotonic()
    store_in(folder).write(state_at(1), writers())
    return time.monotonic() - started


def main() -> None:
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(0)
    duration = min(time_of_a_write(folder / "timed") for _ in range(3))
    step = left = 0
    for _ in range(rounds):
        step = one_round(folder, step, chance.randrange(2), chance.uniform(0, 2 * duration))
        left += any((folder / "checkpoints").glob(".tmp-*"))
    print(json.dumps({"rounds": rounds, "steps": step, "left_temporary": left}))
