"""A small model and batch that have what makes parallel training hard, and the steps taken on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visd.parallel import Backend, StepResult

VOCABULARY, WIDTH, HIDDEN = 11, 6, 5  # HIDDEN is odd: shards of two ranks are padded


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        return {"x": x + self.down(torch.tanh(self.up(self.norm(x))))}


class Tiny(nn.Module):
    """Tied head, a frozen part inside, calls by keyword, a recomputed head, a float buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1234567]), persistent=False)
        self.register_buffer("scale", torch.tensor(1.5))

    def shard_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids)
        x = x + self.frozen(x)
        for block in self.blocks:
            x = block(x=x)["x"]
        x = x * self.scale
        logits = checkpoint(self.head, x, use_reentrant=False) if torch.is_grad_enabled() else self.head(x)
        return {"logp": torch.log_softmax(logits.float(), -1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]}


def make_model(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny()


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Weight decay on matrices only: two groups, which a backend has to keep apart."""
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])


def rows(step: int) -> list[Tensor]:
    """The global batch of a step: rows of unequal length, another number each step."""
    generator = torch.Generator().manual_seed(100 + step)
    return [
        torch.randint(VOCABULARY, (int(torch.randint(3, 9, (1,), generator=generator)),), generator=generator)
        for _ in range(5 + step % 3)
    ]


def share(step: int, rank: int, world_size: int) -> list[list[Tensor]]:
    """Micro-batches of a rank: of several the first has all rows but one and the last has that, so that they also idle."""
    batch = rows(step)
    if world_size == 1:
        return [[row] for row in batch]
    own = batch[:-1] if rank == 0 else batch[-1:] if rank == world_size - 1 else []
    return [own[i : i + 2] for i in range(0, len(own), 2)]


def train_step(backend: Backend, step: int, factor: float = 1.0) -> tuple[float, StepResult]:
    """Global loss and result of one step; `factor` scales the last micro-batch's loss on the first rank."""
    micro = share(step, backend.rank, backend.world_size)
    tokens = sum(len(row) - 1 for row in rows(step))
    rounds = int(backend.all_reduce(torch.tensor(float(len(micro))), "max"))
    total = 0.0
    for i in range(rounds):
        last = i == rounds - 1
        if i < len(micro):
            loss = micro_loss(backend, micro[i]) / tokens
        else:  # a round with nothing to learn from
            loss = backend.forward(torch.tensor([[1, 2]]))["logp"].sum() * 0.0
        total += loss.item()
        backend.backward(loss * factor if last and backend.is_main else loss, last=last)
    result = backend.step(lr=1e-2 * (step + 1))
    return float(backend.all_reduce(torch.tensor(total, dtype=torch.float64))), result


def micro_loss(backend: Backend, part: list[Tensor]) -> Tensor:
    """Negative log-likelihood of right-padded rows, summed over their tokens."""
    ids = nn.utils.rnn.pad_sequence(part, batch_first=True)
    lengths = torch.tensor([len(row) for row in part])
    mask = torch.arange(1, ids.shape[1])[None] < lengths[:, None]
    return -(backend.forward(ids)["logp"] * mask).sum()
