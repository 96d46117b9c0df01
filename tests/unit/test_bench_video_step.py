"""The benchmark of steps counts what it says it counts, and its ways learn the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.tiny.model import TinySettings
from scripts.bench import video_step as bench

CLIP = {"seconds": 2, "fps": 8, "size": (112, 112)}
SIZES = TinySettings(text_layers=1)


def test_the_tower_runs_once_instead_of_seventeen_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G = 8: one call for all, or one for the rollouts, eight for the teacher and eight for the student."""
    monkeypatch.setattr(bench, "ANSWER", 4)
    monkeypatch.setattr(bench, "SIZES", SIZES)
    monkeypatch.setattr(bench, "WAYS", dict(list(bench.WAYS.items())[:2]))
    monkeypatch.setattr(bench, "ROW", 256)
    bench.write_data(tmp_path, 1, CLIP)
    found = bench.measure_tower(tmp_path, group=8, repeats=1)
    plain, once = found.values()
    assert (plain.videos, once.videos, once.calls) == (17, 1, 1)
    assert once.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    assert bench.tower_table(found).count("\n") == 2 + len(found)
