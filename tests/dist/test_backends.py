"""Every parallel mode against one process: same losses, norms, weights, teacher; resume, skipped steps, time limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dist.spawn import run, start, wait
from visd.parallel.storage import load_tensors

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The same work in one process, which passes the same checks."""
    return results("none", 0, tmp_path_factory.mktemp("none"))


def results(mode: str, world_size: int, folder: Path, *options: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    run("backend_worker", [mode, str(folder), *options], world_size, folder / "logs")
    return json.loads((folder / "records.json").read_text()), load_tensors(folder / "final.safetensors")


@pytest.mark.parametrize(
    ("mode", "world_size", "options"),
    [
        ("ddp", 2, ()), ("zero2", 2, ()), ("zero3", 2, ()), ("fsdp2", 2, ()), ("zero3", 0, ()), ("fsdp2", 0, ()),
        ("zero2", 2, ("offload",)),
    ],
)  # fmt: skip
def test_equals_one_process(
    reference: tuple[list[dict[str, Any]], dict[str, Tensor]],
    mode: str,
    world_size: int,
    options: tuple[str, ...],
    tmp_path: Path,
) -> None:
    expected, expected_weights = reference
    records, weights = results(mode, world_size, tmp_path, *options)
    for record, wanted in zip(records, expected, strict=True):
        assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        assert record["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-6)
        assert record["logp"] == pytest.approx(wanted["logp"], abs=3e-6)
        assert record["displacement"] == pytest.approx(wanted["displacement"], rel=1e-6)
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected_weights[name], rtol=1e-6, atol=1e-6)


def test_reference_is_clipped_and_moves(reference: tuple[list[dict[str, Any]], dict[str, Tensor]]) -> None:
    """Otherwise the comparison would not see a wrong clip, a teacher that stands still, or losses averaged twice."""
    records, _ = reference
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
