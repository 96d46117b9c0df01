"""MMVU (arXiv 2501.12380), the multiple-choice questions of the validation set, the part that needs no grader."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks.base import Benchmark, Item, Protocol, media_path
from eval.benchmarks.files import Source, field, letter_of
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets

HUB = "yale-nlp/MMVU"
NEEDS = "validation.json and the videos at the paths it names, below videos/"


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    items = []
    for row in source.rows("validation.json", "data/validation-*.parquet"):
        if field(row, "question_type", HUB) != "multiple-choice":
            continue
        name = str(field(row, "id", HUB))
        choices = field(row, "choices", name)
        options = tuple(str(choices[letter]) for letter in sorted(choices) if choices[letter] not in (None, ""))
        video = str(field(row, "video", name)).split("/videos/")[-1].removeprefix("videos/")
        items.append(
            Item(
                id=name,
                question=field(row, "question", name),
                kind="letter",
                truth=letter_of(field(row, "answer", name), options, name),
                options=options,
                media=media_path("videos", video),
                categories={"subject": str(row.get("metadata", {}).get("subject", "unknown"))},
            )
        )
    return items


OFFICIAL = Protocol(
    source="the benchmark's own prompt with reasoning; Qwen2.5-VL's sampling",
    templates={
        "*": "Question: {question}\n{options}\nVisual Information: processed video\nAnswer the given multiple-choice "
        "question step by step. Begin by explaining your reasoning process clearly. Conclude by stating the final answer "
        'using the following format: "Therefore, the final answer is: $LETTER" (without quotes), where $LETTER is one of '
        "the options. Think step by step before answering."
    },
    video=QWEN_VIDEO,
    option_style="{letter}: {text}",
)
BENCHMARK = Benchmark(
    name="mmvu",
    title="MMVU, multiple choice",
    split="validation",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("validation.json", "videos/*")},
    read=read,
    protocols=with_presets(OFFICIAL),
    notes=("open-ended questions are graded by a language model and are left out",),
)
