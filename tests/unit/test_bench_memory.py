"""The curve of peak memory: what is measured, and what is read off it."""

from __future__ import annotations

import sys

import pytest

from scripts.bench import memory as bench
from scripts.bench.memory import WAYS, Way, longest, peak
from scripts.bench.prefix import SHAPES, Case


def test_the_longest_prompt_is_read_off_a_curve() -> None:
    prompts, peaks = (256, 512, 1024), (100.0, 200.0, 600.0)
    assert longest(prompts, peaks, 150) == 384
    assert longest(prompts, peaks, 200) == 512
    assert longest(prompts, peaks, 400) == 768
    assert longest(prompts, peaks, 1000) == 1536  # beyond the last point
    assert longest(prompts, peaks, 50) == 128
    assert longest(prompts, peaks, 0) == 0
    assert longest(prompts, (100.0, 200.0, 200.0), 1000) is None  # a flat end tells nothing
    assert longest(prompts, (100.0, 200.0, 200.0), 150) == 384


def test_budgets() -> None:
    case = Case("", prompt=100, response=10, group=4, privileged=5)
    assert [way.budget(case) for way in WAYS.values()] == [460, 460, 115]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_prompt_takes_less_once_than_once_a_rollout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("", prompt=512, response=16, group=8, privileged=8)
    once, often = (peak(SHAPES[0], case, Way(shared, together=True)) for shared in (True, False))
    assert 0 < once < 0.5 * often
    monkeypatch.setattr("sys.argv", ["memory.py", "--prompts", "32", "64", "--groups", "2"])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(WAYS) and "longest in 512 MiB" in lines[0]
