"""What a benchmark is: questions, how they are asked, how answers are scored, and which means are reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.answers import Kind, Reading
from visd.data.manifest import LETTERS
from visd.types import Media, Message, Question


@dataclass(frozen=True)
class Item:
    """One question."""

    id: str
    question: str  # what is asked, without options and instructions
    kind: Kind
    truth: Any  # letter, number, windows, boxes or text, as the benchmark's `score` takes it
    options: tuple[str, ...] = ()  # texts of A, B, ..., without letters
    media: tuple[Media, ...] = ()  # paths below the root
    categories: Mapping[str, str] = field(default_factory=dict)  # for scores by category and macro means
    unit: str = ""  # questions of one unit are resampled together; default: the id
    prompt: str = ""  # the whole prompt where the question needs one of its own; a protocol's template is not used
    extra: Mapping[str, Any] = field(default_factory=dict)  # what `score` needs besides


@dataclass(frozen=True)
class Protocol:
    """How questions are asked. Two scores may be compared only where all of this is the same."""

    source: str  # where it is published
    templates: Mapping[str, str]  # by kind, `*` for the others; {question} and {options} are filled in
    video: Mapping[str, float | int]  # fields of prompt.video
    system: str = ""
    option_style: str = "{letter}. {text}"
    max_new_tokens: int = 1024
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0

    def text(self, item: Item) -> str:
        """The prompt's text, without the media's placeholders."""
        if item.prompt:
            return item.prompt
        options = "\n".join(self.option_style.format(letter=a, text=b) for a, b in zip(LETTERS, item.options))
        template = self.templates.get(item.kind, self.templates["*"])
        if not item.options:
            template = template.replace("\n{options}", "")
        return template.replace("{options}", options).replace("{question}", item.question)

    def asked(self, item: Item) -> Question:
        """The question as the prompt builder takes it."""
        places = "".join(f"<{media.kind}>\n" for media in item.media)
        return Question(item.id, item.media, (Message("user", places + self.text(item)),), "text")


@dataclass(frozen=True)
class Seen:
    """What `score` may know of the prompt beside the answer."""

    frame_size: tuple[int, int] | None = None  # width and height of the frames as the model saw them, pixels
    box_unit: str = "pixels"  # of the model's boxes: pixels (of frame_size), thousand (0-1000) or one (0-1)


@dataclass(frozen=True)
class Mean:
    """One reported number."""

    metric: str  # key of `score`'s result; only items that have it count
    by: str = ""  # a category: mean of its values' means (macro); empty: mean over items
    merge: Mapping[str, str] = field(default_factory=dict)  # joins values of `by`: their means are averaged first


def right(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    """Exact agreement with the truth."""
    return {"accuracy": float(reading.value is not None and reading.value == item.truth)}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its settings. `headline` names the number that papers quote."""

    name: str
    title: str
    split: str
    hub: str  # where the data is published
    needs: str  # what to download and where below the root it belongs
    read: Callable[[Path], list[Item]]
    protocols: Mapping[str, Protocol]
    score: Callable[[Item, Reading, Seen], dict[str, float]] = right
    means: Mapping[str, Mean] = field(default_factory=lambda: {"accuracy": Mean("accuracy")})
    headline: str = "accuracy"
    combine: Mapping[str, tuple[Callable[..., float], tuple[str, ...]]] = field(default_factory=dict)
    """Further numbers: a function of other reported means, by their names."""
    notes: tuple[str, ...] = ()  # what differs from the published evaluation
    on_hub: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Data sets of the Hugging Face hub, and the files of each that are fetched. Empty: it is published elsewhere."""
    unique_names: bool = False  # a video's file name tells which video it is, whatever folder it was unpacked into


def media_path(*parts: str, start: float | None = None, end: float | None = None) -> tuple[Media, ...]:
    """One video below the root."""
    return (Media("video", "/".join(parts), start, end),)


ProtocolName = Literal["official", "video_r1_16", "open_o3"]
