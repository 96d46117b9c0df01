"""Charades-STA (arXiv 1705.02101): 3,720 queries of the test set, each with one window."""

from __future__ import annotations

import re
from pathlib import Path

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, Seen, media_path
from eval.benchmarks.files import Source
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets
from eval.metrics import recall_at, window_iou
from visd.types import VisdError

HUB = "jiyanggao/TALL (annotations) and AI2's Charades (videos, 480p)"
NEEDS = "charades_sta_test.txt and Charades_v1_480/<id>.mp4"
THRESHOLDS = (0.3, 0.5, 0.7)
_LINE = re.compile(r"(\w+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.+)")


def read(root: Path) -> list[Item]:
    """Lines of `ID START END##SENTENCE.`; a window may end after its video, as published."""
    path = Source(root, HUB, NEEDS).path("charades_sta_test.txt")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise VisdError(f"{path}:{number}: is not `ID START END##SENTENCE`; download the file again.")
        query = match[4].strip().rstrip(".")
        items.append(
            Item(
                id=f"{match[1]}_{number}",
                question=f"When does this happen in the video: {query}?",
                kind="window",
                truth=(float(match[2]), float(match[3])),
                media=media_path("Charades_v1_480", f"{match[1]}.mp4"),
                unit=match[1],
            )
        )
    return items


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
    read=read,
    score=score,
    means={"miou": Mean("iou"), **{f"r1@{t}": Mean(f"r1@{t}") for t in THRESHOLDS}},
    headline="miou",
    protocols=with_presets(OFFICIAL),
)
