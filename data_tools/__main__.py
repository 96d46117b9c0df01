"""`python -m data_tools TOOL ...`: make, convert, check and choose data; TOOL --help says how."""

from __future__ import annotations

import importlib
import sys

TOOLS = {
    "synth": "data_tools.synth.cli",
    "convert": "data_tools.convert.cli",
    "probe": "data_tools.probe",
    "validate": "data_tools.validate",
    "split": "data_tools.split",
    "mix": "data_tools.mix",
    "sample": "data_tools.sample",
    "filter": "data_tools.filter",
    "stats": "data_tools.stats",
    "annotate": "data_tools.annotate",
    "cache": "data_tools.cache",
}
"""Name to module, imported when it is asked for: some of them take seconds."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in TOOLS:
        print(f"usage: python -m data_tools {{{','.join(TOOLS)}}} ...", file=sys.stderr)
        return 2
    status: int = importlib.import_module(TOOLS[arguments[0]]).main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
