"""Optimisers and the learning rate of a step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from visd.config import OptimSection
from visd.train.muon import Muon


def learning_rate(section: OptimSection, step: int, steps: int) -> float:
    """Learning rate of a 0-based step: linear warm-up, then constant or half a cosine down to `min_lr_ratio`."""
    if step < section.warmup_steps:
        return section.lr * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.lr
    progress = (step - section.warmup_steps) / max(1, steps - section.warmup_steps)
    floor = section.min_lr_ratio
    return section.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimizer_factory(section: OptimSection, model: nn.Module) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """What builds the optimiser of the trained parameters of `model`, once they lie where they will be trained."""
    if section.algorithm == "adamw":
        return lambda parameters: adamw(section, parameters)
    return lambda parameters: MuonWithAdamW(section, *split_for_muon(model, parameters))


def adamw(section: OptimSection, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW; weight decay acts on matrices only."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (section.betas[0], section.betas[1])
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=section.lr, betas=betas, eps=section.eps)


def split_for_muon(model: nn.Module, parameters: list[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices inside the model, and all else: tables of embeddings, the head tied to them, biases, convolutions."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear):
        tables.add(id(head.weight))
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in tables]
    taken = {id(p) for p in matrices}
    return matrices, [p for p in parameters if id(p) not in taken]


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW for all else, as one optimiser with one state and one learning rate."""

    def __init__(self, section: OptimSection, matrices: list[nn.Parameter], others: list[nn.Parameter]):
        muon = Muon(matrices, section.lr, section.momentum, section.weight_decay)
        self.parts: list[torch.optim.Optimizer] = [muon, adamw(section, others)] if others else [muon]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and state are the same objects in the parts and here."""
        start = 0
        for part in self.parts:
            end = start + len(part.param_groups)
            part.param_groups = self.param_groups[start:end]
            part.state = self.state
            start = end

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.state = defaultdict(dict, self.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()
