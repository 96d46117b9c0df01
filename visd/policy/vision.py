"""The vision tower: media in, one embedding a placeholder token out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visd.policy.batch import VisionFeatures
from visd.types import VisionInputs

IMAGE, VIDEO = 1, 2
"""Values of `mm_token_type_ids`."""


class PatchProduct(nn.Conv3d):
    """A convolution whose input is exactly one patch, as the matrix product that it is.

    Convolution kernels for this shape are slow, on a CPU by a factor of five. Weights keep their name and shape.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != self.kernel_size:
            return super().forward(input)
        product = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return product[:, :, None, None, None]


def multiply_patches(tower: nn.Module) -> None:
    """Have a tower embed its patches by a matrix product."""
    for module in tower.modules():
        if type(module) is nn.Conv3d and module.kernel_size == module.stride:
            module.__class__ = PatchProduct


def encode_media(
    tower: nn.Module, media: Sequence[VisionInputs], token_types: Sequence[Tensor]
) -> list[VisionFeatures]:
    """Run the tower once over all media of several prompts.

    Args:
        media: per prompt, not empty.
        token_types: per prompt, [P] token types, which say in what order images and videos stand.

    Returns:
        One `VisionFeatures` a prompt.
    """
    pixels, grids = [], []
    for item in media:
        for values, grid in ((item.pixel_values, item.image_grid_thw), (item.pixel_values_videos, item.video_grid_thw)):
            if values is not None and grid is not None:
                pixels.append(values)
                grids.append(grid)
    parameter = next(tower.parameters())
    output = tower(
        torch.cat(pixels).to(parameter.device, parameter.dtype),
        grid_thw=torch.cat(grids).to(parameter.device),
        return_dict=True,
    )
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
    counts = [int((types > 0).sum()) for types in token_types]
    split = [torch.split(level, counts) for level in levels]
    features = []
    for i, types in enumerate(token_types):
        order = _placeholder_order(types).to(parameter.device)
        features.append(VisionFeatures(split[0][i][order], tuple(level[i][order] for level in split[1:])))
    return features


def _placeholder_order(types: Tensor) -> Tensor:
    """The tower was given images before videos; where each placeholder, in prompt order, finds its feature."""
    kinds = types[types > 0]
    order = torch.empty(len(kinds), dtype=torch.long)
    images = kinds == IMAGE
    order[images] = torch.arange(int(images.sum()))
    order[~images] = torch.arange(int(images.sum()), len(kinds))
    return order


def dummy_media(patch_dim: int, merge_size: int) -> VisionInputs:
    """The smallest video there is, for a rank that has none while others run a trained tower."""
    grid = torch.tensor([[1, merge_size, merge_size]])
    return VisionInputs(
        pixel_values_videos=torch.zeros(merge_size * merge_size, patch_dim),
        video_grid_thw=grid,
        second_per_grid_ts=(1.0,),
    )
