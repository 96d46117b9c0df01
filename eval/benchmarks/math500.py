"""MATH-500 (arXiv 2305.20050's split of arXiv 2103.03874), text only; answers are compared by math-verify."""

from __future__ import annotations

from pathlib import Path

from eval.answers import Reading
from eval.benchmarks.base import Benchmark, Item, Protocol, Seen
from eval.benchmarks.files import Source, field
from eval.benchmarks.protocols import with_presets
from visd.types import VisdError

HUB = "HuggingFaceH4/MATH-500"
NEEDS = "test.jsonl"
LIMIT = 60
"""s; most that reading or comparing one expression may take. Far above need, so that a busy machine changes no score."""


def read(root: Path) -> list[Item]:
    return [
        Item(
            id=str(row.get("unique_id", number)),
            question=field(row, "problem", HUB),
            kind="math",
            truth=str(field(row, "answer", HUB)),
            categories={key: str(row[key]) for key in ("subject", "level") if key in row},
        )
        for number, row in enumerate(Source(root, HUB, NEEDS).rows("test.jsonl"))
    ]


def score(item: Item, reading: Reading, seen: Seen) -> dict[str, float]:
    return {"accuracy": float(reading.value is not None and same_value(item.truth, reading.value))}


def same_value(truth: str, answer: str) -> bool:
    """Whether two expressions have the same value.

    Raises:
        VisdError: math-verify is not installed.
    """
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as error:
        raise VisdError("benchmark: math500 compares answers by math-verify; install visd[eval].") from error
    if truth.strip() == answer.strip():
        return True
    one, two = (parse(f"${text.strip().strip('$')}$", parsing_timeout=LIMIT) for text in (truth, answer))
    return bool(verify(one, two, timeout_seconds=LIMIT))


OFFICIAL = Protocol(
    source="zero-shot with reasoning",
    templates={"*": "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."},
    video={},
    max_new_tokens=4096,
)
BENCHMARK = Benchmark(
    name="math500",
    title="MATH-500",
    split="test",
    hub=HUB,
    needs=NEEDS,
    on_hub={HUB: ("test.jsonl",)},
    read=read,
    score=score,
    protocols=with_presets(OFFICIAL),
)
