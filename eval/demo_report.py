"""What `make demo` ends with: `summary.json`, `report.html` and a table, from the files its parts have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.intervals import Interval
from eval.report import build_report, headline, read_results
from eval.results import EvalResult, read_result
from visd.observe.files import finite_json, read_json, write_atomic


def conclude(out: Path, wall_seconds: float, console: Console) -> None:
    """Write the summary and the report, print the table.

    Args:
        wall_seconds: of this start; parts that were there already took none.
    """
    before, after = out / "eval_before", out / "eval_after"
    run = read_json(out / "rl" / "summary.json")
    results = (read_result(folder / "results.json") for folder in (before, after))
    summary = demo_summary(run, *results) | {"wall_seconds": round(wall_seconds, 1)}
    write_atomic(out / "summary.json", finite_json(summary, indent=2) + "\n")
    build_report(out / "rl", before, after, out / "world", out / "report.html", summary=summary)
    table = Table(title="test split, before and after (95 % intervals)", title_justify="left")
    for name in ("", "before", "after", "difference"):
        table.add_column(name, justify="right" if name else "left")
    for row in headline(read_results(before), read_results(after)):
        table.add_row(row.name, row.before, row.after, row.difference)
    console.print(table)
    console.print(f"{out / 'summary.json'}\n{out / 'report.html'}", soft_wrap=True)


def demo_summary(run: dict[str, Any], before: EvalResult, after: EvalResult) -> dict[str, Any]:
    """`accuracy` is what the reward gives: the IoU for windows and boxes, else 1 or 0. `right` counts answers as right
    or wrong, windows and boxes from an IoU of 0.5."""
    summary = {name: run[name] for name in ("method", "seed", "steps", "videos_decoded", "videos_total", "drops")}
    summary["training_seconds"] = run["wall_seconds"]
    for name, result in (("before", before), ("after", after)):
        sampled, greedy = result.modes["sampled"], result.modes["greedy"]
        summary |= {
            f"accuracy_{name}": sampled.accuracy.mean,
            f"greedy_accuracy_{name}": greedy.accuracy.mean,
            f"right_{name}": sampled.correct.mean,
            f"tiou_{name}": _mean(sampled.temporal_iou),
            f"biou_{name}": _mean(sampled.spatial_iou),
            f"format_{name}": sampled.format_rate.mean,
        }
    return summary | {"questions": after.questions}


def _mean(value: Interval | None) -> float | None:
    return value.mean if value is not None else None
