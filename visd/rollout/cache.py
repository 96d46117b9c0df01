"""A key-value cache with room for the answers: tokens are written in place instead of copying the whole cache for each."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer whose keys and values are the used part of larger storage, [rows, heads, capacity, width]."""

    def __init__(self, filled: DynamicLayer, repeats: int, room: int):
        """Each row of `filled` stands `repeats` times, one after the other, followed by room for `room` positions."""
        super().__init__()
        assert filled.keys is not None and filled.values is not None
        self.dtype, self.device, self.is_initialized = filled.dtype, filled.device, True
        self._stored = tuple(_spread(part, repeats, room) for part in (filled.keys, filled.values))
        self._show(filled.keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for stored, new in zip(self._stored, (key_states, value_states), strict=True):
            stored[..., start:end, :] = new
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows, with the room that they had."""
        length = self.get_seq_length()
        self._stored = tuple(_selected(stored, indices, length) for stored in self._stored)
        self._show(length)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (stored[..., :length, :] for stored in self._stored)
        return self.keys, self.values


def _spread(part: Tensor, repeats: int, room: int) -> Tensor:
    rows, heads, length, width = part.shape
    stored = part.new_empty((rows, repeats, heads, length + room, width))
    stored[..., :length, :] = part[:, None]
    return stored.flatten(0, 1)


def _selected(stored: Tensor, indices: Tensor, length: int) -> Tensor:
    kept = stored.new_empty((len(indices), *stored.shape[1:]))
    kept[..., :length, :] = stored[indices, :, :length]
    return kept


def for_answers(cache: DynamicCache, repeats: int, room: int) -> None:
    """Turn the cache of prompts into that of `repeats` answers each, of at most `room` tokens.

    Layers of other kinds than plain attention (sliding windows) are repeated as they are.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = RoomyLayer(layer, repeats, room)
        else:
            layer.batch_repeat_interleave(repeats)
