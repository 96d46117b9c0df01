"""The vision tower: taken out of the model where it is frozen; media in, one embedding a placeholder token out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visd.media.families.base import Family
from visd.policy.batch import VisionFeatures
from visd.types import VisionInputs


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


class Tower(nn.ModuleList):
    """A family's frozen vision modules outside the trained module, in the order of `Family.vision_modules`."""


def take_tower(hf: nn.Module, family: Family) -> Tower:
    """Take the vision modules out of a model, so that they are neither sharded nor part of its forward."""
    modules = vision_modules(hf, family)
    for path in family.vision_modules:
        parent, _, child = path.rpartition(".")
        setattr(hf.get_submodule(parent), child, None)
    return Tower(modules).eval().requires_grad_(False)


def vision_modules(hf: nn.Module, family: Family) -> list[nn.Module]:
    """A model's vision modules, in the order of `Family.vision_modules`."""
    return [hf.get_submodule(path) for path in family.vision_modules]


def encode_media(
    family: Family, modules: Sequence[nn.Module], media: Sequence[VisionInputs], token_types: Sequence[Tensor]
) -> list[VisionFeatures]:
    """Features of several prompts from one call of the vision modules; see `Family.encode`."""
    return [VisionFeatures(embeds, tuple(inner)) for embeds, *inner in family.encode(modules, media, token_types)]
