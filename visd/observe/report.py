"""A run as one HTML file: no server, no network, nothing beside it.

The policy's text is not trusted: every value is escaped by the template, images are the only data URIs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from visd.observe.files import write_atomic
from visd.observe.plots import Curve, draw
from visd.observe.records import RolloutRecord
from visd.types import XYXY, Window

THUMBNAIL_WIDTH = 168


@dataclass(frozen=True)
class HeadlineRow:
    """A score before and after training, as text with its interval."""

    name: str
    before: str
    after: str
    difference: str
    questions: int


@dataclass(frozen=True)
class MarkedBox:
    """A box to draw on a frame."""

    name: str
    xyxy: XYXY
    t: float  # s
    gold: bool
    iou: float | None = None  # with the gold box it is compared with


@dataclass(frozen=True)
class FrameView:
    """A sampled frame."""

    t: float  # s
    pixels: Any  # numpy uint8 [H, W, 3]


@dataclass(frozen=True)
class RolloutView:
    """A rollout and what it claims."""

    record: RolloutRecord
    boxes: Sequence[MarkedBox] = ()
    windows: Sequence[Window] = ()  # s


@dataclass(frozen=True)
class GroupView:
    """One prompt's rollouts, its frames and the gold evidence."""

    frames: Sequence[FrameView]
    rollouts: Sequence[RolloutView]  # at least one
    boxes: Sequence[MarkedBox] = ()
    windows: Sequence[Window] = ()


@dataclass(frozen=True)
class Report:
    """All that the page shows; empty parts are left out."""

    title: str
    facts: dict[str, str]
    headline: Sequence[HeadlineRow] = ()
    curves: Sequence[Curve] = ()
    groups: Sequence[GroupView] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("visd.observe").joinpath("report.html.j2").read_text(encoding="utf-8"))
    html = template.render(
        report=report,
        plot=_data_uri(draw(report.curves), "png") if report.curves else "",
        groups=[_group(number, group) for number, group in enumerate(report.groups)],
    )
    write_atomic(path, html)


def _group(number: int, group: GroupView) -> dict[str, Any]:
    """The group's plain values for the template; each thumbnail is embedded once and shown by its class name."""
    first = group.rollouts[0].record
    frames = [
        {"name": f"g{number}f{i}", "t": frame.t, "uri": thumbnail(frame.pixels), **_size(frame)}
        for i, frame in enumerate(group.frames)
    ]
    largest = max((abs(a) for view in group.rollouts for a in _token_advantages(view.record)), default=0.0)
    ordered = sorted(group.rollouts, key=lambda view: -(view.record.reward or 0.0))
    return {
        "record": first,
        "frames": frames,
        "strip": _strip(frames, group.boxes, group.windows, ()),
        "gold_windows": [_window_text(window) for window in group.windows],
        "rollouts": [
            {
                "record": view.record,
                "tokens": token_views(view.record, largest),
                "strip": _claimed_strip(frames, group, view),
                "windows": [_window_text(window) for window in view.windows],
                "boxes": [_box_text(box) for box in view.boxes],
            }
            for view in ordered
        ],
    }


def _claimed_strip(frames: list[dict[str, Any]], group: GroupView, view: RolloutView) -> list[dict[str, Any]]:
    """The frames nearest to what the rollout claims, with its boxes beside the gold ones."""
    if not view.boxes and not view.windows:
        return []
    strip = _strip(frames, (*group.boxes, *view.boxes), group.windows, view.windows)
    return [frame for frame in strip if frame["claimed"] or any(not box["gold"] for box in frame["boxes"])]


def _strip(
    frames: list[dict[str, Any]], boxes: Sequence[MarkedBox], gold: Sequence[Window], claimed: Sequence[Window]
) -> list[dict[str, Any]]:
    shown = [
        {**frame, "boxes": [], "in_gold": _inside(frame["t"], gold), "claimed": _inside(frame["t"], claimed)}
        for frame in frames
    ]
    for box in boxes if shown else ():
        nearest = min(shown, key=lambda frame: abs(frame["t"] - box.t))
        x1, y1, x2, y2 = (100 * min(1.0, max(0.0, value)) for value in box.xyxy)
        place = {"left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1}
        nearest["boxes"].append({**place, "gold": box.gold, "title": _box_text(box)})
    return shown


def token_views(record: RolloutRecord, largest: float) -> list[dict[str, Any]]:
    """Each token's text, colour (green: made more likely, red: less) and hover text."""
    trace = record.tokens
    if trace is None:
        return [{"text": piece, "style": "", "title": ""} for piece in record.pieces]
    views = []
    for t, piece in enumerate(record.pieces):
        advantage = trace.advantage[t]
        strength = min(1.0, abs(advantage) / largest) if largest > 0 else 0.0
        colour = "46, 160, 67" if advantage > 0 else "218, 54, 51"
        title = [
            f"advantage {advantage:+.4f}",
            f"weight {trace.weight[t]:.4f}",
            f"student log-prob {trace.logp[t]:.4f}",
        ]
        if trace.gap is not None:
            title += [f"teacher log-prob {trace.logp[t] + trace.gap[t]:.4f}", f"gap {trace.gap[t]:+.4f}"]
        if trace.clipped is not None:
            title.append("weight clipped" if trace.clipped[t] else "weight not clipped")
        title.append(trace.dimension[t])
        views.append(
            {"text": piece, "style": f"background: rgba({colour}, {0.75 * strength:.3f})", "title": "\n".join(title)}
        )
    return views


def thumbnail(pixels: Any) -> str:
    """A small JPEG as a data URI."""
    image = Image.fromarray(pixels).convert("RGB")
    height = max(1, round(image.height * THUMBNAIL_WIDTH / image.width))
    buffer = io.BytesIO()
    image.resize((THUMBNAIL_WIDTH, height)).save(buffer, format="JPEG", quality=80)
    return _data_uri(buffer.getvalue(), "jpeg")


def _size(frame: FrameView) -> dict[str, int]:
    height, width = frame.pixels.shape[:2]
    return {"width": THUMBNAIL_WIDTH, "height": max(1, round(height * THUMBNAIL_WIDTH / width))}


def _token_advantages(record: RolloutRecord) -> Sequence[float]:
    return record.tokens.advantage if record.tokens is not None else ()


def _inside(t: float, windows: Sequence[Window]) -> bool:
    return any(start <= t <= end for start, end in windows)


def _window_text(window: Window) -> str:
    return f"{window[0]:.2f} s to {window[1]:.2f} s"


def _box_text(box: MarkedBox) -> str:
    kind = "gold" if box.gold else "claimed"
    iou = "" if box.iou is None else f", IoU {box.iou:.2f}"
    return f"{kind}: {box.name} at {box.t:.2f} s{iou}"


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
