"""Curves with intervals, drawn without a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


@dataclass(frozen=True)
class Series:
    """One line; `low` and `high` shade its interval where given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Curve:
    """One set of axes."""

    title: str
    x_label: str
    series: Sequence[Series]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the last `window` values; the first ones take what there is."""
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i + 1 - window) : i + 1]]]


def draw(curves: Sequence[Curve], columns: int = 2) -> bytes:
    """All curves in one PNG."""
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(5.6 * min(columns, len(curves)), 3.4 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    for index, curve in enumerate(curves):
        axes = figure.add_subplot(rows, min(columns, len(curves)), index + 1)
        for colour, series in zip(COLOURS * len(curve.series), curve.series):
            axes.plot(series.x, series.y, color=colour, linewidth=1.6, label=series.name)
            if len(series.low):
                axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(curve.title, fontsize=10)
        axes.set_xlabel(curve.x_label, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        if len(curve.series) > 1:
            axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
