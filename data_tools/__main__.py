"""`python -m data_tools TOOL ...`"""

from __future__ import annotations

import sys

from data_tools.synth.cli import main as synth

TOOLS = {"synth": synth}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in TOOLS:
        print(f"usage: python -m data_tools {{{','.join(TOOLS)}}} ...", file=sys.stderr)
        return 2
    return TOOLS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
