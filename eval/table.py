"""An evaluation as a table for people."""

from __future__ import annotations

from rich.table import Table

from eval.results import EvalResult, ModeResult


def result_rows(result: ModeResult) -> list[tuple[str, str, int]]:
    """Name, value with interval, number of questions."""
    rows = [("accuracy", result.accuracy), *((f"  {name}", value) for name, value in result.by_family.items())]
    rows += [("correct", result.correct), ("format rate", result.format_rate), ("truncated", result.truncation_rate)]
    rows += [
        (n, v) for n, v in (("temporal IoU", result.temporal_iou), ("box IoU", result.spatial_iou)) if v is not None
    ]
    return [(name, str(value), value.n) for name, value in rows]


def result_table(result: EvalResult, title: str) -> Table:
    """Rows: scores; columns: ways of decoding. Intervals are 95 %, over questions."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("questions", justify="right")
    for mode in result.modes:
        table.add_column(mode, justify="right")
    columns = [result_rows(mode) for mode in result.modes.values()]
    for cells in zip(*columns, strict=True):
        table.add_row(cells[0][0], str(cells[0][2]), *(cell[1] for cell in cells))
    for reason, count in result.dropped.items():
        table.add_row(f"dropped: {reason}", str(count), *("counted as wrong" for _ in result.modes))
    return table
