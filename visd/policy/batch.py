"""Inputs of one forward over prompts and responses, right-padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from visd.policy.attention import SharedLayout
from visd.types import AnswerMedia, Prompt, VisionInputs


@dataclass
class VisionFeatures:
    """Outputs of the vision tower for one prompt, in the order of its placeholders."""

    embeds: Tensor  # [visual tokens, hidden]
    deepstack: tuple[Tensor, ...] = ()  # Qwen3-VL: one [visual tokens, hidden] a deepstack layer


@dataclass(frozen=True)
class Shown:
    """Media within a response, which a tool put there."""

    media: AnswerMedia
    own: Sequence[bool]  # [T]; the other tokens are seen and not scored
    features: VisionFeatures


@dataclass(frozen=True)
class Row:
    """One sequence to score: a prompt and the tokens that follow it."""

    prompt: Prompt
    response_ids: Sequence[int]
    features: VisionFeatures | None = None  # None: no media, or the tower runs inside the forward
    shown: Shown | None = None  # None: the response is text

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response_ids)


@dataclass
class ForwardInputs:
    """What the policy's forward takes. B: sequences, L: their padded length, R: rows, T: padded responses.

    Each row is a sequence, unless a layout says that one sequence holds them all.
    """

    input_ids: Tensor  # [B, L] long, prompt then response, right-padded
    attention_mask: Tensor  # [B, L] bool
    mm_token_type_ids: Tensor  # [B, L] int; 0 on what the policy wrote
    position_ids: Tensor  # [4, B, L] long
    response_index: Tensor  # [R, T] long: the position whose hidden state predicts response token t
    response_ids: Tensor  # [R, T] long
    response_mask: Tensor  # [R, T] bool, tokens to score
    features: (
        VisionFeatures | None
    )  # of all media, concatenated in the order of their tokens; None where there are none
    media: tuple[VisionInputs, ...] = ()  # for a tower inside the forward: one a prompt that has media
    layout: SharedLayout | None = None  # B is 1 and rows share prefixes: `response_index` then is a place among the L

    @property
    def prompt_types(self) -> list[Tensor]:
        """Token types of each prompt, one a prefix where rows share some."""
        if self.layout is None:
            return [row[mask] for row, mask in zip(self.mm_token_type_ids, self.attention_mask, strict=True)]
        return [self.mm_token_type_ids[0, span.start : span.middle] for span in self.layout.spans]

    def to(self, device: torch.device) -> ForwardInputs:
        moved: dict[str, Any] = {f.name: _move(getattr(self, f.name), device) for f in fields(self)}
        return ForwardInputs(**moved)


def _move(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, SharedLayout):
        return value.to(device)
    if isinstance(value, VisionFeatures):
        return VisionFeatures(value.embeds.to(device), tuple(level.to(device) for level in value.deepstack))
    return value


def build_inputs(rows: Sequence[Row]) -> ForwardInputs:
    """Pad rows to one batch.

    Positions of a response continue from the last prompt position + 1; token types come from the prompt, and from what a
    tool showed, so that what a policy writes can never be taken for media.
    """
    length = max(len(row) for row in rows)
    width = max(1, max(len(row.response_ids) for row in rows))
    shape = (len(rows), length)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    token_types = torch.zeros(shape, dtype=torch.int)
    position_ids = torch.zeros((4, *shape), dtype=torch.long)
    response_index = torch.zeros((len(rows), width), dtype=torch.long)
    response_ids = torch.zeros((len(rows), width), dtype=torch.long)
    response_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for b, row in enumerate(rows):
        prompt_len, total, count = len(row.prompt), len(row), len(row.response_ids)
        ids = torch.as_tensor(row.response_ids, dtype=torch.long)
        input_ids[b, :prompt_len] = row.prompt.input_ids
        input_ids[b, prompt_len:total] = ids
        attention_mask[b, :total] = True
        token_types[b, :prompt_len] = row.prompt.mm_token_type_ids
        token_types[b, prompt_len:total] = response_types(row)
        position_ids[:, b, :prompt_len] = row.prompt.position_ids
        position_ids[:, b, prompt_len:total] = response_positions(row.prompt, count, media_of(row))
        response_index[b, :count] = torch.arange(prompt_len - 1, total - 1)
        response_ids[b, :count] = ids
        response_mask[b, :count] = scored_tokens(row)
    return ForwardInputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mm_token_type_ids=token_types,
        position_ids=position_ids,
        response_index=response_index,
        response_ids=response_ids,
        response_mask=response_mask,
        features=concatenate_features([part for row in rows for part in (row.features, shown_features(row))]),
        media=tuple(row.prompt.vision for row in rows if row.features is None and not row.prompt.vision.empty),
    )


def response_positions(prompt: Prompt, count: int, media: AnswerMedia | None = None) -> Tensor:
    """[4, count]: row 0 goes on counting tokens, rows 1-3 go on from the last prompt position, within media by their rule."""
    steps = torch.arange(count).expand(4, count) if media is None else media.positions
    start = prompt.next_position
    return steps + torch.tensor([len(prompt), start, start, start])[:, None]


def media_of(row: Row) -> AnswerMedia | None:
    return row.shown.media if row.shown is not None else None


def response_types(row: Row) -> Tensor:
    """[T] int."""
    return torch.zeros(len(row.response_ids), dtype=torch.int) if row.shown is None else row.shown.media.token_types


def scored_tokens(row: Row) -> Tensor:
    """[T] bool: all, but among media only those that the policy wrote, since ids of media have no probability."""
    return torch.tensor([True] * len(row.response_ids) if row.shown is None else list(row.shown.own), dtype=torch.bool)


def shown_features(row: Row) -> VisionFeatures | None:
    return row.shown.features if row.shown is not None else None


def concatenate_features(found: Sequence[VisionFeatures | None]) -> VisionFeatures | None:
    """Features, one after the other; None for none."""
    parts = [part for part in found if part is not None]
    if not parts:
        return None
    levels = tuple(torch.cat(level) for level in zip(*(part.deepstack for part in parts), strict=True))
    return VisionFeatures(torch.cat([part.embeds for part in parts]), levels)
