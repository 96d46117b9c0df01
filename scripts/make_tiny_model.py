"""Make a tiny vision-language model of a real architecture: `python scripts/make_tiny_model.py --family qwen2_5_vl --out DIR`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_tools.tiny.model import FAMILIES, TinySettings, make_tiny_model
from visd.types import VisdError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    for item in fields(TinySettings):
        choices = FAMILIES if item.name == "family" else None
        parser.add_argument(
            f"--{item.name.replace('_', '-')}", type=type(item.default), default=item.default, choices=choices
        )
    chosen = vars(parser.parse_args(arguments))
    out: Path = chosen.pop("out")
    try:
        count = make_tiny_model(out, TinySettings(**chosen))
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {chosen['family']}, {count:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
