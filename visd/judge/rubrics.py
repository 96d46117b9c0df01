"""Which rubric a sample is judged by. Rubrics are the versioned files of `visd/judge/rubrics`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from visd.types import Sample

TASKS = (
    "temporal_qa",
    "temporal_choice",
    "visual_qa",
    "temporal_spatial",
    "general_choice",
    "general_free_form",
    "text_reasoning",
)
TEMPORAL = "whether the times and windows that the response cites agree with {truth}; none cited is 0."
SPATIAL = "whether the objects and boxes that the response cites agree with {truth}; none cited is 0."
NOT_APPLICABLE = "null, it does not apply here."
SIGHT = {
    "text": "There is nothing to look at but the text.",
    "evidence": "You do not see the video or image. Judge what is cited by the verified evidence alone, and do not "
    "pretend to have seen anything.",
    "frames": "Some frames are attached, each with its time. Judge what is cited by them; what they do not show is "
    "neither right nor wrong.",
    "both": "Some frames are attached, each with its time, besides the verified evidence. Where they seem to disagree, "
    "the evidence is right.",
}


@dataclass(frozen=True)
class Rubric:
    """What a judge is told to do."""

    task: str  # one of TASKS
    version: str  # of the common part and of the task's own, as `1.1`
    text: str
    temporal: bool  # whether that dimension has a score
    spatial: bool


def task_of(sample: Sample) -> str:
    """The task type of a sample, by its media, the type of its answer and its evidence."""
    answer, evidence = sample.answer.type, sample.evidence
    if not sample.media:
        return "text_reasoning"
    if answer == "window":
        return "temporal_qa"
    if answer == "box":
        return "visual_qa"
    if answer == "letter":
        return "temporal_choice" if evidence.windows else "general_choice"
    return "temporal_spatial" if evidence.boxes else "general_free_form"


def rubric_for(sample: Sample, sees: str) -> Rubric:
    """The rubric of a sample.

    Args:
        sees: evidence, frames or both: what the judge is given besides the verified answer.
    """
    task, evidence = task_of(sample), sample.evidence
    temporal = bool(sample.media) and bool(sample.answer.type == "window" or evidence.windows or evidence.frames)
    spatial = bool(sample.media) and bool(sample.answer.type == "box" or evidence.boxes)
    common_version, common = read("common")
    version, own = read(task)
    truth = "what the frames show" if sees == "frames" else "the verified ones"
    text = common.format(
        media=" about a video or image" if sample.media else "",
        sight=SIGHT[sees] if sample.media else SIGHT["text"],
        temporal=TEMPORAL.format(truth=truth) if temporal else NOT_APPLICABLE,
        spatial=SPATIAL.format(truth=truth) if spatial else NOT_APPLICABLE,
        task=own,
    )
    return Rubric(task, f"{common_version}.{version}", text, temporal, spatial)


@cache
def read(name: str) -> tuple[str, str]:
    """Version and text of a rubric file, whose first line is `version: N`."""
    head, _, text = (files("visd.judge") / "rubrics" / f"{name}.md").read_text(encoding="utf-8").partition("\n")
    return head.removeprefix("version: "), text.strip()
