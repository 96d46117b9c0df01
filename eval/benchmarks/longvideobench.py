"""LongVideoBench (arXiv 2407.15754), validation set, without subtitles."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks.base import Benchmark, Item, media_path
from eval.benchmarks.files import Source, field
from eval.benchmarks.protocols import LETTER_PROTOCOL, with_presets
from visd.data.manifest import LETTERS

HUB = "longvideobench/LongVideoBench"
NEEDS = "lvb_val.json and the unpacked videos below videos/"


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    items = []
    for row in source.rows("lvb_val.json"):
        name = str(field(row, "id", HUB))
        options = tuple(str(option) for option in field(row, "candidates", name))
        items.append(
            Item(
                id=name,
                question=field(row, "question", name),
                kind="letter",
                truth=LETTERS[int(field(row, "correct_choice", name))],
                options=options,
                media=media_path("videos", str(field(row, "video_path", name))),
                categories={key: str(row[key]) for key in ("duration_group", "question_category") if key in row},
                unit=str(row.get("video_id", name)),
            )
        )
    return items


BENCHMARK = Benchmark(
    name="longvideobench",
    title="LongVideoBench, without subtitles",
    split="validation",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("lvb_val.json", "videos.tar.part.*")},
    unique_names=True,
    read=read,
    protocols=with_presets(LETTER_PROTOCOL),
    notes=("an unreadable answer is wrong; the published code draws a letter at random",),
)
