"""MLVU (arXiv 2406.04264), the multiple-choice tasks of the dev set; M-Avg is the mean over tasks."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks.base import Benchmark, Item, Mean, media_path
from eval.benchmarks.files import Source, field, letter_of, read_rows
from eval.benchmarks.protocols import LETTER_PROTOCOL, with_presets

HUB = "MLVU/MVLU"
NEEDS = "json/1_plotQA.json ... and the videos as video/<task>/<name>.mp4, or both below MLVU/"


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    items = []
    for path in source.paths("json/*.json", "MLVU/json/*.json"):
        folder = path.parent.parent.relative_to(root).parts  # MLVU/ on the hub, nothing where its contents were put
        for number, row in enumerate(read_rows(path)):
            name = f"{path.stem}_{number}"
            if "candidates" not in row:  # 8_sub_scene and 9_summary are open-ended
                continue
            options = tuple(str(option) for option in row["candidates"])
            items.append(
                Item(
                    id=name,
                    question=field(row, "question", name),
                    kind="letter",
                    truth=letter_of(field(row, "answer", name), options, name),
                    options=options,
                    media=media_path(*folder, "video", path.stem, str(field(row, "video", name))),
                    categories={"task": str(row.get("question_type", path.stem))},
                    unit=str(row["video"]),
                )
            )
    return items


BENCHMARK = Benchmark(
    name="mlvu",
    title="MLVU, multiple choice",
    split="dev",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("MLVU/json/*.json", "MLVU/video/*")},
    read=read,
    means={"m_avg": Mean("accuracy", by="task"), "accuracy": Mean("accuracy")},
    headline="m_avg",
    protocols=with_presets(LETTER_PROTOCOL),
    notes=("sub-scene captioning and summaries are graded by a language model and are left out",),
)
