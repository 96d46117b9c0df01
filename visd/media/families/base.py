"""What the rest of visd must know about an architecture: its facts, and the few things that each does its own way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visd.config import VideoSection
from visd.media.positions import text_only
from visd.media.video import nearest
from visd.types import Frames, Media, MediaKind, VisdError, VisionInputs


@dataclass(frozen=True)
class MediumSize:
    """All that a medium's tokens depend on."""

    kind: MediaKind
    times: tuple[float, ...]  # s, one a frame
    indices: tuple[int, ...]  # frame numbers in the file, one a frame
    height: int  # pixels, as the vision tower sees it
    width: int  # pixels
    also: tuple[int, ...] = ()  # those of `indices` that stay, however few frames are sampled

    @classmethod
    def of(cls, media: Media, frames: Frames) -> MediumSize:
        last = len(frames.times) - 1
        also = {frames.indices[nearest(frames.times, time, 0, last)] for time in media.also}
        height, width = frames.pixels.shape[1:3]
        return cls(media.kind, frames.times, frames.indices, height, width, tuple(sorted(also)))

    def with_frames(self, count: int) -> MediumSize:
        """The same clip in `count` frames and those of `also`.

        Their times lie evenly between the known ones, as in files of one rate.
        """
        numbers = np.linspace(self.indices[0], self.indices[-1], count).round()
        numbers = np.union1d(numbers, self.also) if self.also else numbers
        times = np.interp(numbers, self.indices, self.times)
        return replace(self, times=tuple(times.tolist()), indices=tuple(numbers.astype(int).tolist()))


@dataclass(frozen=True)
class Family:
    """An architecture from outside. This base is a text-only causal language model; media families override it.

    A family is one file in this package, which maps the config's `model_type` to a function in `MODEL_TYPES`.
    """

    name: str
    model_type: str  # the config's
    language_module: str = "model"  # path of the decoder inside the Hugging Face model
    vision_modules: tuple[str, ...] = ()  # paths of the modules that turn pixels into embeddings
    projector_modules: tuple[str, ...] = ()  # paths, among or below them, of what maps to the decoder's width
    pixel_factor: int = 1  # both sides of a frame are multiples of this many pixels
    timestamps_in_text: bool = False  # the processor writes the time of frames into the prompt
    even_frames: bool = False  # a native video's times follow from one rate, so that its frames must lie evenly
    four_rows: bool = False  # the decoder takes [4, B, L] positions; otherwise row 0 of them
    banned_ids: tuple[int, ...] = ()  # ids impossible to sample

    @property
    def has_media(self) -> bool:
        return bool(self.vision_modules)

    def sizes(self, settings: VideoSection) -> VideoSection:
        """The settings with sizes of frames that this family can take."""
        return settings

    def check_processor(self, hf: Any, model_path: str) -> None:
        """Raise VisdError unless the model's config and its Hugging Face processor belong together."""

    def process(
        self, hf: Any, text: str, media: Sequence[Media], frames: Sequence[Frames]
    ) -> tuple[Tensor, Tensor, VisionInputs]:
        """Rendered chat text and decoded media to ids [P], token types [P] and pixels, by the processor `hf`.

        Frames are neither sampled nor resized again.
        """
        ids = hf(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0].long()
        return ids, torch.zeros(len(ids), dtype=torch.int), VisionInputs()

    def cells(self, frames: int) -> int:
        """Temporal patches of a medium of so many frames."""
        return frames

    def visual_tokens(self, size: MediumSize) -> int:
        """Placeholder tokens of a medium."""
        raise VisdError(f"the family {self.name!r} has no vision modules.")

    def prompt_tokens(self, text: str, sizes: Sequence[MediumSize], tokenizer: Any) -> int:
        """Tokens of a rendered chat with one placeholder a medium, in the order of `sizes`, without looking at pixels."""
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def positions(self, token_types: Tensor, vision: VisionInputs, rule: str) -> Tensor:
        """[4, P] positions of a prompt; `rule` is `prompt.position_rule`."""
        if bool((token_types > 0).any()):
            raise VisdError(f"the family {self.name!r} has no media, the prompt has some.")
        return text_only(len(token_types))

    def encode(
        self, modules: Sequence[nn.Module], media: Sequence[VisionInputs], token_types: Sequence[Tensor]
    ) -> list[tuple[Tensor, ...]]:
        """Run the vision modules once over all media of several prompts.

        Args:
            modules: those of `vision_modules`, in order.
            media: one a prompt, not empty.
            token_types: one a prompt, [P].

        Returns:
            One tuple a prompt: embeddings [visual tokens, hidden] in the order of its placeholders, then one such
            tensor for each inner layer of the decoder that takes some (deepstack).
        """
        raise VisdError(f"the family {self.name!r} has no vision modules.")

    def image_text(self, tokenizer: Any) -> str:
        """One image as it is written into a text for `process`; empty for a family that is shown none within an answer."""
        return ""

    def dummy_media(self) -> tuple[VisionInputs, Tensor]:
        """The least that `encode` can be given, for a rank without media while others run a trained tower.

        Returns:
            Media, and the types of their tokens.
        """
        raise VisdError(f"the family {self.name!r} has no vision modules.")


def expanded_tokens(text: str, pads: Sequence[str], expansions: Sequence[tuple[str, int]], tokenizer: Any) -> int:
    """Tokens of `text` after each placeholder of `pads`, in order, became (what is written, further tokens)."""
    waiting = iter(expansions)
    missing = 0

    def expand(match: re.Match[str]) -> str:
        nonlocal missing
        written, further = next(waiting)
        missing += further
        return written

    written = re.sub("|".join(map(re.escape, pads)), expand, text)
    return len(tokenizer(written, add_special_tokens=False)["input_ids"]) + missing


def side(value: int | list[int] | tuple[int, ...], name: str) -> int:
    """A length that a vision config gives once, or once for each axis.

    Raises:
        VisdError: the axes differ.
    """
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise VisdError(f"model.path: vision_config.{name} = {value} is not square, which is not supported.")
    return value[0]
