"""How many tokens a prompt has at given settings, from what `probe` found: nothing is decoded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_tools.probed import Probed
from visd.cli import compose_config
from visd.config import ConfigError, FramesSection, load
from visd.data.key_frames import with_key_frames
from visd.data.prompts import PromptBuilder
from visd.media.container import FrameIndex
from visd.media.errors import DecodeError
from visd.media.families.base import MediumSize
from visd.media.processor import PromptProcessor
from visd.media.video import planned, planned_image
from visd.types import Media, Sample


@dataclass(frozen=True)
class Budget:
    """Of one prompt."""

    tokens: int  # of the whole prompt
    visual: int  # of them, of media
    limit: int  # prompt.max_tokens


class TokenCounter:
    """Counts as `visd.media.processor` does."""

    def __init__(self, settings: Sequence[str]):
        """
        Args:
            settings: arguments of scripts/train.py.

        Raises:
            VisdError: they are wrong, or their model cannot be found.
        """
        config = load(compose_config(settings))
        frames = FramesSection(workers=0, cache_mb=0)
        self.section = config.prompt
        self.processor = PromptProcessor.load(config.model.path, config.prompt, Path(config.data.root), frames)
        self.builder = PromptBuilder(self.processor, config.prompt)
        self._sizes = self.processor.family.sizes(config.prompt.video)

    def count(self, sample: Sample, probed: Probed | None) -> Budget:
        """The tokens of a sample's prompt in training, before anything is reduced to fit.

        Raises:
            DecodeError: a medium is broken or cannot be sampled at these settings.
            ConfigError: a medium was not probed.
        """
        sample = with_key_frames(sample, self.section.key_frames)
        media = sample.media if self.processor.family.has_media else ()
        sizes = [self._size(item, probed) for item in media]
        tokens = self.processor.count_tokens(self.builder.messages(sample.question()), sizes)
        visual = sum(self.processor.family.visual_tokens(size) for size in self.processor.shown(sizes))
        return Budget(tokens, visual, self.section.max_tokens)

    def _size(self, item: Media, probed: Probed | None) -> MediumSize:
        file = probed.get(item.path) if probed is not None else None
        path = Path(item.path)
        if file is None:
            raise ConfigError(
                f"{item.path}: is not in --probe, which tells the sizes that tokens follow from; probe it"
            )
        if not file.sound:
            raise DecodeError("unreadable", path, "it is in quarantine.")
        factor = self.processor.family.pixel_factor
        if item.kind == "image":
            return MediumSize("image", (0.0,), (0,), *planned_image(path, file.height, file.width, self._sizes, factor))
        index = even_index(file.frames, file.duration, file.fps)
        clip = {"start": item.start, "end": item.end, "fps": item.fps}
        numbers, height, width = planned(
            path, index, file.height, file.width, settings=self._sizes, factor=factor, also=item.also, **clip
        )
        return MediumSize("video", tuple(index.times[number] for number in numbers), numbers, height, width)


@lru_cache(maxsize=64)
def even_index(frames: int, duration: float, rate: float) -> FrameIndex:
    """The index of a file whose frames are shown equally long."""
    times = tuple(number * duration / frames for number in range(frames))
    return FrameIndex(
        stamps=tuple(range(frames)),
        times=times,
        end=duration,
        rate=rate,
        keyframes=(0,),
        damaged=frozenset(),
        complete=True,
        stream=0,
        one_thread=True,
    )


@lru_cache(maxsize=1)
def token_counter(settings: tuple[str, ...]) -> TokenCounter:
    """One for each process."""
    return TokenCounter(settings)


def add_settings_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--settings", nargs="+", default=[], metavar="KEY=VALUE", help=f"arguments of scripts/train.py, {what}"
    )
