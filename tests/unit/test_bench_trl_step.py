"""The comparison with TRL runs both sides for real, on the same prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scripts.bench.trl_step import SIDES, Case, Found, measure, row, write_data

CASE = Case("two frames", words=5, frames=2, answer=3, group=2)


@pytest.mark.slow
def test_both_sides_take_the_same_steps(tmp_path: Path) -> None:
    write_data(tmp_path, CASE, 2)
    found = {side: [measure(side, CASE, tmp_path, 2)] for side in SIDES}
    for [one] in found.values():
        assert len(one.seconds) == 1 and one.seconds[0] > 0
        assert 0 < one.answer <= 3
    assert found["visd"][0].prompt == found["TRL"][0].prompt > 2 * 16  # visual tokens of a frame
    assert row(CASE, found).startswith(f"| two frames | {found['visd'][0].prompt}, 3, 2 |")


def test_medians_are_compared_and_unequal_prompts_are_not() -> None:
    ours = [Found([1.0, 2.0, 9.0], 1 * 2.0**20, 40, 3.0)]
    theirs = [Found([6.0], 4 * 2.0**20, 40, 2.0)]
    cells = [cell.strip() for cell in row(CASE, {"visd": ours, "TRL": theirs}).split("|")]
    assert cells[3:-1] == ["3.0, 2.0", "6.00 s", "2.00 s", "3.00", "4 MiB", "1 MiB", "0.25"]
    with pytest.raises(RuntimeError, match=r"prompts of \[40, 41\] tokens"):
        row(CASE, {"visd": ours, "TRL": [replace(theirs[0], prompt=41)]})
