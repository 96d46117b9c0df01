"""Peak memory of update and teacher by prompt length and group size: a group's prompt once, or once a rollout.

    python scripts/bench/memory.py [--limit-mb 512] [--write]

The step is that of `prefix.py`, in the tiny shape. With the prompt once, the whole group is one micro-batch. Without, either the whole
group is one too, or each rollout is one by itself, which takes least and is slowest. Peak is how far the memory of a process
grows beyond weights and prompts; each cell has a process of its own. The longest prompt that fits into `--limit-mb` is read off each
curve, between its points along a straight line and beyond the last along the line of the last two; a line that does not rise tells
nothing and reads «?». Linux alone. `--write` puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.bench.peak import MIB, peak_growth
from scripts.bench.prefix import SHAPES, Case, Shape, rows_of, step
from scripts.compare import place_between_markers

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"
MARK = "bench: memory"
"""Names the place of the table in the page."""
PROMPTS = (512, 2048, 8192)
GROUPS = (4, 8, 16)
RESPONSE, PRIVILEGED = 32, 38
"""Tokens."""


@dataclass(frozen=True)
class Way:
    """How a group goes through the model."""

    shared: bool
    together: bool  # the whole group in one micro-batch

    def budget(self, case: Case) -> int:
        """Tokens of a micro-batch."""
        row = case.prompt + case.privileged + case.response
        return row * case.group if self.together else row


WAYS = {
    "once a group": Way(shared=True, together=True),
    "once a rollout, together": Way(shared=False, together=True),
    "once a rollout, one by one": Way(shared=False, together=False),
}


def peak(shape: Shape, case: Case, way: Way) -> float:
    """Bytes."""

    def prepare() -> Callable[[], object]:
        torch.set_num_threads(1)
        policy = shape.policy()
        if way.shared:
            policy.share_prefixes()
        student, teacher = rows_of(case, teacher=False), rows_of(case, teacher=True)
        return lambda: step(policy, student, teacher, way.budget(case))

    return peak_growth(prepare)


def longest(prompts: Sequence[int], peaks: Sequence[float], limit: float) -> int | None:
    """Tokens of a prompt whose peak is the limit, by straight lines through the points; 0 where even none would fit.

    None where the line that would have to tell is flat or falls: prompts too short to show in a process's memory.
    """
    points = list(zip(prompts, peaks, strict=True))
    for (p, a), (q, b) in itertools.pairwise(points):
        if limit <= b or (q, b) == points[-1]:
            return max(0, round(p + (limit - a) * (q - p) / (b - a))) if b > a else None
    raise ValueError("a curve has two points at least")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=int, default=512)
    parser.add_argument("--prompts", type=int, nargs="*", default=PROMPTS, help="at least two lengths, rising")
    parser.add_argument("--groups", type=int, nargs="*", default=GROUPS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    lengths = " | ".join(f"P = {prompt:,}" for prompt in args.prompts)
    table = (
        f"| G | prompt runs | {lengths} | longest in {args.limit_mb:,} MiB |\n|{' --- |' * (len(args.prompts) + 3)}\n"
    )
    print(table, end="", flush=True)
    for group, (name, way) in itertools.product(args.groups, WAYS.items()):
        peaks = [peak(SHAPES[0], Case("", p, RESPONSE, group, PRIVILEGED), way) for p in args.prompts]
        cells = " | ".join(f"{found / MIB:,.0f} MiB" for found in peaks)
        fits = longest(args.prompts, peaks, args.limit_mb * MIB)
        line = f"| {group} | {name} | {cells} | {'?' if fits is None else f'{fits:,}'} |\n"
        print(line, end="", flush=True)
        table += line
    if args.write:
        place_between_markers(PAGE, MARK, f"\n{table}\n")


if __name__ == "__main__":
    main()
