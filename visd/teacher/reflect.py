"""What a writer is asked about attempts, and how its answers are read: reflections, tags and lessons (arXiv 2605.12741).

A writer is a model that answers in JSON, or, for models too small to write prose, the fixed sentences of
`ruled_reflection` and `ruled_lesson`. Answers of a model are read strictly: what is not an object of the asked form is no
answer, an unknown id no tag and an unknown section no lesson.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visd.teacher.playbook import SECTIONS, Playbook
from visd.types import DIMENSIONS, JudgeReport

PARTS = ("reasoning", "error", "root_cause", "correct_approach", "key_insight")
SHOWN = {
    "error": "Error",
    "root_cause": "Root cause",
    "correct_approach": "Correct approach",
    "key_insight": "Key insight",
}
MOST_CHARACTERS = 1000
"""Of each part of a reflection and of each lesson; the rest is cut."""


@dataclass(frozen=True)
class Tag:
    """A verdict on one playbook entry."""

    id: str
    helpful: bool


@dataclass(frozen=True)
class Reflection:
    """What a writer says of a failed attempt."""

    error: str
    root_cause: str
    correct_approach: str
    key_insight: str
    reasoning: str = ""
    tags: tuple[Tag, ...] = ()

    def text(self) -> str:
        """As teacher and curator read it."""
        return "\n".join(f"{label}: {value}" for name, label in SHOWN.items() if (value := getattr(self, name)))


@dataclass(frozen=True)
class Lesson:
    """An entry that a writer wants in the playbook, from one example."""

    example: str
    section: str
    text: str


# ---------------------------------------------------------------------------------------------- questions

_TAGS = '"tags" (a list of {"id": ..., "tag": "helpful", "harmful" or "neutral"}, one for each playbook entry that bears on this attempt)'


def reflection_request(attempt: str, assessment: str, playbook: str) -> str:
    """Put after the question: why did this attempt fail?"""
    return _sections(
        "Do not answer the question now. Below is an attempt at it that failed. Find out why, so that the next attempt succeeds.",
        ("Attempt", attempt),
        ("Assessment", assessment),
        ("Playbook", playbook),
        'Write one JSON object and nothing else, with the keys "reasoning", "error" (what went wrong), "root_cause", '
        f'"correct_approach" and "key_insight" (all strings), and {_TAGS}.',
    )


def tagging_request(attempt: str, playbook: str) -> str:
    """Put after the question: which lessons helped this attempt?"""
    return _sections(
        "Do not answer the question now. Below is an attempt at it that succeeded.",
        ("Attempt", attempt),
        ("Playbook", playbook),
        f"Write one JSON object and nothing else, with the key {_TAGS}.",
    )


CURATION = (
    "You keep a playbook of lessons for a solver of problems. Below are its entries and reflections on failed attempts. "
    "Add what is missing from the playbook and of use beyond one example; change nothing else."
)
"""The curator's own prompt; what follows is inserted as plain text."""


def curation_request(reflections: Mapping[str, Reflection], playbook: str) -> str:
    """Put after `CURATION`: reflections by example."""
    written = "\n\n".join(f"### {example}\n{reflection.text()}" for example, reflection in reflections.items())
    listed = ", ".join(f'"{section}"' for section in SECTIONS)
    return _sections(
        "",
        ("Playbook", playbook),
        ("Reflections", written),
        'Write one JSON object and nothing else: {"add": [{"example": ..., "section": ..., "text": ...}]}, at most one '
        f"entry for each example, its name as given above. The sections are {listed}.",
    )


def _sections(opening: str, *parts: tuple[str, str] | str) -> str:
    lines = [opening] if opening else []
    for part in parts:
        lines.append(part if isinstance(part, str) else f"{part[0]}:\n{part[1] or 'none'}")
    return "\n\n" + "\n\n".join(lines)


# ------------------------------------------------------------------------------------------------ answers


def read_object(text: str) -> dict[str, Any] | None:
    """The first JSON object after the thinking; None where there is none."""
    said = text.rpartition("</think>")[2]
    start = said.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(said, start)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_reflection(text: str, playbook: Playbook) -> Reflection | None:
    """A reflection with its tags on known entries; None where a part is missing or no string, or says nothing."""
    found = read_object(text)
    if found is None or not all(isinstance(found.get(part), str) for part in PARTS):
        return None
    parts = {part: found[part].strip()[:MOST_CHARACTERS] for part in PARTS}
    if not any(parts[part] for part in SHOWN):
        return None
    return Reflection(**parts, tags=_tags(found, playbook))


def read_tags(text: str, playbook: Playbook) -> tuple[Tag, ...] | None:
    """Tags on known entries; None where the text is no object."""
    found = read_object(text)
    return None if found is None else _tags(found, playbook)


def _tags(found: Mapping[str, Any], playbook: Playbook) -> tuple[Tag, ...]:
    """One tag an entry, the first; neutral ones and those on entries that do not exist are none."""
    tags: dict[str, Tag] = {}
    listed = found.get("tags")
    for item in listed if isinstance(listed, list) else []:
        if not isinstance(item, dict) or item.get("tag") not in ("helpful", "harmful"):
            continue
        id_ = item.get("id")
        if isinstance(id_, str) and playbook.find(id_) is not None:
            tags.setdefault(id_, Tag(id_, item["tag"] == "helpful"))
    return tuple(tags.values())


def read_lessons(text: str, examples: Sequence[str]) -> list[Lesson] | None:
    """Lessons of known examples and sections, one an example; None where the text is no object with a list `add`."""
    found = read_object(text)
    listed = found.get("add") if found is not None else None
    if not isinstance(listed, list):
        return None
    lessons: dict[str, Lesson] = {}
    for item in listed:
        if not isinstance(item, dict):
            continue
        values = [value for key in ("example", "section", "text") if isinstance(value := item.get(key), str)]
        if len(values) < 3 or values[0] not in examples or values[1] not in SECTIONS:
            continue
        if cut := " ".join(values[2].split())[:MOST_CHARACTERS]:
            lessons.setdefault(values[0], Lesson(values[0], values[1], cut))
    return list(lessons.values())


# -------------------------------------------------------------------------------------------------- rules

ADVICE = {
    "answer": "Check the answer against what was seen before it is given.",
    "logic": "Conclude only what the reasoning says.",
    "temporal": "Look at the whole video before a time is given.",
    "spatial": "Look for the object in every frame before a box is given.",
}
"""The lesson about each of a judge's dimensions."""


def weakest(report: JudgeReport | None) -> str:
    """The dimension with the lowest score; of several the one that says more than that the answer is wrong."""
    scores = {d: report.score(d) for d in reversed(DIMENSIONS)} if report is not None and report.usable else {}
    known = {d: s for d, s in scores.items() if s is not None}
    return min(known, key=lambda d: known[d]) if known else "answer"


def ruled_reflection(report: JudgeReport | None, playbook: Playbook) -> Reflection:
    """A reflection in fixed sentences, from the judge's scores and feedback alone.

    An entry about the dimension that failed was there and is needed: helpful.
    """
    advice = ADVICE[weakest(report)]
    said = report.feedback if report is not None and report.usable else ""
    tags = tuple(Tag(entry.id, True) for entry in playbook.entries if entry.text == advice)
    return Reflection(said, "", "", advice, tags=tags)


def ruled_lesson(example: str, reflection: Reflection) -> Lesson:
    """The reflection's insight as a common mistake."""
    return Lesson(example, "common mistakes", reflection.key_insight)
