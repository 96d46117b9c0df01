"""One rank of a run that one rank alone has reason to stop: `python -m tests.dist.stop_worker OUT RANK OVERRIDE...`.

Overrides that begin with `!` hold for rank RANK only. What ends this rank is written to OUT.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path

from visd.cli import compose_config
from visd.config import load
from visd.train.launch import run_stage
from visd.types import VisdError

LIMIT = 100
"""Seconds; whoever still waits then says where, and ends."""


def main(out: Path, special: str, overrides: list[str]) -> None:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    rank = os.environ["RANK"]
    own = [o.removeprefix("!") for o in overrides if not o.startswith("!") or rank == special]
    try:
        run_stage(load(compose_config(own)))
    except VisdError as error:
        (out / f"rank_{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
