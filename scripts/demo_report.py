"""What `make demo` ends with: `summary.json`, `report.html` and a table, from the files its parts have written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.intervals import Interval
from eval.results import EvalResult, ModeResult, read_result
from visd.config import VideoSection
from visd.media.video import decode
from visd.observe.files import read_jsonl, strict_json, write_atomic
from visd.observe.plots import Curve, Series
from visd.observe.records import RolloutRecord, read_dump
from visd.observe.report import FrameView, GroupView, HeadlineRow, MarkedBox, Report, RolloutView, write_report
from visd.reward.parse import parse_response
from visd.reward.rules import box_iou

CURVES = ("reward/correct", "reward/total", "reward/format", "policy/entropy", "rollout/length_mean", "weight/mean")
GROUPS_SHOWN = 6


def conclude(out: Path, wall_seconds: float, console: Console) -> None:
    """Write the summary and the report, print the table."""
    before, after = (read_result(out / name / "results.json") for name in ("eval_before", "eval_after"))
    run = json.loads((out / "rl" / "summary.json").read_text(encoding="utf-8"))
    summary = demo_summary(run, before, after, wall_seconds)
    write_atomic(out / "summary.json", strict_json(summary, indent=2) + "\n")
    write_report(out / "report.html", demo_report(out, run, before, after))
    console.print(headline_table(before, after))
    console.print(f"{out / 'summary.json'}\n{out / 'report.html'}", soft_wrap=True)


def demo_summary(run: dict[str, Any], before: EvalResult, after: EvalResult, wall_seconds: float) -> dict[str, Any]:
    """Accuracy is the share of right answers over the sampled ones; greedy answers stand beside it."""
    sampled = before.modes["sampled"], after.modes["sampled"]
    greedy = before.modes["greedy"], after.modes["greedy"]
    return {
        "method": run["method"],
        "seed": run["seed"],
        "steps": run["steps"],
        "accuracy_before": sampled[0].correct.mean,
        "accuracy_after": sampled[1].correct.mean,
        "greedy_accuracy_before": greedy[0].correct.mean,
        "greedy_accuracy_after": greedy[1].correct.mean,
        "tiou_before": _mean(sampled[0].temporal_iou),
        "tiou_after": _mean(sampled[1].temporal_iou),
        "format_before": sampled[0].format_rate.mean,
        "format_after": sampled[1].format_rate.mean,
        "questions": after.questions,
        "wall_seconds": round(wall_seconds, 1),
        "training_seconds": run["wall_seconds"],
        "videos_decoded": run["videos_decoded"],
        "videos_total": run["videos_total"],
        "drops": run["drops"],
    }


def headline_rows(before: EvalResult, after: EvalResult) -> list[HeadlineRow]:
    """Sampled and greedy accuracy, then every family."""
    rows = []
    for mode in ("sampled", "greedy"):
        a, b = before.modes[mode], after.modes[mode]
        rows.append(_row(f"right answers, {mode}", a.correct, b.correct))
    sampled = before.modes["sampled"], after.modes["sampled"]
    for name in ("temporal_iou", "spatial_iou", "format_rate"):
        a, b = (getattr(mode, name) for mode in sampled)
        if a is not None and b is not None:
            rows.append(_row(name.replace("_", " "), a, b))
    rows += [_row(f"accuracy: {f}", sampled[0].by_family[f], sampled[1].by_family[f]) for f in sampled[1].by_family]
    return rows


def headline_table(before: EvalResult, after: EvalResult) -> Table:
    table = Table(title="test split, before and after (95 % intervals over questions)")
    for name in ("", "before", "after", "difference"):
        table.add_column(name, justify="left" if not name else "right")
    for row in headline_rows(before, after):
        table.add_row(row.name, row.before, row.after, row.difference)
    return table


def demo_report(out: Path, run: dict[str, Any], before: EvalResult, after: EvalResult) -> Report:
    """The page: numbers, curves and a few groups of the last dump on their frames."""
    metrics = read_jsonl(out / "rl" / "metrics.jsonl")
    dumps = sorted((out / "rl" / "rollouts").glob("step_*.jsonl"))
    return Report(
        title=f"visd demo: {run['method']}",
        facts={name: str(run[name]) for name in ("method", "seed", "steps", "wall_seconds", "drops")},
        headline=headline_rows(before, after),
        curves=[curve for name in CURVES if (curve := _curve(metrics, name)) is not None],
        groups=group_views(read_dump(dumps[-1]), out / "world") if dumps else [],
    )


def group_views(records: Sequence[RolloutRecord], root: Path) -> list[GroupView]:
    """The groups that the step learnt most from, one a family where possible."""
    groups: dict[str, list[RolloutRecord]] = {}
    for record in records:
        groups.setdefault(record.sample_id, []).append(record)
    ordered = sorted(groups.values(), key=lambda g: -max(abs(r.advantage or 0.0) for r in g))
    families: dict[str, list[RolloutRecord]] = {}
    for group in ordered:
        families.setdefault(group[0].family, group)
    return [_group_view(group, root) for group in list(families.values())[:GROUPS_SHOWN]]


def _group_view(group: Sequence[RolloutRecord], root: Path) -> GroupView:
    first = group[0]
    gold = [MarkedBox(b["name"], tuple(b["xyxy"]), b["t"], gold=True) for b in first.evidence["boxes"]]
    return GroupView(
        frames=_frames(first, root),
        rollouts=[_rollout_view(record, gold) for record in group],
        boxes=gold,
        windows=[(w[0], w[1]) for w in first.evidence["windows"]],
    )


def _rollout_view(record: RolloutRecord, gold: Sequence[MarkedBox]) -> RolloutView:
    parsed = parse_response(record.text)
    boxes = []
    for claim in parsed.claims:
        if (time := claim.t) is None:
            continue
        near = min(gold, key=lambda g: abs(g.t - time), default=None)
        for box in claim.boxes:
            iou = box_iou(box, near.xyxy) if near is not None else None
            boxes.append(MarkedBox(claim.name, box, time, gold=False, iou=iou))
    return RolloutView(record, boxes)


def _frames(record: RolloutRecord, root: Path) -> list[FrameView]:
    if not record.media:
        return []
    settings = VideoSection(fps=1.0, min_frames=2, max_frames=8, min_pixels=784)
    frames = decode(root / record.media[0], start=None, end=None, fps=None, settings=settings, factor=28)
    return [FrameView(t, pixels) for t, pixels in zip(frames.times, frames.pixels, strict=True)]


def _curve(metrics: Sequence[dict[str, Any]], name: str) -> Curve | None:
    points = [(record["step"], record[name]) for record in metrics if record.get(name) is not None]
    if not points:
        return None
    return Curve(name, "step", [Series(name, [p[0] for p in points], [p[1] for p in points])])


def _row(name: str, before: Interval, after: Interval) -> HeadlineRow:
    return HeadlineRow(name, _text(before), _text(after), f"{100 * (after.mean - before.mean):+.1f}", after.n)


def _text(value: Interval) -> str:
    if value.low is None or value.high is None:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _mean(value: Interval | None) -> float | None:
    return value.mean if value is not None else None
