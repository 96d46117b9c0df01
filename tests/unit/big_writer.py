"""Writes a small checkpoint and one that does not fit: `python -m tests.unit.big_writer FOLDER LIMIT`.

LIMIT is the most bytes the kernel lets a file have; 0 sets none.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import torch

from tests.unit.test_checkpoint import IDENTITY, names, state_at, store_in, writers
from visd.parallel.storage import save_tensors
from visd.types import VisdError


def write_big(folder: Path) -> None:
    save_tensors(folder / "w.safetensors", {"w": torch.zeros(1_000_000)})


def main() -> None:
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    store = store_in(folder, keep=1)
    whole = store.write(state_at(1), writers())
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        store.write(state_at(2), {"backend": write_big})
    except VisdError as error:
        print(error)
    store.load(whole, IDENTITY)
    print(names(store))


if __name__ == "__main__":
    main()
