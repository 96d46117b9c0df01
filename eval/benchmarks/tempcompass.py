"""TempCompass (arXiv 2403.00476): multiple choice, yes or no, and caption matching.

Its fourth task, captioning, is graded by a language model and is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, media_path
from eval.benchmarks.files import Source, field, letter_of, read_rows
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets

HUB = "lmms-lab/TempCompass"
NEEDS = (
    "questions/multi-choice.json, questions/yes_no.json and questions/caption_matching.json, or <task>/test-*.parquet, "
    "and videos/<id>.mp4"
)
TASKS = {"multi-choice": "letter", "yes_no": "yes_no", "caption_matching": "letter"}
_OPTION = re.compile(
    r"^\s*(?:([A-Z])[.)]|(?:Sentence|Caption|Option|Description)\s*([A-Z1-9])\s*:)\s*(.*)$", re.MULTILINE
)


def read(root: Path) -> list[Item]:
    """The authors' files map video ids to dimensions to lists of {question, answer}; on the hub a row is one question."""
    source = Source(root, HUB, NEEDS)
    return [item for task in TASKS for item in _task(source, task)]


def _task(source: Source, task: str) -> Iterator[Item]:
    path = source.path(f"questions/{task}.json", f"{task}/test-*.parquet")
    if path.suffix == ".json":
        for video, dimensions in source.json(f"questions/{task}.json").items():
            for dimension, rows in dimensions.items():
                yield from (_item(task, video, dimension, number, row) for number, row in enumerate(rows))
        return
    seen: Counter[tuple[str, str]] = Counter()
    for row in read_rows(path):
        place = str(field(row, "video_id", task)), str(field(row, "dim", task))
        yield _item(task, *place, seen[place], row)
        seen[place] += 1


def _item(task: str, video: str, dimension: str, number: int, row: dict[str, Any]) -> Item:
    name = f"{task}_{video}_{dimension}_{number}"
    question, answer = str(field(row, "question", name)), str(field(row, "answer", name)).strip()
    shared: dict[str, Any] = {
        "id": name,
        "media": media_path("videos", f"{video}.mp4"),
        "categories": {"task": task, "dimension": dimension},
        "unit": video,
    }
    if TASKS[task] == "yes_no":
        return Item(question=question, kind="yes_no", truth=answer.lower().startswith("yes"), **shared)
    found = list(_OPTION.finditer(question))
    options = tuple(match[3].strip() for match in found)
    stem = question[: found[0].start()].strip() if found else question
    bare = _OPTION.match(answer)
    truth = letter_of(bare[3] if bare else answer, options, name)
    return Item(question=stem, kind="letter", truth=truth, options=options, **shared)


OFFICIAL = Protocol(
    source="the benchmark's own instructions; Qwen2.5-VL's sampling",
    templates={
        "letter": "{question}\n{options}\nPlease directly give the best option:",
        "*": "{question}\nPlease answer yes or no:",
    },
    video=QWEN_VIDEO,
)
BENCHMARK = Benchmark(
    name="tempcompass",
    title="TempCompass, without captioning",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: (*(f"{task}/test-*.parquet" for task in TASKS), "tempcompass_videos.zip")},
    unique_names=True,
    read=read,
    means={"average": Mean("accuracy", by="task"), "accuracy": Mean("accuracy")},
    headline="average",
    protocols=with_presets(OFFICIAL),
    notes=("captioning is graded by a language model and is left out", "no model is asked about unreadable answers"),
)
