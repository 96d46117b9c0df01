"""The share of the gap to the teacher that was recovered, from evaluations on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.recovery import gap_recovery, main
from eval.results import Attempt, QuestionResult, to_line
from visd.types import VisdError


def write(folder: Path, accuracies: dict[str, list[float]]) -> str:
    folder.mkdir()
    results = [
        QuestionResult(
            name, "when", "word", "left", greedy=(),
            sampled=tuple(Attempt("", 0, value, value >= 0.5, {}, False, 1) for value in values),
        )
        for name, values in accuracies.items()
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(f"{to_line(result)}\n" for result in results))
    return str(folder)


def test_by_hand() -> None:
    assert gap_recovery(0.2, 0.5, 0.6) == pytest.approx(0.75)
    assert gap_recovery(0.5, 0.4, 0.6) == pytest.approx(-1.0)
    with pytest.raises(VisdError, match="no gap"):
        gap_recovery(0.5, 0.7, 0.5)


def test_from_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write(tmp_path / "before", {"a": [0.0, 0.4], "b": [0.2]})
    after = write(tmp_path / "after", {"b": [0.5], "a": [0.5, 0.5]})
    teacher = write(tmp_path / "teacher", {"a": [1.0, 0.6], "b": [0.4]})
    assert main([before, after, teacher]) == 0
    assert capsys.readouterr().out == "before 0.200, after 0.500, teacher 0.600: recovered 75.0%\n"
    assert main([before, after, teacher, "--mode", "greedy"]) == 1
    other = write(tmp_path / "other", {"a": [1.0]})
    assert main([before, after, other]) == 1
    error = capsys.readouterr().err
    assert "no greedy answers" in error and "different questions" in error
