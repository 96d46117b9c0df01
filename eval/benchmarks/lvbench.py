"""LVBench (arXiv 2406.08035): 1,549 questions about videos of an hour on average."""

from __future__ import annotations

import re
from pathlib import Path

from eval.benchmarks.base import Benchmark, Item, Protocol, media_path
from eval.benchmarks.files import Source, field, letter_of
from eval.benchmarks.protocols import LETTER_ONLY, QWEN_VIDEO, with_presets

HUB = "zai-org/LVBench"
NEEDS = "video_info.meta.jsonl and the videos as videos/<key>.mp4 (or all_videos/, as AIWinter/LVBench has them)"
_OPTION = re.compile(r"^\(([A-Z])\)\s*(.*)$", re.MULTILINE)


def read(root: Path) -> list[Item]:
    """One line a video; the options stand in the question's own text, a line each."""
    source = Source(root, HUB, NEEDS)
    items = []
    for row in source.rows("video_info.meta.jsonl", "data/video_info.meta.jsonl"):
        key = str(field(row, "key", HUB))
        for asked in field(row, "qa", key):
            name = f"{key}_{field(asked, 'uid', key)}"
            text = str(field(asked, "question", name))
            options = tuple(match[2].strip() for match in _OPTION.finditer(text))
            types = asked.get("question_type") or ["unknown"]
            items.append(
                Item(
                    id=name,
                    question=_OPTION.sub("", text).strip(),
                    kind="letter",
                    truth=letter_of(field(asked, "answer", name), options, name),
                    options=options,
                    media=media_path("videos", f"{key}.mp4"),
                    categories={"type": str(row.get("type", "unknown")), "question_type": ", ".join(map(str, types))},
                    unit=key,
                )
            )
    return items


BENCHMARK = Benchmark(
    name="lvbench",
    title="LVBench",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("video_info.meta.jsonl",), "AIWinter/LVBench": ("all_videos_split.zip.*",)},
    unique_names=True,
    read=read,
    protocols=with_presets(
        Protocol(
            source="letter prompt; Qwen2.5-VL's sampling",
            templates={"*": LETTER_ONLY},
            video=QWEN_VIDEO,
            option_style="({letter}) {text}",
        )
    ),
)
