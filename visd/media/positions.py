"""Rotary positions of a prompt, as pure functions. Every forward gets them explicitly; none is left to a library.

All return [4, P] long tensors: row 0 counts tokens (transformers finds packed segments by it), rows 1-3 are time,
height and width. Text has the same value in rows 1-3 and counts up by one.

Two rules exist for Qwen2.5-VL and disagree after a video that lasts longer than it is wide:

* `vllm` (also transformers up to 5.2): text goes on from the largest position so far + 1;
* `transformers` (seen in 5.16 to 5.19): text goes on max(height, width) after the video's own start.

Time of temporal cell k is the start + trunc(k * seconds_per_grid * tokens_per_second): the product is truncated, the
seconds are not. The engines round differently before truncating, and each rule does as its engine: vLLM 0.32 reads
the seconds as float32 and multiplies in float64, transformers 5.19 multiplies in float32 throughout. (transformers
5.16 truncated the seconds first, which puts all cells of a clip sampled above 2 frames a second at the same time;
that is not reproduced.)

Qwen3-VL writes each temporal cell's time as text, so that a cell is a grid of its own with one time step, and both
rules agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from visd.types import VisdError

TEXT, IMAGE, VIDEO = 0, 1, 2
"""Values of `mm_token_type_ids`."""

Grid = Sequence[int]
"""Temporal cells, patch rows, patch columns."""

_Block = tuple[Tensor, int]
"""Positions [3, n] relative to the block's start, and how far the text after it advances from that start."""


def text_only(length: int) -> Tensor:
    """[4, length], all rows counting tokens."""
    return torch.arange(length).expand(4, length).clone()


def qwen2_5_vl(
    token_types: Sequence[int],
    image_grids: Sequence[Grid],
    video_grids: Sequence[Grid],
    second_per_grid: Sequence[float],
    merge_size: int,
    tokens_per_second: float,
    rule: str,
) -> Tensor:
    """[4, P] positions of Qwen2.5-VL; see the module's docstring for the rules.

    Args:
        token_types: [P], 0 text, 1 image, 2 video.
        image_grids, video_grids: in patches, in the order of their placeholders.
        second_per_grid: s covered by one temporal cell, one a video.
        rule: `vllm` or `transformers`.

    Raises:
        VisdError: placeholders and grids do not fit together, or no such rule.
    """
    if rule not in ("vllm", "transformers"):
        raise VisdError(f"prompt.position_rule: {rule!r} is not one of vllm, transformers.")
    if len(second_per_grid) != len(video_grids):
        raise VisdError(f"{len(video_grids)} videos but {len(second_per_grid)} seconds per grid.")
    by_size = rule == "transformers"
    images = (_block(torch.arange(1), grid, merge_size, by_size) for grid in image_grids)
    videos = (
        _block(_cell_times(grid[0], seconds, tokens_per_second, rule), grid, merge_size, by_size)
        for grid, seconds in zip(video_grids, second_per_grid, strict=True)
    )
    return _compose(token_types, images, videos)


def qwen3_vl(
    token_types: Sequence[int], image_grids: Sequence[Grid], video_grids: Sequence[Grid], merge_size: int
) -> Tensor:
    """[4, P] positions of Qwen3-VL: every temporal cell of a video is a block of its own."""
    cells = [grid for grid in video_grids for _ in range(grid[0])]
    images, videos = (
        (_block(torch.arange(1), grid, merge_size, True) for grid in grids) for grids in (image_grids, cells)
    )
    return _compose(token_types, images, videos)


def _cell_times(cells: int, seconds: float, tokens_per_second: float, rule: str) -> Tensor:
    single = torch.tensor(seconds, dtype=torch.float32)
    if rule == "transformers":
        return (torch.arange(cells) * (single * tokens_per_second)).long()
    return (torch.arange(cells, dtype=torch.float64) * (single.item() * tokens_per_second)).long()


def _block(times: Tensor, grid: Grid, merge_size: int, by_size: bool) -> _Block:
    rows, columns = grid[1] // merge_size, grid[2] // merge_size
    t = times.repeat_interleave(rows * columns)
    h = torch.arange(rows).repeat_interleave(columns).repeat(len(times))
    w = torch.arange(columns).repeat(rows * len(times))
    block = torch.stack([t, h, w])
    return block, max(rows, columns) if by_size else int(block.max()) + 1


def _compose(token_types: Sequence[int], images: Iterator[_Block], videos: Iterator[_Block]) -> Tensor:
    blocks = {IMAGE: images, VIDEO: videos}
    names = {IMAGE: "image", VIDEO: "video"}
    pieces: list[Tensor] = []
    index = position = 0
    while index < len(token_types):
        kind = token_types[index]
        if kind == TEXT:
            end = _run_end(token_types, index)
            pieces.append(torch.arange(position, position + end - index).expand(3, -1))
            index, position = end, position + end - index
            continue
        block, advance = next(blocks[kind], (None, 0))
        if block is None:
            raise VisdError(f"the prompt has a placeholder for an {names[kind]} at token {index} that has no grid.")
        end = index + block.shape[1]
        if any(other != kind for other in token_types[index:end]) or end > len(token_types):
            raise VisdError(
                f"the {names[kind]} at token {index} has {block.shape[1]} tokens by its grid, but fewer placeholders."
            )
        pieces.append(block + position)
        index, position = end, position + advance
    for kind, rest in blocks.items():
        if next(rest, None) is not None:
            raise VisdError(f"there are more {names[kind]} grids than placeholders in the prompt.")
    rope = torch.cat(pieces, dim=1) if pieces else torch.zeros((3, 0), dtype=torch.long)
    return torch.cat([torch.arange(len(token_types))[None], rope])


def _run_end(token_types: Sequence[int], start: int) -> int:
    end = start
    while end < len(token_types) and token_types[end] == TEXT:
        end += 1
    return end


def plain_grids(grids: Tensor | None) -> list[Grid]:
    """[media, 3] as lists; none for None."""
    if grids is None:
        return []
    return list(grids.tolist())
