"""MVBench (arXiv 2311.17005), 20 tasks of 200 questions; the score is the mean over tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.benchmarks.base import Benchmark, Item, Mean, Protocol, media_path
from eval.benchmarks.files import Source, field, letter_of, read_rows
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets
from visd.types import VisdError

HUB = "OpenGVLab/MVBench"
NEEDS = "json/<task>.json and the unpacked archives below video/ (episodic_reasoning: revision `video`, as mp4 files)"
FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment",
    "counterfactual_inference": "clevrer/video_validation",
}
"""Task to the folder of its videos below video/."""


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    items = []
    for path in source.paths("json/*.json"):
        if path.stem not in FOLDERS:
            raise VisdError(f"{path}: {path.stem!r} is no task of MVBench; remove the file.")
        items += [_item(path.stem, number, row) for number, row in enumerate(read_rows(path))]
    return items


def _item(task: str, number: int, row: dict[str, Any]) -> Item:
    name = f"{task}_{number}"
    options = tuple(str(option) for option in field(row, "candidates", name))
    start, end = (None if row.get(key) is None else float(row[key]) for key in ("start", "end"))
    return Item(
        id=name,
        question=field(row, "question", name),
        kind="letter",
        truth=letter_of(field(row, "answer", name), options, name),
        options=options,
        media=media_path("video", FOLDERS[task], str(field(row, "video", name)), start=start, end=end),
        categories={"task": task},
    )


OFFICIAL = Protocol(
    source="the benchmark's own prompt, 16 frames",
    templates={
        "*": "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
        "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
        "addresses the question.\nQuestion: {question}\nOptions:\n{options}\nOnly give the best option."
    },
    video={**QWEN_VIDEO, "fps": 1000.0, "max_frames": 16},  # as many as there are, at most 16, evenly
    option_style="({letter}) {text}",
)
BENCHMARK = Benchmark(
    name="mvbench",
    title="MVBench",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("json/*.json", "video/*.zip")},
    read=read,
    means={"average": Mean("accuracy", by="task"), "accuracy": Mean("accuracy")},
    headline="average",
    protocols=with_presets(OFFICIAL),
)
