"""How much of the gap between student and teacher a distillation closed (gap recovery of arXiv 2604.13016).

    python -m eval.recovery outputs/eval_before outputs/eval_after outputs/eval_teacher

Each folder is what `eval.run` wrote for one model on the same questions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.report import read_results
from eval.results import MODES, Mode, QuestionResult
from visd.types import VisdError


def gap_recovery(before: float, after: float, teacher: float) -> float:
    """(after - before) / (teacher - before): 1 reaches the teacher, below 0 is worse than before.

    Raises:
        VisdError: there is no gap to recover.
    """
    if teacher == before:
        raise VisdError(f"student and teacher score {teacher:g} alike before training: there is no gap to recover.")
    return (after - before) / (teacher - before)


def accuracies(evaluations: Sequence[Sequence[QuestionResult]], mode: Mode) -> list[float]:
    """Mean accuracy of each evaluation, over questions of the mean over attempts.

    Raises:
        VisdError: the evaluations asked different questions, or one has no attempts of this mode.
    """
    asked = [{result.sample_id for result in results} for results in evaluations]
    if any(ids != asked[0] for ids in asked):
        raise VisdError("the evaluations asked different questions; evaluate all models on the same manifest.")
    means = []
    for results in evaluations:
        questions = [[attempt.accuracy for attempt in result.attempts(mode)] for result in results]
        if not all(questions):
            raise VisdError(f"an evaluation has no {mode} answers; evaluate all models with the same settings.")
        means.append(sum(sum(values) / len(values) for values in questions) / len(questions))
    return means


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after", "teacher"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--mode", choices=MODES, default="sampled")
    chosen = parser.parse_args(arguments)
    try:
        scores = accuracies(
            [read_results(folder) for folder in (chosen.before, chosen.after, chosen.teacher)], chosen.mode
        )
        print(
            f"before {scores[0]:.3f}, after {scores[1]:.3f}, teacher {scores[2]:.3f}: recovered {gap_recovery(*scores):.1%}"
        )
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
