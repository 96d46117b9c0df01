"""Entry point of training: `python scripts/train.py experiment=demo`, or the same behind `deepspeed` or `torchrun`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from visd.cli import main

if __name__ == "__main__":
    sys.exit(main())
