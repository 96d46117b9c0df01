"""Charades-STA (arXiv 1705.02101): 3,720 queries of the test set, each with one window."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, Seen, media_path
from eval.benchmarks.files import Source, field, read_rows, rows_of
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets
from eval.metrics import recall_at, window_iou
from visd.types import VisdError

HUB = "jiyanggao/TALL (annotations) and AI2's Charades (videos, 480p)"
NEEDS = "charades_sta_test.txt (or data/test-*.parquet) and Charades_v1_480/<id>.mp4"
THRESHOLDS = (0.3, 0.5, 0.7)
_LINE = re.compile(r"(\w+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.+)")


def read(root: Path) -> list[Item]:
    """Lines of `ID START END##SENTENCE.`, or the hub's rows; a window may end after its video, as published."""
    path = Source(root, HUB, NEEDS).path("charades_sta_test.txt", "data/test-*.parquet", "test-*.parquet")
    if path.suffix == ".parquet":
        return [_row(number, row) for number, row in enumerate(read_rows(path), 1)]
    items = []
    for place, row in rows_of(path):  # of a text file
        line, number = row["line"].strip(), int(place.rsplit(":", 1)[1])
        match = _LINE.fullmatch(line)
        if match is None:
            raise VisdError(f"{path}:{number}: is not `ID START END##SENTENCE`; download the file again.")
        items.append(_item(number, match[1], match[4], float(match[2]), float(match[3])))
    return items


def _row(number: int, row: dict[str, Any]) -> Item:
    """A row of the hub's copy: `video` with its suffix, `caption`, `timestamp`."""
    name = f"row {number}"
    start, end = (float(t) for t in field(row, "timestamp", name))
    video = str(field(row, "video", name)).removesuffix(".mp4")
    return _item(number, video, str(field(row, "caption", name)), start, end)


def _item(number: int, video: str, query: str, start: float, end: float) -> Item:
    return Item(
        id=f"{video}_{number}",
        question=f"When does this happen in the video: {query.strip().rstrip('.')}?",
        kind="window",
        truth=(start, end),
        media=media_path("Charades_v1_480", f"{video}.mp4"),
        unit=video,
    )


def score(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    iou = window_iou(reading.value, item.truth)
    return {"iou": iou, **{f"r1@{t}": recall_at(iou, t) for t in THRESHOLDS}}


OFFICIAL = Protocol(
    source="Qwen2.5-VL's sampling; the benchmark fixes no prompt",
    templates={"*": "{question}\nAnswer with the start and end time in seconds, as `start - end`."},
    video=QWEN_VIDEO,
)
BENCHMARK = Benchmark(
    name="charades_sta",
    title="Charades-STA",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={"lmms-lab/charades_sta": ("*.parquet", "*.zip")},
    unique_names=True,
    read=read,
    score=score,
    means={"miou": Mean("iou"), **{f"r1@{t}": Mean(f"r1@{t}") for t in THRESHOLDS}},
    headline="miou",
    protocols=with_presets(OFFICIAL),
)
