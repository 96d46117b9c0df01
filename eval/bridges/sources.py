"""Questions of a benchmark or of a manifest with all that decides how they are asked and scored, from one text.

Another program keeps that text with every question. Its model class reads from it how to ask, its scoring how to score, so
both do exactly what `eval.run` does.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from omegaconf import OmegaConf

from eval import bench, benchmarks
from eval.bench_results import Answered, Record, Tables
from eval.benchmarks.base import Seen
from eval.run import EvalConfig
from visd.config import ConfigError, PromptSection
from visd.data.manifest import load_manifest
from visd.data.prompts import instruction
from visd.media.chat import PLACEHOLDER
from visd.reward.combine import score
from visd.rollout.base import Sampling
from visd.seeding import derive_seed
from visd.types import Question

MODEL_FIELDS = (
    "model",
    "engine",
    "memory_share",
    "cache_gb",
    "dtype",
    "attention",
    "threads",
    "frames",
    "out",
    "shard",
)
"""Fields of a run that other programs decide themselves."""


class Source(Protocol):
    """Questions, how they are asked, and how answers to them are scored."""

    root: Path  # of the media's paths
    section: PromptSection
    sampling: Sampling
    metrics: tuple[str, ...]  # names of the reported numbers

    def ids(self) -> list[str]: ...

    def question(self, name: str) -> Question: ...

    def text(self, name: str) -> str:
        """The user's turn as any model is given it, without placeholders of media."""

    def truth(self, name: str) -> str: ...

    def seed(self, name: str) -> int: ...

    def scored(self, name: str, response: str, truncated: bool, frame_size: tuple[int, int] | None) -> dict[str, Any]:
        """What `total` sums up: one answer's scores."""

    def total(self, metric: str, scored: Sequence[Mapping[str, Any]]) -> float: ...


class BenchmarkSource:
    """A benchmark under one of its protocols."""

    def __init__(self, config: bench.BenchConfig):
        self.config = config
        self.benchmark = benchmarks.load(config.benchmark)
        self.protocol = self.benchmark.protocols[config.protocol]
        self.root = Path(config.root)
        self.section = bench.prompt_section(config, self.protocol)
        self.sampling = bench.decoding(config, self.protocol)
        self.metrics = (*self.benchmark.means, *self.benchmark.combine)
        self._items = {item.id: item for item in bench.load_items(self.benchmark, self.root, config.limit)}

    def ids(self) -> list[str]:
        return list(self._items)

    def question(self, name: str) -> Question:
        return self.protocol.asked(self._items[name])

    def text(self, name: str) -> str:
        return self.protocol.text(self._items[name])

    def truth(self, name: str) -> str:
        return json.dumps(bench.plain(self._items[name].truth), ensure_ascii=False)

    def seed(self, name: str) -> int:
        return bench.seeds_of(self.config, name, 1)[0]

    def scored(self, name: str, response: str, truncated: bool, frame_size: tuple[int, int] | None) -> dict[str, Any]:
        item, seen = self._items[name], Seen(frame_size, self.config.box_unit)
        answer = bench.answer_of(item, self.benchmark, response, truncated, 0, seen)
        made = bench.scored(item, self.benchmark, [answer], seen)
        return {"id": name, "unit": made.unit, "categories": made.categories, "status": answer.status, "scores": answer.scores}  # fmt: skip

    def total(self, metric: str, scored: Sequence[Mapping[str, Any]]) -> float:
        records = [
            Record(s["id"], s["unit"], s["categories"], None, [Answered("", False, 0, s["status"], None, s["scores"])])
            for s in scored
        ]
        tables = Tables(records, self.benchmark)
        return float(tables.values(np.ones((1, len(tables.units))))[metric][0])


class ManifestSource:
    """A manifest, asked and rewarded as in training; one greedy answer a question."""

    metrics: tuple[str, ...] = ("accuracy", "correct")

    def __init__(self, config: EvalConfig):
        self.config = config
        self.root = Path(config.root)
        self.section = config.prompt
        self.sampling = Sampling(1, 1.0, 1.0, 0, config.max_new_tokens, greedy=True)
        self._samples = {sample.id: sample for sample in load_manifest(self.root / config.data, self.root)}

    def ids(self) -> list[str]:
        return list(self._samples)

    def question(self, name: str) -> Question:
        return self._samples[name].question()

    def text(self, name: str) -> str:
        question = self._samples[name].question()
        text = PLACEHOLDER.sub("", question.messages[-1].content).strip("\n")
        return f"{text}\n{instruction(question)}" if self.section.instruction else text

    def truth(self, name: str) -> str:
        return json.dumps(bench.plain(self._samples[name].answer.value), ensure_ascii=False)

    def seed(self, name: str) -> int:
        return derive_seed("eval", self.config.seed, name, 0)

    def scored(self, name: str, response: str, truncated: bool, frame_size: tuple[int, int] | None) -> dict[str, Any]:
        rewards = score(self._samples[name], response, self.config.reward, progress=1.0)
        return {"id": name, "scores": {"accuracy": rewards.accuracy, "correct": float(rewards.correct)}}

    def total(self, metric: str, scored: Sequence[Mapping[str, Any]]) -> float:
        return math.fsum(s["scores"][metric] for s in scored) / len(scored)


def describe(config: bench.BenchConfig | EvalConfig) -> str:
    """The text that `open_source` makes the same source of."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in MODEL_FIELDS}
    fields["root"] = str(Path(config.root).resolve())
    return json.dumps(fields, sort_keys=True)


@lru_cache(maxsize=64)
def open_source(described: str) -> Source:
    """The source of a description.

    Raises:
        ConfigError: it asks for several answers a question.
        VisdError: its files are not where they were.
    """
    fields = {**json.loads(described), "model": "", "out": ""}
    if "benchmark" in fields:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(bench.BenchConfig), fields))
        assert isinstance(config, bench.BenchConfig)
        if config.samples > 1:
            raise ConfigError("samples: other programs take one answer a question; set it to 1.")
        return BenchmarkSource(config)
    plain = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvalConfig), fields))
    assert isinstance(plain, EvalConfig)
    return ManifestSource(plain)
