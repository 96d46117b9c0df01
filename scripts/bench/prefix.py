"""How much time update and teacher take if a group's prompt runs once, against once a rollout.

    python scripts/bench/prefix.py [--repeats 5] [--write]

One group of G rollouts of R tokens after a prompt of P, and a teacher that sees T tokens more: the proportions of three
video cases, lengths divided by a constant. Both ways go through the code of training: the teacher's pass with its 16 most
probable tokens, then the student's forward over these and its backward. The optimiser's step, the same for both, is left
out. The floor is the ratio of floating-point operations (`scripts/plan.py`; three forwards for the student). Processor time of one thread, so that other processes matter little; the two ways by turns,
medians over repeats. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.compare import place_between_markers
from visd.media.families import family_from_config
from visd.policy.batch import Row
from visd.policy.costs import Architecture, sequence
from visd.policy.model import PolicyModel
from visd.policy.policy import Policy
from visd.teacher.scorer import ScoreJob, score_rows
from visd.train.plan import Plan, plan_rows
from visd.types import Prompt, ScoreNeeds, VisionInputs

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"
MARK = "bench: prefix"
"""Names the place of the table in the page."""
BUDGET = 4096
"""Tokens of a micro-batch, `train.micro_batch_tokens`; a scaled group whose prompt is shared fits into one."""
TOP_K = 16


@dataclass(frozen=True)
class Case:
    """Lengths in tokens."""

    name: str
    prompt: int
    response: int
    group: int
    privileged: int

    def scaled(self, by: int) -> Case:
        prompt, response, privileged = (max(1, round(n / by)) for n in (self.prompt, self.response, self.privileged))
        return Case(self.name, prompt, response, self.group, privileged)


CASES = (
    Case("A: 16 frames of 128 tokens", 1280, 512, 8, 600),
    Case("B: 64 frames of 256 tokens", 8492, 512, 8, 600),
    Case("C: 128 frames of 256 tokens", 16684, 512, 8, 600),
)


@dataclass(frozen=True)
class Shape:
    """A decoder with random weights, and what its lengths are divided by."""

    name: str
    sizes: Architecture
    scale: int

    def policy(self) -> Policy:
        """The same weights each time."""
        torch.manual_seed(0)
        config = Qwen3Config(
            hidden_size=self.sizes.hidden, num_hidden_layers=self.sizes.layers, num_attention_heads=self.sizes.heads,
            num_key_value_heads=self.sizes.kv_heads, head_dim=self.sizes.head_size,
            intermediate_size=self.sizes.mlp, vocab_size=self.sizes.vocabulary, tie_word_embeddings=True,
            max_position_embeddings=32768, bos_token_id=None, eos_token_id=3, pad_token_id=0,
        )  # fmt: skip
        hf = Qwen3ForCausalLM(config).eval()
        return Policy(PolicyModel(hf, family_from_config(config), tower_inside=False), None, "random", (3,))


SHAPES = (
    Shape("tiny", Architecture(128, 4, 4, 2, 32, 384, 4096, tied=True, head_norms=True), 16),
    Shape("100M", Architecture(768, 12, 12, 6, 64, 2816, 4096, tied=True, head_norms=True), 64),
)


def floor(model: Architecture, case: Case, shared: bool, forwards: int) -> float:
    """Operations of the teacher's pass and of the student's `forwards` (3: forward and backward; 4: with recomputing)."""
    total = 0.0
    for own, passes in ((case.response, forwards), (case.privileged + case.response, 1)):
        tokens, pairs = sequence(case.prompt, own, case.group, shared)
        total += passes * (model.forward_flops(tokens, pairs) + model.head_flops(case.group * case.response))
    return total


def rows_of(case: Case, teacher: bool) -> list[Row]:
    """A group's rows; the teacher's privileged texts, different for each rollout, come before the prompt's last token."""
    numbers = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randint(10, 4000, (count,), generator=numbers)

    shared, vision = draw(case.prompt), VisionInputs()
    rows = []
    for _ in range(case.group):
        told, response = draw(case.privileged), draw(case.response)
        ids = torch.cat([shared[:-1], told, shared[-1:]]) if teacher else shared
        positions = torch.arange(len(ids)).expand(4, -1)
        types = torch.zeros(len(ids), dtype=torch.int)
        prompt = Prompt("group", "", ids, types, positions, vision, (), len(ids) - 1)
        rows.append(Row(prompt, response.tolist()))
    return rows


def planned(policy: Policy, rows: Sequence[Row], budget: int) -> Plan:
    return plan_rows(rows, budget, lambda i: f"rollout {i}", policy.shares_prefixes)


def step(policy: Policy, student: Sequence[Row], teacher: Sequence[Row], budget: int = BUDGET) -> tuple[float, Tensor]:
    """Seconds of one step's teacher and update, and the student's log-probabilities."""
    policy.model.zero_grad(set_to_none=True)
    began = time.process_time()
    needs = ScoreNeeds(top_k=TOP_K, entropy=True)
    policy.set_training(False)
    taught = score_rows(policy, ScoreJob(teacher, planned(policy, teacher, budget).batches, 1.0, needs))
    support = [scores.support_ids for scores in taught if scores.support_ids is not None]
    policy.set_training(True)
    found: list[Tensor] = [torch.empty(0)] * len(student)
    for batch in planned(policy, student, budget).batches:
        scores = policy.score(
            [student[i] for i in batch], temperature=1.0, needs=ScoreNeeds(entropy=True),
            support_ids=torch.stack([support[i] for i in batch]),
        )  # fmt: skip
        assert scores.support_logp is not None
        (scores.logp.mean() + 0.1 * scores.support_logp.mean()).backward()
        for b, i in enumerate(batch):
            found[i] = scores.logp[b].detach()
    return time.process_time() - began, torch.cat(found)


@dataclass(frozen=True)
class Result:
    """Of one shape and case."""

    shape: Shape
    case: Case  # scaled
    plain: float  # s, median
    shared: float
    ratio: float  # median of the repeats' ratios
    allowed: float  # the floor's ratio
    difference: float  # nats, largest of the log-probabilities

    def row(self) -> str:
        c = self.case
        lengths = f"{c.prompt}, {c.response}, {c.group}, {c.privileged}"
        return (
            f"| {self.shape.name} | {c.name} | {lengths} | {self.plain:.2f} s | {self.shared:.2f} s | {self.ratio:.2f} | "
            f"{self.allowed:.2f} | {self.ratio / self.allowed:.0%} | {self.difference:.0e} |"
        )


def measured(shape: Shape, case: Case, repeats: int) -> Result:
    """Both ways by turns, once before the clock counts."""
    plain, shared = shape.policy(), shape.policy()
    shared.share_prefixes()
    student, teacher = rows_of(case, teacher=False), rows_of(case, teacher=True)
    firsts = [step(policy, student, teacher)[1] for policy in (plain, shared)]
    times = [[step(policy, student, teacher)[0] for policy in (plain, shared)] for _ in range(repeats)]
    alone, once = zip(*times, strict=True)
    return Result(
        shape,
        case,
        plain=statistics.median(alone),
        shared=statistics.median(once),
        ratio=statistics.median(a / b for a, b in times),
        allowed=floor(shape.sizes, case, False, 3) / floor(shape.sizes, case, True, 3),
        difference=float((firsts[0] - firsts[1]).abs().max()),
    )


HEAD = """| shape | case | P, R, G, T | prompt once a rollout | once a group | ratio | ratio of the floors | reached | difference, nats |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", choices=[s.name for s in SHAPES], default=[s.name for s in SHAPES])
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = HEAD
    print(table, end="", flush=True)
    for shape in (shape for shape in SHAPES if shape.name in args.shapes):
        for case in CASES:
            line = measured(shape, case.scaled(shape.scale), args.repeats).row() + "\n"
            print(line, end="", flush=True)
            table += line
    if args.write:
        place_between_markers(PAGE, MARK, f"\n{table}\n")


if __name__ == "__main__":
    main()
