"""What the command lines of the tools share: arguments, progress, errors in one sentence, exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from data_tools.io.shards import ShardReport
from visd.types import VisdError

Advance = Callable[[int, int, str], None]
"""Done, of how much, and what to say beside the bar."""


def tool_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m data_tools {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def guarded(work: Callable[[], int]) -> int:
    """The exit status of a tool; an error made for users is one sentence and status 2."""
    try:
        return work()
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"error: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 2


def check_output(out: Path, overwrite: bool) -> None:
    """Raise VisdError if `out` is a folder, or is there and may not be replaced."""
    if out.is_dir():
        raise VisdError(f"{out}: is a folder; give the file that is to be written")
    if out.exists() and not overwrite:
        raise VisdError(f"{out}: is there already; give another name, or --overwrite")


def check_ending(out: Path, ending: str) -> None:
    """Raise VisdError unless the name of an output ends as its kind does."""
    if out.suffix != ending:
        raise VisdError(f"{out}: the name must end with {ending}")


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Arguments of a run by which prompts are made."""
    help_ = "arguments of scripts/train.py that decide the prompt"
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE", help=help_)


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """A bar on a terminal; elsewhere nothing, since the tools end with what they did."""
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining} {postfix}"
    with tqdm(desc=title, total=1, file=sys.stderr, disable=None, bar_format=layout) as bar:

        def advance(done: int, of: int, notes: str) -> None:
            if bar.disable:
                return
            bar.n, bar.total = done, of
            bar.set_postfix_str(notes)

        yield advance


def counted(counts: Mapping[str, int]) -> str:
    """`3 letter, 1 path`, the most first."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def summary(report: ShardReport) -> str:
    """What became of rows, in one sentence."""
    text = f"{report.rows} rows, {report.written} written, {sum(report.dropped.values())} dropped"
    if report.dropped:
        text += f" ({counted(report.dropped)})"
    return f"{text}; notes: {counted(report.notes)}" if report.notes else text
