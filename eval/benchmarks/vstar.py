"""V-STaR (arXiv 2503.11495): 2,094 videos; what, then when and where in two orders.

"What" is graded 0-3 by a language model in the published evaluation, 2 and more being right. Give its grades as
`grades.jsonl` (`{"id", "grade"}` a line) beside the annotations; without that file the answer is right if it holds the
true answer's words in order, which is not the published metric, and the results say so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, Seen, media_path
from eval.benchmarks.files import Source, field, read_rows
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets
from eval.vstar import Columns, mean_am, mean_lgm, when_iou, where_iou
from visd.reward.parse import normalise

HUB = "V-STaR-Bench/V-STaR"
NEEDS = "V_STaR_test.json and the videos as videos/<vid>.mp4"
MODES = ("compatible", "strict")
COLUMNS = ("what", "when_1", "when_2", "where_1", "where_2")
_SECONDS = (
    "You must output a JSON object in the answer: the keys are whole seconds (as strings), the values the bounding box in "
    "[x1, y1, x2, y2] format."
)


def read(root: Path) -> list[Item]:
    """Five questions a video, one unit."""
    source = Source(root, HUB, NEEDS)
    rows = source.rows("V_STaR_test.json")
    grades = {}
    if (path := root / "grades.jsonl").is_file():
        grades = {str(field(row, "id", str(path))): int(field(row, "grade", str(path))) for row in read_rows(path)}
    return [item for number, row in enumerate(rows) for item in _items(number, row, grades)]


def _items(number: int, row: dict[str, Any], grades: dict[str, int]) -> list[Item]:
    name = f"{number}_{field(row, 'vid', HUB)}"
    start, end = (float(t) for t in field(row, "timestamps", name))
    listed = field(row, "bboxes", name)
    boxes = {float(b["timestamp"]): tuple(float(b[k]) for k in ("xmin", "ymin", "xmax", "ymax")) for b in listed}
    width, height = float(field(row, "width", name)), float(field(row, "height", name))
    length = f"This video is {round(row['frame_count'] / row['fps'], 2)} seconds long"
    shared: dict[str, Any] = {
        "media": media_path("videos", f"{row['vid']}.mp4"),
        "categories": {"domain": str(row.get("domain", "unknown"))},
        "unit": name,
    }
    extra = {"size": (width, height), "grade": grades.get(f"{name}_what"), "graded": bool(grades)}
    when, where_1, where_2 = (
        str(field(row, k, name)) for k in ("temporal_question", "spatial_question", "spatial_question_2")
    )
    seconds = list(range(math.ceil(start), math.floor(end) + 1))
    hint = (
        f"with a resolution of {width:g}x{height:g}. There are {len(boxes)} bounding boxes of the key object related to the "
        f"question in the video without knowing the time, which are: {[list(box) for box in boxes.values()]}."
    )
    asked = {
        "what": ("text", f"{field(row, 'question', name)} (If the answer is a person, you don't need to identify the person.)", row["answer"]),
        "when_1": ("window", f"{length}. {when}", (start, end)),
        "where_1": ("boxes", f"{where_1}\nFor each whole second within the time range {seconds}: {_SECONDS}", boxes),
        "when_2": ("window", f"{length} {hint} {when}", (start, end)),
        "where_2": ("boxes", f"{where_2}\nFor each whole second related to the question, {len(boxes)} in all: {_SECONDS}", boxes),
    }  # fmt: skip
    return [
        Item(id=f"{name}_{part}", question=question, kind=kind, truth=truth, extra={**extra, "part": part}, **shared)  # type: ignore[arg-type]
        for part, (kind, question, truth) in asked.items()
    ]


def score(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    part: str = item.extra["part"]
    if part == "what":
        return {"what": float(_right(item, reading)), "answered": float(reading.text is not None)}
    if part.startswith("when"):
        return {f"{part}_{mode}": when_iou(reading.text, item.truth, mode) for mode in MODES}  # type: ignore[arg-type]
    scale = _scale(item.extra["size"], seen)
    return {f"{part}_{mode}": where_iou(reading.value, item.truth, scale, mode) for mode in MODES}  # type: ignore[arg-type]


def _right(item: Item, reading: Reading) -> bool:
    if reading.text is None:
        return False
    if item.extra["graded"]:
        return (item.extra["grade"] or 0) >= 2
    return f" {normalise(str(item.truth))} " in f" {normalise(reading.text)} "


def _scale(size: tuple[float, float], seen: Seen) -> tuple[float, float]:
    """Pixels of the video in one unit of the model's boxes."""
    if seen.box_unit == "one":
        return size
    across, down = (1000, 1000) if seen.box_unit == "thousand" else seen.frame_size or size
    return size[0] / across, size[1] / down


def _am(*columns: float) -> float:
    return mean_am(Columns(*columns))


def _lgm(*columns: float) -> float:
    return mean_lgm(Columns(*columns))


_NAMES = {mode: tuple(f"{column}_{mode}" for column in COLUMNS) for mode in MODES}
OFFICIAL = Protocol(
    source="the questions of the published inference; 1 fps",
    templates={
        "window": "Answer the question about the video: {question}\nOutput the start and end moment timestamps.",
        "*": "Answer the question about the video: {question}",
    },
    video={**QWEN_VIDEO, "fps": 1.0, "total_pixels": 20480 * 28 * 28},
    system="You are a helpful assistant.",
    max_new_tokens=2048,
)
BENCHMARK = Benchmark(
    name="vstar",
    title="V-STaR",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("V_STaR_test.json", "*.zip")},
    unique_names=True,
    read=read,
    score=score,
    means={
        "what_strict": Mean("what"),
        "what_compatible": Mean("what"),
        **{name: Mean(name) for name in _NAMES["strict"][1:]},
        **{name: Mean(f"{name}|answered") for name in _NAMES["compatible"][1:]},
    },
    headline="mAM_strict",
    combine={f"{n}_{mode}": (f, _NAMES[mode]) for mode in MODES for n, f in (("mAM", _am), ("mLGM", _lgm))},
    protocols=with_presets(OFFICIAL),
    notes=(
        "without grades.jsonl, `what` is a comparison of words, not the published grading by a language model",
        "compatible leaves rows without an answer to `what` out of every mean but its own, as the released scorer does",
    ),
)
