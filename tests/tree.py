"""The files of the project, for the tests that read them."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = {".venv", "outputs", "multirun", "wandb", "build", "dist", "__pycache__"}
"""Top-level folders, beside hidden ones, that an unpacked archive may have and git would ignore."""


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is tracked, or would be after `git add`; in an unpacked archive, every file that was not made."""
    if not (ROOT / ".git").exists():
        return tuple(sorted(path for path in ROOT.rglob("*") if path.is_file() and not _made(path)))
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(sorted(path for path in paths if path.is_file()))


def _made(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    first = parts[0]
    hidden = first.startswith(".") and first not in (".ci", ".gitignore")
    return hidden or first in MADE or first.endswith(".egg-info") or "__pycache__" in parts


def with_suffix(*suffixes: str) -> tuple[Path, ...]:
    return tuple(path for path in project_files() if path.suffix in suffixes)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
