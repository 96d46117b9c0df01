"""NExT-GQA (arXiv 2309.01327): an answer and the window that shows it; Acc@GQA wants both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, Seen, media_path
from eval.benchmarks.files import Source, field
from eval.benchmarks.protocols import LETTER_ONLY, QWEN_VIDEO, with_presets
from eval.metrics import best_window_iop, best_window_iou
from visd.data.manifest import LETTERS
from visd.types import VisdError

HUB = "doc-doc/NExT-GQA"
NEEDS = "test.csv, gsub_test.json, map_vid_vidorID.json and NExTVideo/<folder>/<id>.mp4"
OPTIONS = ("a0", "a1", "a2", "a3", "a4")


def read(root: Path) -> list[Item]:
    """Each question is asked twice, for its answer and for its window; both are one unit."""
    source = Source(root, HUB, NEEDS)
    grounds, folders = source.json("gsub_test.json"), source.json("map_vid_vidorID.json")
    items = []
    for row in source.rows("test.csv"):
        video, question = str(field(row, "video_id", HUB)), str(field(row, "qid", HUB))
        name = f"{video}_{question}"
        windows = grounds.get(video, {}).get("location", {}).get(question)
        if windows is None:
            continue  # the grounded part of the test set is what gsub_test.json names
        if video not in folders:
            raise VisdError(f"map_vid_vidorID.json: has no video {video!r}; download the file again.")
        items += _pair(name, row, windows, f"{folders[video]}.mp4")
    return items


def _pair(name: str, row: dict[str, Any], windows: list[list[float]], video: str) -> list[Item]:
    options = tuple(str(field(row, key, name)).strip() for key in OPTIONS)
    answer = str(field(row, "answer", name)).strip()
    if answer not in options:
        raise VisdError(f"{name}: the answer {answer!r} is none of the options {list(options)}.")
    asked = str(field(row, "question", name)).strip().rstrip("?") + "?"
    shared: dict[str, Any] = {
        "media": media_path("NExTVideo", video),
        "categories": {"type": str(row.get("type", "unknown"))},
        "unit": name,
    }
    truth = tuple((float(start), float(end)) for start, end in windows)
    letter = LETTERS[options.index(answer)]
    return [
        Item(id=f"{name}_what", question=asked, kind="letter", truth=letter, options=options, **shared),
        Item(
            id=f"{name}_when",
            question=f"When does the video show the answer to: {asked}",
            kind="window",
            truth=truth,
            **shared,
        ),
    ]


def score(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    if item.kind == "letter":
        return {"qa": float(reading.value == item.truth)}
    iop, iou = best_window_iop(reading.value, item.truth), best_window_iou(reading.value, item.truth)
    at = {f"{name}@{t}": float(value >= t) for name, value in (("iop", iop), ("iou", iou)) for t in (0.3, 0.5)}
    return {"iop": iop, "iou": iou, **at}


OFFICIAL = Protocol(
    source="Qwen2.5-VL's sampling; the benchmark fixes no prompt",
    templates={
        "window": "{question}\nAnswer with the start and end time in seconds, as `start - end`.",
        "*": LETTER_ONLY,
    },
    video=QWEN_VIDEO,
)
BENCHMARK = Benchmark(
    name="nextgqa",
    title="NExT-GQA",
    split="test",
    hub=HUB,
    needs=NEEDS,
    read=read,
    score=score,
    means={
        "acc@gqa": Mean("qa*iop@0.5"),
        "acc@qa": Mean("qa"),
        "miop": Mean("iop"),
        "miou": Mean("iou"),
        **{f"{name}@{t}": Mean(f"{name}@{t}") for name in ("iop", "iou") for t in (0.3, 0.5)},
    },
    headline="acc@gqa",
    protocols=with_presets(OFFICIAL),
)
