"""Write a run's report as one HTML file.

    python scripts/report.py run=outputs/demo/rl before=outputs/demo/eval_before after=outputs/demo/eval_after \\
        root=outputs/demo/world out=outputs/demo/report.html
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.report import build_report
from visd.types import VisdError

NAMES = ("run", "before", "after", "root", "out")


def main() -> int:
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if sorted(given) != sorted(NAMES):
        print(f"error: give {', '.join(f'{name}=PATH' for name in NAMES)}, each once.", file=sys.stderr)
        return 2
    paths = {name: Path(value) for name, value in given.items()}
    try:
        build_report(paths["run"], paths["before"], paths["after"], paths["root"], paths["out"])
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
