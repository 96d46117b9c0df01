"""Small groups and micro-batches with known numbers."""

from __future__ import annotations

import math

import numpy as np
import torch

from visd.types import (
    Answer,
    JudgeReport,
    Media,
    Message,
    Prompt,
    Rewards,
    Rollout,
    RolloutGroup,
    Sample,
    TokenBatch,
    TokenCredit,
    TokenScores,
    VisionInputs,
)


def make_group(
    name: str, accuracies: list[float], family: str = "which", lengths: list[int] | None = None
) -> RolloutGroup:
    sample = Sample(
        name, "test", family, (Media("video", "a.mp4"),), (Message("user", "<video>what?"),), Answer("word", "red")
    )
    zeros = torch.zeros(3, dtype=torch.long)
    prompt = Prompt(name, "p", zeros, zeros, torch.zeros(4, 3, dtype=torch.long), VisionInputs(), ((0.0, 0.5),), 2)
    lengths = lengths or [3 + i for i in range(len(accuracies))]
    rollouts = tuple(
        Rollout(
            tuple(range(n)),
            (-0.5,) * n,
            "x" * n,
            ("x",) * n,
            "length" if i == 0 else "eos",
            seed=100 + i,
            policy_version=4,
        )
        for i, n in enumerate(lengths)
    )
    mean = sum(accuracies) / len(accuracies)
    rewards = tuple(
        Rewards(a + 0.2, {"accuracy": a, "format": 1.0, "spatial_iou": None}, a == 1, a) for a in accuracies
    )
    reports = tuple(JudgeReport("ok" if i else "timeout", answer=a, logic=0.5) for i, a in enumerate(accuracies))
    return RolloutGroup(sample, prompt, rollouts, rewards, reports, tuple(a - mean for a in accuracies))


def make_batch(groups: list[RolloutGroup], teacher: bool = True) -> tuple[TokenBatch, TokenCredit, TokenScores]:
    rows = [(group, i) for group in groups for i in range(len(group.rollouts))]
    width = max(len(group.rollouts[i].token_ids) for group, i in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    ratio = torch.full((len(rows), width), 99.0)  # padding must never show
    for row, (group, i) in enumerate(rows):
        n = len(group.rollouts[i].token_ids)
        mask[row, :n] = True
        ratio[row, :n] = torch.from_numpy(np.random.default_rng([len(group.sample.id), i]).normal(size=n)).float()
    batch = TokenBatch(
        token_ids=torch.zeros_like(mask, dtype=torch.long),
        mask=mask,
        advantages=torch.tensor([group.advantages[i] for group, i in rows]),
        engine_logp=torch.full(mask.shape, -0.5),
        groups=[group for group, _ in rows],
        indices=[i for _, i in rows],
        has_teacher=torch.full((len(rows),), teacher),
        dimensions=torch.zeros_like(mask, dtype=torch.long),
        dimension_scores=torch.full((len(rows), 4), math.nan),
    )
    weights = (1 + ratio / 10).clamp(0.9, 1.1)
    credit = TokenCredit(batch.advantages[:, None] * weights, weights, ratio, (weights - 1).abs() > 0.0999)
    return batch, credit, TokenScores(torch.full(mask.shape, -0.6), entropy=torch.where(mask, 2.0, 77.0))
