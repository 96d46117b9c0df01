"""What a checkpoint needs to answer another program's questions: one engine, one prompt builder a setting."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.answers import final_answer
from eval.asking import Reply, replies
from eval.model import ModelSettings, Opened, check_engine, open_engine
from visd.config import ConfigError, PromptSection, VideoSection
from visd.data.prompts import PromptBuilder
from visd.media.processor import PromptProcessor
from visd.rollout.base import Sampling
from visd.types import Media, Message, Question

ANYWHERE = Path("/")
"""Root of media that another program names by whole paths."""


@dataclass
class BridgeSettings(ModelSettings):
    """Arguments of the model classes. Frames and system message are those of tasks that are not visd's own."""

    batch_size: int = 16  # questions generated together
    max_length: int = 40960  # tokens of the longest prompt with its longest answer
    max_new_tokens: int = 1024  # a task's lower limit is raised to this, so that reasoning is not cut off
    system: str = ""  # system message; empty sends none
    answer_only: bool = True  # give a task the final answer, without reasoning and tags, and nothing for a cut-off one
    video: VideoSection = field(default_factory=VideoSection)  # as prompt.video


def settings_from(arguments: Mapping[str, Any]) -> BridgeSettings:
    """Checked settings; nested fields are written with a dot (`video.max_frames`).

    Raises:
        ConfigError: an unknown field or a wrong type.
    """
    try:
        given = OmegaConf.create({})
        for name, value in arguments.items():
            OmegaConf.update(given, name, value)
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BridgeSettings), given))
    except OmegaConfBaseException as error:
        place = getattr(error, "full_key", None)
        raise ConfigError(f"{place or 'model arguments'}: {str(error).splitlines()[0].rstrip('.')}.") from None
    assert isinstance(settings, BridgeSettings)
    check_engine(settings)
    return settings


class Answerer:
    """A loaded checkpoint."""

    def __init__(self, settings: BridgeSettings):
        self.settings = settings
        self.section = PromptSection(
            settings.system, False, settings.max_length - settings.max_new_tokens, video=settings.video
        )
        self._builders: dict[tuple[str, Path], PromptBuilder] = {}
        self._opened: Opened | None = None
        self._images = tempfile.TemporaryDirectory(prefix="visd-images-")

    def ask(
        self, questions: Sequence[Question], section: PromptSection, root: Path, sampling: Sampling, seeds: Sequence[int]
    ) -> list[Reply]:  # fmt: skip
        """One reply a question, in batches.

        Args:
            root: every media path lies below it.
            seeds: one a question.
        """
        builder = self._builder(section, root)
        if self._opened is None:
            self._opened = open_engine(self.settings, builder.processor.tokenizer, self.settings.max_length)
        family, size = builder.processor.family, self.settings.batch_size
        factor = family.pixel_factor if family.has_media else 28
        found: list[Reply] = []
        for start in range(0, len(questions), size):
            builder.prefetch(questions[start : start + 2 * size])
            batch, rows = questions[start : start + size], [[seed] for seed in seeds[start : start + size]]
            found += replies(self._opened.engine, builder, batch, sampling, rows, factor)
            self._opened.forget()
        return found

    def sampling(self, wanted: Mapping[str, Any]) -> Sampling:
        """How tokens are drawn for a task that asks for it in transformers' words."""
        tokens = max(int(wanted.get("max_new_tokens") or 0), self.settings.max_new_tokens)
        temperature = float(wanted.get("temperature") or 0.0)
        top_p, top_k = float(wanted.get("top_p") or 1.0), int(wanted.get("top_k") or 0)
        if temperature == 0:
            return Sampling(1, 1.0, 1.0, 0, tokens, greedy=True)
        return Sampling(1, temperature, top_p, top_k, tokens)

    def shown(self, reply: Reply) -> str:
        """The text that another program's task is given; an empty one where there is no answer."""
        if not reply.rollouts:
            return ""
        rollout = reply.rollouts[0]
        if not self.settings.answer_only:
            return rollout.own_text
        return final_answer(rollout.own_text, rollout.stop_reason == "length").text or ""

    def image_file(self, image: Any, number: str) -> str:
        """The path of an image that a task gives as a picture of Pillow."""
        path = Path(self._images.name) / f"{number}.png"
        image.convert("RGB").save(path)
        return str(path)

    def _builder(self, section: PromptSection, root: Path) -> PromptBuilder:
        key = (repr(section), root)
        if key not in self._builders:
            processor = PromptProcessor.load(self.settings.model, section, root, self.settings.frames)
            self._builders[key] = PromptBuilder(processor, section)
        return self._builders[key]


def question_of(name: str, turns: Sequence[tuple[str, Sequence[Media | str]]]) -> Question:
    """A chat whose parts are media and texts, in their order.

    Args:
        turns: role and parts of each.
    """
    media = tuple(part for _, parts in turns for part in parts if isinstance(part, Media))
    messages = tuple(
        Message(role, "\n".join(f"<{part.kind}>" if isinstance(part, Media) else part for part in parts))  # type: ignore[arg-type]
        for role, parts in turns
    )
    return Question(name, media, messages, "text")
