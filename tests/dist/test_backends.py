"""Every parallel mode against one process: same losses, norms, weights, teacher; resume, skipped steps, time limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dist.spawn import run, start, wait
from visd.parallel.storage import load_tensors

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@dataclass(frozen=True)
class Done:
    """What the work of `backend_worker` left."""

    folder: Path

    @property
    def records(self) -> list[Any]:
        return json.loads((self.folder / "records.json").read_text())

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_tensors(self.folder / "final.safetensors")


Work = Callable[..., Done]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Does the work once in a mode and number of ranks; 0 is a plain start."""

    @cache
    def do(mode: str, ranks: int, *options: str) -> Done:
        folder = tmp_path_factory.mktemp(f"{mode}_{ranks}")
        run("backend_worker", [mode, str(folder), *options], ranks, folder / "logs")
        return Done(folder)

    return do


@pytest.mark.parametrize(
    ("mode", "ranks", "options"),
    [
        ("ddp", 2, ()), ("zero2", 2, ()), ("zero3", 2, ()), ("fsdp2", 2, ()), ("zero3", 0, ()), ("fsdp2", 0, ()),
        ("zero2", 2, ("offload",)),
    ],
)  # fmt: skip
def test_equals_one_process(work: Work, mode: str, ranks: int, options: tuple[str, ...]) -> None:
    one, done = work("none", 0), work(mode, ranks, *options)
    assert_same_records(done.records, one.records)
    weights, expected = done.weights, one.weights
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "ranks", "written_by"),
    [
        ("none", 0, [("ddp", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2)]),
        ("zero2", 3, [("none", 0), ("zero2", 2), ("zero3", 2)]),
        ("zero3", 3, [("none", 0), ("zero3", 2), ("fsdp2", 2)]),
        ("fsdp2", 3, [("none", 0), ("fsdp2", 2), ("zero2", 2)]),
    ],
)
def test_any_number_of_ranks_goes_on_from_any(
    work: Work, mode: str, ranks: int, written_by: list[tuple[str, int]]
) -> None:
    """Weights, optimiser and teacher, also from another mode: the steps that follow are those of one process."""
    expected = work("none", 0).records[2:]
    others = [str(work(*other).folder) for other in written_by]
    for records in work(mode, ranks, *others).records:
        assert_same_records(records, expected)


def assert_same_records(records: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for record, wanted in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        assert record["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-6)
        assert record["logp"] == pytest.approx(wanted["logp"], abs=3e-6)
        assert record["displacement"] == pytest.approx(wanted["displacement"], rel=1e-6)


def test_reference_is_clipped_and_moves(work: Work) -> None:
    """Otherwise the comparison would not see a wrong clip, a teacher that stands still, or losses averaged twice."""
    records = work("none", 0).records
    norms = [record["grad_norm"] for record in records]
    assert max(norms) > 5.0 > min(norms)
    for record in records:
        teacher, student = record["displacement"]
        assert 0.1 * student < teacher < student
        assert record["logp"][:3] != pytest.approx(record["logp"][3:], abs=1e-3)


def test_a_rank_that_does_not_come_ends_the_others(tmp_path: Path) -> None:
    """The first rank waits no longer than `parallel.timeout_minutes`; its exit code says that it was an error."""
    folders = {mode: tmp_path / mode for mode in ("ddp", "zero2", "fsdp2")}
    started = {mode: start("hang_worker", [mode, str(folder)], 2, folder) for mode, folder in folders.items()}
    for mode, folder in folders.items():
        assert wait(started[mode], 120)[0] == 7, (folder / "rank_0.log").read_text()
        assert 8 < float((folder / "waited").read_text()) < 30
