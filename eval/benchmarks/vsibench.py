"""VSI-Bench (arXiv 2412.14171): eight tasks, accuracy for choices and mean relative accuracy for numbers."""

from __future__ import annotations

from pathlib import Path

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, Seen, media_path, right
from eval.benchmarks.files import Source, field, letter_of, without_letters
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets
from eval.metrics import mean_relative_accuracy

HUB = "nyu-visionx/VSI-Bench"
NEEDS = "test.jsonl (or test-*.parquet) and the unpacked videos as <dataset>/<scene_name>.mp4"
DIRECTIONS = {f"object_rel_direction_{level}": "object_rel_direction" for level in ("easy", "medium", "hard")}


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    items = []
    for row in source.rows("test.jsonl", "test-*.parquet"):
        name = str(field(row, "id", HUB))
        options = without_letters(row.get("options") or ())
        answer = field(row, "ground_truth", name)
        items.append(
            Item(
                id=name,
                question=field(row, "question", name),
                kind="letter" if options else "number",
                truth=letter_of(answer, options, name) if options else float(answer),
                options=options,
                media=media_path(str(field(row, "dataset", name)), f"{field(row, 'scene_name', name)}.mp4"),
                categories={"task": field(row, "question_type", name), "dataset": row["dataset"]},
                unit=str(row["scene_name"]),
            )
        )
    return items


def score(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    value = (
        right(item, reading, seen)["accuracy"] if item.options else mean_relative_accuracy(reading.value, item.truth)
    )
    return {"score": value}


OFFICIAL = Protocol(
    source="the benchmark's own prompt, 32 frames",
    templates={
        "letter": "These are frames of a video.\n{question}\nOptions:\n{options}\n"
        "Answer with the option's letter from the given choices directly.",
        "*": "These are frames of a video.\n{question}\nPlease answer the question using a single word or phrase.",
    },
    video={**QWEN_VIDEO, "fps": 1000.0, "max_frames": 32},
)
BENCHMARK = Benchmark(
    name="vsibench",
    title="VSI-Bench",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("test[.-]*", "arkitscenes.zip", "scannet.zip", "scannetpp.zip")},
    read=read,
    score=score,
    means={"average": Mean("score", by="task", merge=DIRECTIONS)},
    headline="average",
    protocols=with_presets(OFFICIAL),
)
