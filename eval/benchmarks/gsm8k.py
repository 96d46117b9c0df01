"""GSM8K (arXiv 2110.14168): 1,319 problems of the test set, text only."""

from __future__ import annotations

from pathlib import Path

from eval.benchmarks.base import Benchmark, Item, Protocol
from eval.benchmarks.files import Source, field
from eval.benchmarks.protocols import with_presets
from visd.reward.parse import parse_number
from visd.types import VisdError

HUB = "openai/gsm8k"
NEEDS = "test.jsonl, or main/test-00000-of-00001.parquet"


def read(root: Path) -> list[Item]:
    """The true number follows `####` at the solution's end."""
    items = []
    for number, row in enumerate(Source(root, HUB, NEEDS).rows("test.jsonl", "main/test-*.parquet")):
        name = f"gsm8k_{number}"
        _, mark, last = str(field(row, "answer", name)).rpartition("####")
        truth = parse_number(last) if mark else None
        if truth is None:
            raise VisdError(f"{name}: the answer ends with no `#### number`; is this the published file?")
        items.append(Item(id=name, question=field(row, "question", name), kind="number", truth=truth))
    return items


OFFICIAL = Protocol(
    source="zero-shot with reasoning",
    templates={"*": "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."},
    video={},
    max_new_tokens=2048,
)
BENCHMARK = Benchmark(
    name="gsm8k",
    title="GSM8K",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("main/test-*.parquet",)},
    read=read,
    protocols=with_presets(OFFICIAL),
)
