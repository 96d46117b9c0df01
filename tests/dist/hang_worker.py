"""A rank that waits in a training step for one that never comes: `python -m tests.dist.hang_worker MODE FOLDER`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.dist.world import adamw, make_model, micro_loss, rows, train_step
from visd.config import ParallelSection
from visd.parallel import launch


def main(mode: str, folder: Path) -> None:
    backend = launch(ParallelSection(mode, timeout_minutes=0.25), bf16=False, threads=1)
    backend.setup(make_model(), adamw, 1.0)
    train_step(backend, 0)
    if not backend.is_main:
        time.sleep(120)
    started = time.monotonic()
    try:
        # no collective of ours comes before the reduction of gradients
        backend.backward(micro_loss(backend, rows(1)), last=True)
    except RuntimeError:
        (folder / "waited").write_text(str(time.monotonic() - started))
        os._exit(7)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
