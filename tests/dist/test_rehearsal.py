"""Two processes rehearse together in every mode: none waits for the other, and their steps are the same bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.spawn import run


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_ranks_go_on_as_if_nothing_had_been(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    arguments = [str(small_world), str(tiny_qwen2_5_vl), str(tmp_path / "out")]
    run("rehearse_worker", arguments, 2, tmp_path / "logs", timeout=450)
    assert all("done" in (tmp_path / "logs" / f"rank_{rank}.log").read_text() for rank in range(2))
