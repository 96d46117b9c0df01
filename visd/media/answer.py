"""Media inside an answer: frames that a tool shows between the policy's own words.

They are images, whatever they were taken from, so that their positions follow the family's rule for images and need no rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visd.media.families.base import Family
from visd.types import AnswerMedia, VisionInputs


@dataclass(frozen=True)
class Showing:
    """What a tool says with frames in it."""

    ids: tuple[int, ...]
    token_types: Tensor  # [ids] int, 0 text, 1 image
    vision: VisionInputs  # images alone
    times: tuple[float, ...]  # s, one an image


def answer_media(family: Family, rule: str, showings: Sequence[tuple[int, Showing]], length: int) -> AnswerMedia | None:
    """The media of an answer of `length` tokens; None where nothing is shown.

    Args:
        rule: `prompt.position_rule`.
        showings: each with the place of its first token in the answer.
    """
    if not showings:
        return None
    types = torch.zeros(length, dtype=torch.int)
    for start, showing in showings:
        types[start : start + len(showing.ids)] = showing.token_types
    vision = joined([showing.vision for _, showing in showings])
    times = tuple(time for _, showing in showings for time in showing.times)
    return AnswerMedia(types, family.positions(types, vision, rule), vision, times)


def joined(images: Sequence[VisionInputs]) -> VisionInputs:
    """Images of several turns as those of one answer."""
    pixels = [part.pixel_values for part in images if part.pixel_values is not None]
    grids = [part.image_grid_thw for part in images if part.image_grid_thw is not None]
    return VisionInputs(pixel_values=torch.cat(pixels), image_grid_thw=torch.cat(grids))
