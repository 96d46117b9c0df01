"""Text, videos, images and prompts of several media in one step, spread unevenly: no rank hangs, and nothing changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.mixed import MEDIA, TEXT, TOWERS, Outcome, made_run, take_step, write_world
from tests.dist.mixed_worker import TRIED
from tests.dist.spawn import run
from tests.models import FAMILIES

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(600)]  # each mode has a limit of its own


@pytest.fixture(scope="module")
def models(tiny_qwen2_5_vl: Path, tiny_qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    (folder / "qwen2_5_vl").symlink_to(tiny_qwen2_5_vl)
    (folder / "qwen3_vl").symlink_to(tiny_qwen3_vl)
    return folder


@pytest.fixture(scope="module")
def root(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_world(folder, small_world / "videos")
    return folder


@pytest.fixture(scope="module")
def single(root: Path, models: Path) -> dict[str, Outcome]:
    """The step in one process, by tower."""
    return {tower: take_step(made_run(tower, "none", root, models), (*TEXT, *MEDIA)) for tower in TOWERS}


@pytest.fixture(scope="module")
def two_ranks(root: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AssertionError | None]:
    """One file a mode and tower, as far as two processes came, and what ended them."""
    out = tmp_path_factory.mktemp("outcomes")
    try:
        run("mixed_worker", [str(root), str(models), str(out)], 2, out / "logs", timeout=540)
    except AssertionError as error:
        return out, error
    return out, None


@pytest.mark.parametrize(("mode", "tower"), TRIED)
def test_a_mixed_step_is_the_same_on_two_ranks(
    mode: str, tower: str, single: dict[str, Outcome], two_ranks: tuple[Path, AssertionError | None]
) -> None:
    expected = single[tower]
    for name, found in read(two_ranks, f"{mode} {tower}").items():
        outcome = Outcome(**found)
        assert outcome.tokens == expected.tokens, name
        assert outcome.loss == pytest.approx(expected.loss, rel=1e-5), name
        assert outcome.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5), name


def test_fsdp2_keeps_the_towers_of_all_families_in_step(two_ranks: tuple[Path, AssertionError | None]) -> None:
    """The processes compare with one process themselves."""
    assert read(two_ranks, "families") == list(FAMILIES)


def read(two_ranks: tuple[Path, AssertionError | None], name: str) -> Any:
    """What the two processes wrote, or what ended them before."""
    out, error = two_ranks
    if error is not None and not (out / f"{name}.json").exists():
        raise error
    return json.loads((out / f"{name}.json").read_text())
