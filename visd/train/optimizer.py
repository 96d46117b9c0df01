"""AdamW and the learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from visd.config import OptimSection


def learning_rate(section: OptimSection, step: int, steps: int) -> float:
    """Learning rate of a 0-based step: linear warm-up, then constant or half a cosine down to `min_lr_ratio`."""
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.lr
    progress = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    floor = section.min_lr_ratio
    return section.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def adamw(section: OptimSection) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """A factory of AdamW over the trained parameters; weight decay acts on matrices only."""

    def build(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": section.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (section.betas[0], section.betas[1])
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=section.lr, betas=betas, eps=section.eps)

    return build
