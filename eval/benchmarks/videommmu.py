"""Video-MMMU (arXiv 2501.13826): perception, comprehension and adaptation, 300 questions each."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Protocol, Seen, media_path, right
from eval.benchmarks.files import Source, field, letter_of, read_rows, without_letters
from eval.benchmarks.protocols import QWEN_VIDEO, with_presets
from visd.reward.parse import normalise, parse_number

HUB = "lmms-lab/VideoMMMU"
NEEDS = "Perception/, Comprehension/ and Adaptation/ with test-*.parquet each, and videos as <Discipline>/<id>.mp4"
CHOICES = ("multiple-choice", "perception")
"""Types of question that are answered by a letter; the others are open."""
TRACKS = ("Perception", "Comprehension", "Adaptation")
DISCIPLINES = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Humanities": ("History", "Literature", "Sociology", "Psychology"),
    "Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power", "Materials",
        "Mechanical_Engineering",
    ),
    "Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy", "Public_Health",
    ),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
}  # fmt: skip
_BY_SUBJECT = {subject: discipline for discipline, subjects in DISCIPLINES.items() for subject in subjects}


def read(root: Path) -> list[Item]:
    source = Source(root, HUB, NEEDS)
    return [
        _item(track, row) for track in TRACKS for path in source.paths(f"{track}/test*.*") for row in read_rows(path)
    ]


def _item(track: str, row: dict[str, Any]) -> Item:
    video = str(field(row, "id", track))
    name = f"{track}_{video}"
    listed = row.get("options") or ()
    options = without_letters(ast.literal_eval(listed) if isinstance(listed, str) else listed)
    choice = row.get("question_type", "multiple-choice") in CHOICES
    answer = field(row, "answer", name)
    discipline = _BY_SUBJECT.get("_".join(video.split("_")[1:-1]), "")
    return Item(
        id=name,
        question=field(row, "question", name),
        kind="letter" if choice else "text",
        truth=letter_of(answer, options, name) if choice else answer,
        options=options if choice else (),
        media=media_path(discipline or "videos", f"{video}.mp4"),
        categories={"track": track, "discipline": discipline or "unknown"},
        unit=video,
    )


def score(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    """Open questions: the same words, or the same number, as one of the listed answers."""
    if item.kind == "letter":
        return right(item, reading, seen)
    text = reading.text or ""
    accepted = [str(v) for v in (item.truth if isinstance(item.truth, list) else [item.truth])]
    number = parse_number(text)
    hits = (
        normalise(text) == normalise(truth)
        if parse_number(truth) is None or number is None
        else abs(number - (parse_number(truth) or 0.0)) < 0.005
        for truth in accepted
    )
    return {"accuracy": float(bool(text) and any(hits))}


OFFICIAL = Protocol(
    source="Qwen2.5-VL's sampling",
    templates={
        "letter": "{question}\n{options}\nPlease ignore the Quiz question in last frame of the video.",
        "*": "{question}\nPlease watch the video and answer with a single number or phrase.",
    },
    video=QWEN_VIDEO,
)
BENCHMARK = Benchmark(
    name="videommmu",
    title="Video-MMMU",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: (*(f"{track}/test-*.parquet" for track in TRACKS), "*.zip")},
    unique_names=True,
    read=read,
    score=score,
    protocols=with_presets(OFFICIAL),
    notes=("the questions' own images, if any, are not shown: the video of a question ends with them",),
)
