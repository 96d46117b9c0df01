"""Inputs of one forward over prompts and responses, right-padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from visd.policy.attention import SharedLayout
from visd.types import Prompt, VisionInputs


@dataclass
class VisionFeatures:
    """Outputs of the vision tower for one prompt, in the order of its placeholders."""

    embeds: Tensor  # [visual tokens, hidden]
    deepstack: tuple[Tensor, ...] = ()  # Qwen3-VL: one [visual tokens, hidden] a deepstack layer


@dataclass(frozen=True)
class Row:
    """One sequence to score: a prompt and the tokens that follow it."""

    prompt: Prompt
    response_ids: Sequence[int]
    features: VisionFeatures | None = None  # None: no media, or the tower runs inside the forward

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response_ids)


@dataclass
class ForwardInputs:
    """What the policy's forward takes. B: sequences, L: their padded length, R: rows, T: padded responses.

    Each row is a sequence, unless a layout says that one sequence holds them all.
    """

    input_ids: Tensor  # [B, L] long, prompt then response, right-padded
    attention_mask: Tensor  # [B, L] bool
    mm_token_type_ids: Tensor  # [B, L] int; 0 on responses, from the prompt only
    position_ids: Tensor  # [4, B, L] long
    response_index: Tensor  # [R, T] long: the position whose hidden state predicts response token t
    response_ids: Tensor  # [R, T] long
    response_mask: Tensor  # [R, T] bool
    features: VisionFeatures | None  # of all prompts, concatenated in their order; None where none has media
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

    Positions of a response continue from the last prompt position + 1, all four rows alike; token types come from the
    prompt only, so a response can never be taken for media.
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
        position_ids[:, b, :prompt_len] = row.prompt.position_ids
        position_ids[:, b, prompt_len:total] = response_positions(row.prompt, count)
        response_index[b, :count] = torch.arange(prompt_len - 1, total - 1)
        response_ids[b, :count] = ids
        response_mask[b, :count] = True
    return ForwardInputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
        mm_token_type_ids=token_types,
        position_ids=position_ids,
        response_index=response_index,
        response_ids=response_ids,
        response_mask=response_mask,
        features=concatenate_features([row.features for row in rows if row.features is not None]),
        media=tuple(row.prompt.vision for row in rows if row.features is None and not row.prompt.vision.empty),
    )


def response_positions(prompt: Prompt, count: int) -> Tensor:
    """[4, count]: row 0 goes on counting tokens, rows 1-3 go on from the last prompt position."""
    steps = torch.arange(count)
    text = steps + len(prompt)
    rope = steps + prompt.next_position
    return torch.stack([text, rope, rope, rope])


def concatenate_features(parts: Sequence[VisionFeatures]) -> VisionFeatures | None:
    """Features of several prompts, one after the other; None for none."""
    if not parts:
        return None
    levels = tuple(torch.cat(level) for level in zip(*(part.deepstack for part in parts), strict=True))
    return VisionFeatures(torch.cat([part.embeds for part in parts]), levels)
