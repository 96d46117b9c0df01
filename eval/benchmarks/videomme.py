"""Video-MME (arXiv 2405.21075), 2,700 questions about 900 videos, without subtitles."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks.base import Benchmark, Item, Protocol, media_path
from eval.benchmarks.files import Source, field, letter_of, without_letters
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets

HUB = "lmms-lab/Video-MME"
NEEDS = "videomme/test-00000-of-00001.parquet and the unpacked videos as data/<videoID>.mp4"


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    items = []
    for row in source.rows("videomme/test-*.parquet", "test-*.parquet", "videomme.json"):
        name = str(field(row, "question_id", HUB))
        options = without_letters(field(row, "options", name))
        items.append(
            Item(
                id=name,
                question=field(row, "question", name),
                kind="letter",
                truth=letter_of(field(row, "answer", name), options, name),
                options=options,
                media=media_path("data", f"{field(row, 'videoID', name)}.mp4"),
                categories={key: str(row[key]) for key in ("duration", "domain", "task_type") if key in row},
                unit=str(row.get("video_id", name)),
            )
        )
    return items


OFFICIAL = Protocol(
    source="the benchmark's own prompt; Qwen2.5-VL's sampling",
    templates={
        "*": "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:"
    },
    video=QWEN_VIDEO,
)
BENCHMARK = Benchmark(
    name="videomme",
    title="Video-MME, without subtitles",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("videomme/test-*.parquet", "videos_chunked_*.zip")},
    unique_names=True,
    read=read,
    protocols=with_presets(OFFICIAL),
)
