"""Puts a run's report together: scores before and after, curves, the last groups with their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from eval.intervals import Interval, paired_difference
from eval.results import QuestionResult, question_from
from visd.config import VideoSection
from visd.media.video import decode, decode_image
from visd.observe.console import duration
from visd.observe.files import read_json, read_jsonl
from visd.observe.plots import Curve, Series, smooth
from visd.observe.records import RolloutRecord, read_dump
from visd.observe.report import FrameView, GroupView, HeadlineRow, MarkedBox, Report, RolloutView, write_report
from visd.reward.parse import parse_box, parse_response, parse_window
from visd.reward.rules import box_iou
from visd.types import XYXY, Media, VisdError

SMOOTHING = 5
SHOWN = (  # (title, metrics of one set of axes)
    ("accuracy of rollouts", ("reward/accuracy",)),
    ("reward parts", ("reward/format", "reward/temporal_iou", "reward/spatial_iou")),
    ("log teacher - log student", ("gap/right_mean", "gap/wrong_mean")),
    ("token weights that hit their bound, share", ("weight/clip_share",)),
    ("response length, tokens", ("rollout/length_mean",)),
    ("entropy, nats", ("policy/entropy",)),
    ("teacher's way over student's way", ("teacher/displacement_ratio",)),
    ("gradient norm", ("optim/grad_norm",)),
)


def build_report(
    run_dir: Path,
    before: Path,
    after: Path,
    root: Path,
    out: Path,
    summary: Mapping[str, Any] | None = None,
    groups: int = 3,
    frames: int = 16,
) -> None:
    """Write the report of a run to `out`.

    Args:
        before, after: folders of eval.run on the same manifest.
        root: folder of the media.
        summary: facts at the head of the page; default: the run's `summary.json`.
        groups: how many groups of the last dump to show.
        frames: most frames to show of a video.
    """
    video: Any = OmegaConf.to_object(
        OmegaConf.merge(VideoSection, OmegaConf.load(run_dir / "config.yaml").prompt.video)
    )
    if summary is None:
        summary = read_json(run_dir / "summary.json")
    report = Report(
        title=f"Training with {summary['method']}",
        facts=_facts(summary),
        headline=headline(read_results(before), read_results(after)),
        curves=run_curves(read_jsonl(run_dir / "metrics.jsonl")),
        groups=[group_view(records, video, root, frames) for records in _last_groups(run_dir, groups)],
    )
    write_report(out, report)


def headline(before: Sequence[QuestionResult], after: Sequence[QuestionResult]) -> list[HeadlineRow]:
    """Accuracy in all and by family, IoU, format and truncation, before and after, sampled and greedy."""
    rows = []
    for mode in ("sampled", "greedy"):
        if not (before[0].attempts(mode) and after[0].attempts(mode)):
            continue
        rows.append(_row(f"accuracy, {mode}", before, after, mode, lambda a: a.accuracy))
        if mode == "greedy":
            continue
        for family in sorted({result.family for result in before}):
            some = [[r for r in side if r.family == family] for side in (before, after)]
            rows.append(_row(f"    {family}", some[0], some[1], mode, lambda a: a.accuracy))
        for part, name in (("temporal_iou", "temporal IoU"), ("spatial_iou", "box IoU"), ("format", "format rate")):
            some = [[r for r in side if r.attempts(mode)[0].parts.get(part) is not None] for side in (before, after)]
            if some[0] and some[1]:
                rows.append(_row(name, some[0], some[1], mode, lambda a, part=part: a.parts[part] or 0.0))
        rows.append(_row("truncated", before, after, mode, lambda a: a.truncated))
    return rows


def _row(
    name: str, before: Sequence[QuestionResult], after: Sequence[QuestionResult], mode: Any, pick: Any
) -> HeadlineRow:
    def means(side: Sequence[QuestionResult]) -> dict[str, float]:
        return {r.sample_id: _mean([pick(attempt) for attempt in r.attempts(mode)]) for r in side}

    def shown(side: dict[str, float]) -> str:
        return str(paired_difference(dict.fromkeys(side, 0.0), side))

    one, two = means(before), means(after)
    return HeadlineRow(name, shown(one), shown(two), _signed(paired_difference(one, two)), len(one))


def _signed(value: Interval) -> str:
    bounds = "" if value.low is None or value.high is None else f" [{value.low:+.3f}, {value.high:+.3f}]"
    return f"{value.mean:+.3f}{bounds}"


def run_curves(records: Sequence[dict[str, Any]]) -> list[Curve]:
    """The metrics that tell most, each smoothed over a few steps; metrics that a run does not have are left out."""
    shown = []
    for title, names in SHOWN:
        series = [s for name in names if (s := _series(records, name)) is not None]
        if series:
            shown.append(Curve(f"{title} (mean of {SMOOTHING} steps)", "optimiser step", series))
    return shown


def _series(records: Sequence[dict[str, Any]], name: str) -> Series | None:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    if not points:
        return None
    return Series(name, [step for step, _ in points], smooth([value for _, value in points], SMOOTHING))


def _last_groups(run_dir: Path, count: int) -> list[list[RolloutRecord]]:
    """The groups of the last dump whose rollouts differ most."""
    dumps = sorted((run_dir / "rollouts").glob("step_*.jsonl"))
    if not dumps:
        return []
    groups = [list(part) for _, part in groupby(read_dump(dumps[-1]), key=lambda record: record.sample_id)]
    return sorted(groups, key=lambda records: -max(abs(r.advantage or 0.0) for r in records))[:count]


def group_view(records: Sequence[RolloutRecord], video: VideoSection, root: Path, frames: int) -> GroupView:
    """One group with the frames of its first video or image, the evidence and what each answer claims."""
    evidence = records[0].evidence
    gold = [MarkedBox(box["name"], tuple(box["xyxy"]), box["t"], gold=True) for box in evidence["boxes"]]
    if records[0].answer["type"] == "box" and not gold:
        gold = [MarkedBox("answer", tuple(records[0].answer["value"]), 0.0, gold=True)]
    return GroupView(
        frames=media_frames(records[0], video, root, frames),
        rollouts=[rollout_view(record, gold) for record in records],
        boxes=gold,
        windows=[(start, end) for start, end in evidence["windows"]],
    )


def rollout_view(record: RolloutRecord, gold: Sequence[MarkedBox]) -> RolloutView:
    """A rollout with the boxes and windows of its text, each box with its IoU with the nearest gold one of its name."""
    parsed = parse_response(record.text)
    boxes = [
        _claimed(claim.name, xyxy, claim.t, gold)
        for claim in parsed.claims
        if claim.t is not None
        for xyxy in claim.boxes
    ]
    windows = []
    answer_type = record.answer["type"]
    if answer_type == "box" and (answer := parse_box(parsed.answer or "")) is not None:
        boxes.append(_claimed("answer", answer, gold[0].t if gold else 0.0, gold))
    if answer_type == "window" and (window := parse_window(parsed.answer or "")) is not None:
        windows.append(window)
    return RolloutView(record, boxes, windows)


def _claimed(name: str, xyxy: XYXY, t: float, gold: Sequence[MarkedBox]) -> MarkedBox:
    same = [box for box in gold if box.name == name or name == "answer"]
    nearest = min(same, key=lambda box: abs(box.t - t), default=None)
    return MarkedBox(name, xyxy, t, gold=False, iou=None if nearest is None else box_iou(xyxy, nearest.xyxy))


def media_frames(record: RolloutRecord, video: VideoSection, root: Path, most: int) -> list[FrameView]:
    """The frames that the policy saw of the first video or image, thinned out evenly; none for text.

    Raises:
        VisdError: the file is not there or cannot be decoded.
    """
    if not record.media:
        return []
    media = Media(path=record.media[0], **record.clips[0])
    small = replace(video, min_pixels=784, max_pixels=100352, total_pixels=40_000_000)
    if media.kind == "image":
        frames = decode_image(root / media.path, settings=small, factor=28)
    else:
        frames = decode(root / media.path, start=media.start, end=media.end, fps=media.fps, settings=small, factor=28)
    count = len(frames.times)
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
    return [FrameView(frames.times[i], frames.pixels[i]) for i in chosen]


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    for name, value in summary.items():
        if name == "wall_seconds":
            facts["wall-clock"] = duration(value)
        elif isinstance(value, dict):
            facts[name] = ", ".join(f"{key}: {count}" for key, count in value.items()) or "none"
        else:
            facts[name] = f"{value:.3f}" if isinstance(value, float) else str(value)
    return facts


def read_results(folder: Path) -> list[QuestionResult]:
    path = folder / "samples.jsonl"
    if not path.is_file():
        raise VisdError(f"{folder} holds no samples.jsonl; run eval.run with out={folder} first.")
    return [question_from(fields, str(path)) for fields in read_jsonl(path)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
