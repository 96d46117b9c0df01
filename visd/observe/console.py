"""What a run prints: progress and a readable group of rollouts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from visd.types import DIMENSIONS, RolloutGroup

SHOWN = {  # metric name -> its label in the progress line
    "reward/accuracy": "acc",
    "reward/total": "reward",
    "loss/total": "loss",
    "rollout/length_mean": "len",
    "policy/entropy": "entropy",
    "weight/clip_share": "clip",
}


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def plain_console(stream: TextIO) -> Console:
    """A console as wide as the terminal, or wide enough for a table where there is none."""
    return Console(file=stream, width=None if stream.isatty() else 160)


class Progress:
    """Steps done, rate and remaining time: a bar on a terminal, one line every few seconds elsewhere."""

    def __init__(
        self,
        title: str,
        total: int,
        done: int = 0,
        *,
        unit: str = "step",
        stream: TextIO | None = None,
        every: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title, self._total, self._done, self._unit = title, total, done, unit
        self._stream = stream if stream is not None else sys.stderr
        self._clock, self._every = clock, every
        self._first, self._start, self._printed = done, clock(), -float("inf")
        self.console = plain_console(self._stream)
        self._bar: Bar | None = None
        if self._stream.isatty():
            self._bar = _bar(self.console)
            self._task = self._bar.add_task(title, total=total, completed=done, notes="")
            self._bar.start()

    def advance(self, notes: Mapping[str, float] | None = None, count: int = 1) -> None:
        """`notes`: what to show beside the progress, by label."""
        self._done += count
        text = " ".join(f"{label} {value:.3g}" for label, value in (notes or {}).items())
        now = self._clock()
        if self._bar is not None:
            self._bar.update(self._task, advance=count, notes=f"{self._rate(now)} {text}")
            return
        if now - self._printed >= self._every or self._done >= self._total:
            self._printed = now
            self._stream.write(self._line(now, text) + "\n")
            self._stream.flush()

    def _line(self, now: float, text: str) -> str:
        elapsed, fresh = now - self._start, self._done - self._first
        line = f"{self._title}: {self._done}/{self._total} {self._unit}s"
        if fresh > 0 and elapsed > 0:
            left = elapsed / fresh * max(0, self._total - self._done)
            line += f", {self._rate(now)}, {duration(elapsed)} gone, {duration(left)} left"
        return f"{line}, {text}" if text else line

    def _rate(self, now: float) -> str:
        elapsed, fresh = now - self._start, self._done - self._first
        if elapsed <= 0 or fresh <= 0:
            return ""
        rate = fresh / elapsed
        return f"{rate:.1f} {self._unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[notes]}"),
        console=console,
    )


def step_notes(metrics: Mapping[str, float]) -> dict[str, float]:
    """The few metrics worth a place beside the progress bar."""
    return {label: metrics[name] for name, label in SHOWN.items() if name in metrics}


def group_table(step: int, group: RolloutGroup) -> Table:
    """One group, best rollout first: answer, reward parts, judge scores, advantage."""
    question = " ".join(m.content for m in group.sample.messages if m.role == "user")
    title = f"step {step}  {group.sample.id} ({group.sample.family})  {question}  gold: {group.sample.answer.value}"
    # A part or score that applies to no rollout of the group would only take room from the answers.
    parts = sorted({name for r in group.rewards for name, value in r.parts.items() if value is not None})
    scores = [d for d in DIMENSIONS if any(report.score(d) is not None for report in group.reports)]
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("answer", ratio=1, overflow="fold", min_width=40)
    for header in ["reward", *parts, *(f"judge: {dimension}" for dimension in scores), "advantage"]:
        table.add_column(header.replace("_", " "), justify="right")
    order = sorted(range(len(group.rollouts)), key=lambda i: -group.rewards[i].total) if group.rewards else []
    for i in order:
        reward = group.rewards[i]
        cells = [f"{reward.total:.2f}", *(_cell(reward.parts.get(name)) for name in parts)]
        cells += [_cell(group.reports[i].score(dimension)) for dimension in scores]
        cells.append(f"{group.advantages[i]:+.2f}" if group.advantages else "")
        table.add_row(escape(_short(group.rollouts[i].text)), *cells)
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(text: str, limit: int = 400) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} […] {text[-limit // 2 :]}"
