"""The floor by which the benchmark of shared prefixes judges itself, and that its two ways agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench import prefix as bench
from scripts.bench.prefix import CASES, Case, Shape, floor, measured
from scripts.plan_model import PUBLISHED
from visd.policy.costs import Architecture

SMALL = Architecture(32, 2, 2, 1, 16, 48, 4096, tied=True, head_norms=True)


@pytest.mark.parametrize(
    ("case", "plain", "shared"), [*zip(CASES, (1.055, 5.496, 11.553), (0.459, 1.110, 1.977), strict=True)]
)
def test_floors_are_those_worked_out_by_hand(case: Case, plain: float, shared: float) -> None:
    """PFLOP with full recomputation, and the vision tower once: 5.1 GFLOP a visual token."""
    seven, tower = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"], 5.1e9 * {1280: 1024, 8492: 8192, 16684: 16384}[case.prompt]
    assert (floor(seven, case, False, 4) + tower) / 1e15 == pytest.approx(plain, abs=2e-3)
    assert (floor(seven, case, True, 4) + tower) / 1e15 == pytest.approx(shared, abs=2e-3)


def test_both_ways_agree_and_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n<!-- {bench.MARK} -->\nold\n<!-- /{bench.MARK} -->\nafter\n")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "SHAPES", (Shape("s", SMALL, 200),))
    assert SMALL.language == sum(p.numel() for p in bench.SHAPES[0].policy().model.parameters())
    result = measured(bench.SHAPES[0], CASES[0].scaled(200), repeats=1)
    assert result.difference < 1e-5 and result.ratio > 0 and 1 < result.allowed < 8
    monkeypatch.setattr("sys.argv", ["prefix.py", "--repeats", "1", "--write"])
    bench.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("| s |") == len(CASES) and bench.HEAD in text
