"""Whatever rows fall to a rank, all ranks make the same collectives: two hundred random steps on two and on four ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.tiny.model import TinySettings, make_tiny_model
from tests.dist.mixed import write_world
from tests.dist.spawn import run

SIZES = TinySettings(
    "qwen3_vl", text_layers=2, text_width=32, text_heads=2, text_kv_heads=2, text_mlp=64, vision_layers=2, vision_width=32,
    vision_heads=2, vision_mlp=64,
)  # fmt: skip


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "plans"), [(2, 160), (4, 40)])
def test_random_plans_do_not_hang(ranks: int, plans: int, small_world: Path, tmp_path: Path) -> None:
    """With a trained tower cut up among the ranks, where every forward communicates; the processes compare their counts."""
    write_world(tmp_path, small_world / "videos")
    (tmp_path / "models").mkdir()
    make_tiny_model(tmp_path / "models" / "qwen3_vl", SIZES)
    run("plans_worker", [str(tmp_path), str(tmp_path / "models"), str(plans)], ranks, tmp_path / "logs", timeout=540)
