"""What the output head's own backward saves at a real vocabulary: time and peak memory against whole logits.

    python scripts/bench/head.py [--hidden 256] [--positions 512] [--repeats 3] [--write]

Log-probabilities and entropies of N response positions at a vocabulary of 151,936, and gradients of hidden states and
weights, in float32. *Whole logits* is what autograd makes of logits, log-softmax and entropy of all positions at once;
*chunks by checkpoint* does the same a chunk at a time and recomputes each in the backward pass; *own backward* is
`visd/policy/head.py`. Processor time of one thread, the three by turns, medians over repeats; memory is how far a process of
its own grows beyond weights and hidden states, the weights' gradient included. `--write` puts the table into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.bench.peak import MIB, peak_growth
from scripts.compare import place_between_markers
from visd.policy import head as head_module
from visd.policy.head import ScoringHead, chunks, make_scoring, score_positions
from visd.types import ScoreNeeds

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"
MARK = "bench: head"
VOCABULARY = 151_936
Way = Callable[[ScoringHead, Tensor, Tensor], tuple[Tensor, Tensor]]


def whole(head: ScoringHead, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    logp = head(hidden).log_softmax(-1)
    entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
    return logp.gather(-1, ids[:, None]).squeeze(-1), entropy


def by_checkpoint(head: ScoringHead, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    parts = [
        checkpoint(whole, head, hidden[piece], ids[piece], use_reentrant=False)
        for piece in chunks(len(ids), head.weight.shape[0])
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def own(head: ScoringHead, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    banned = torch.zeros(head.weight.shape[0], dtype=torch.bool)
    found = score_positions(head, hidden, ids, temperature=1.0, banned_V=banned, needs=ScoreNeeds(entropy=True))
    return found["logp"], found["entropy"]


WAYS: dict[str, Way] = {"whole logits": whole, "chunks by checkpoint": by_checkpoint, "own backward": own}


def made(hidden_size: int, positions: int, vocabulary: int) -> tuple[ScoringHead, Tensor, Tensor]:
    torch.manual_seed(0)
    head = make_scoring(nn.Linear(hidden_size, vocabulary, bias=False))
    hidden = torch.randn(positions, hidden_size, requires_grad=True)
    return head, hidden, torch.randint(0, vocabulary, (positions,))


def step(way: Way, head: ScoringHead, hidden: Tensor, ids: Tensor) -> tuple[float, Tensor]:
    """Seconds of a forward and backward, and the gradient of the hidden states."""
    for tensor in (head.weight, hidden):
        tensor.grad = None
    began = time.process_time()
    logp, _ = way(head, hidden, ids)
    (-logp.mean()).backward()
    seconds = time.process_time() - began
    assert hidden.grad is not None
    return seconds, hidden.grad


def measured(hidden_size: int, positions: int, vocabulary: int, repeats: int) -> str:
    """The table's rows. Memory comes first, since a process that has computed gradients should not be forked."""

    def prepared(way: Way) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            parts = made(hidden_size, positions, vocabulary)
            return lambda: step(way, *parts)

        return prepare

    memory = {name: peak_growth(prepared(way)) for name, way in WAYS.items()}
    parts = made(hidden_size, positions, vocabulary)
    exact = step(whole, *parts)[1].clone()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    gaps: dict[str, float] = {}
    for _ in range(repeats):
        for name, way in WAYS.items():
            seconds, grad = step(way, *parts)
            times[name].append(seconds)
            gaps[name] = float((grad - exact).norm() / exact.norm())
    rows = ""
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(found, times["whole logits"], strict=True))
        share = memory[name] / memory["whole logits"]
        rows += (
            f"| {name} | {statistics.median(found):.2f} s | {ratio:.2f} | {memory[name] / MIB:,.0f} MiB | {share:.2f} | "
            f"{gaps[name]:.0e} |\n"
        )
    return rows


HEAD = """| head | forward and backward | ratio | peak memory | ratio | gradients differ by |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measured(args.hidden, args.positions, args.vocabulary, args.repeats)
    table = f"{HEAD}{rows}"
    print(table)
    print(f"chunk: {head_module.CHUNK_ELEMENTS // args.vocabulary} positions")
    if args.write:
        place_between_markers(PAGE, MARK, f"\n{table}\n")


if __name__ == "__main__":
    main()
