"""What an evaluation found, question by question and in sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.intervals import Interval, bootstrap
from visd import strict_json
from visd.observe.files import read_json
from visd.types import VisdError

Mode = Literal["greedy", "sampled"]
MODES: tuple[Mode, ...] = ("sampled", "greedy")


@dataclass(frozen=True)
class Attempt:
    """One scored answer."""

    text: str
    seed: int
    accuracy: float  # 0-1
    correct: bool
    parts: dict[str, float | None]  # verifiable reward parts, None where one does not apply
    truncated: bool
    tokens: int


@dataclass(frozen=True)
class QuestionResult:
    """One line of samples.jsonl. A dropped question holds attempts that score as an empty answer does."""

    sample_id: str
    family: str
    answer_type: str
    gold: Any
    greedy: tuple[Attempt, ...]
    sampled: tuple[Attempt, ...]
    dropped: str | None = None  # reason
    message: str = ""  # of the drop

    def attempts(self, mode: Mode) -> tuple[Attempt, ...]:
        return self.greedy if mode == "greedy" else self.sampled


@dataclass(frozen=True)
class ModeResult:
    """Scores of one way of decoding; every interval is over questions, of the mean over a question's attempts."""

    accuracy: Interval
    correct: Interval
    by_family: dict[str, Interval]  # accuracy
    format_rate: Interval
    truncation_rate: Interval
    temporal_iou: Interval | None  # over the questions whose answer is a window; None where there are none
    spatial_iou: Interval | None  # over the questions whose answer is a box
    tokens: float  # mean length of an answer


@dataclass(frozen=True)
class EvalResult:
    """The whole evaluation. Dropped questions are in every denominator, as wrong."""

    questions: int
    dropped: dict[str, int]  # by reason
    modes: dict[str, ModeResult] = field(default_factory=dict)


def summarise(results: Sequence[QuestionResult], seed: int = 0) -> EvalResult:
    """Sum up; `seed` is the bootstrap's.

    Raises:
        VisdError: there is no question.
    """
    if not results:
        raise VisdError("nothing to evaluate: the manifest holds no question.")
    dropped = Counter(result.dropped for result in results if result.dropped is not None)
    modes: dict[str, ModeResult] = {mode: _mode(results, mode, seed) for mode in MODES if results[0].attempts(mode)}
    return EvalResult(len(results), dict(sorted(dropped.items())), modes)


def _mode(results: Sequence[QuestionResult], mode: Mode, seed: int) -> ModeResult:
    def over(pick: Callable[[Attempt], float], some: Sequence[QuestionResult] = results) -> Interval:
        return bootstrap([_mean([pick(a) for a in result.attempts(mode)]) for result in some], seed)

    def part(name: str) -> Interval | None:
        some = [r for r in results if all(a.parts.get(name) is not None for a in r.attempts(mode))]
        return over(lambda a: a.parts[name] or 0.0, some) if some else None

    families = sorted({result.family for result in results})
    lengths = [a.tokens for result in results if result.dropped is None for a in result.attempts(mode)]
    return ModeResult(
        accuracy=over(lambda a: a.accuracy),
        correct=over(lambda a: a.correct),
        by_family={f: over(lambda a: a.accuracy, [r for r in results if r.family == f]) for f in families},
        format_rate=over(lambda a: a.parts.get("format") or 0.0),
        truncation_rate=over(lambda a: a.truncated),
        temporal_iou=part("temporal_iou"),
        spatial_iou=part("spatial_iou"),
        tokens=_mean(lengths) if lengths else 0.0,
    )


def question_means(results: Sequence[QuestionResult], mode: Mode) -> dict[str, float]:
    """Mean accuracy by sample id, for paired comparisons."""
    return {result.sample_id: _mean([a.accuracy for a in result.attempts(mode)]) for result in results}


def to_line(result: QuestionResult) -> str:
    return strict_json.dumps(asdict(result))


def question_from(fields: dict[str, Any], where: str) -> QuestionResult:
    """The inverse of `to_line`.

    Raises:
        VisdError: the fields are not those of a result.
    """
    try:
        attempts = {str(mode): tuple(Attempt(**attempt) for attempt in fields[mode]) for mode in MODES}
        return QuestionResult(**(fields | attempts))
    except (TypeError, KeyError) as error:
        raise VisdError(f"{where}: not an evaluation result ({error}); delete the file and evaluate again.") from error


def read_result(path: Path) -> EvalResult:
    """The result in a `results.json`."""
    fields = read_json(path)["result"]
    return EvalResult(fields["questions"], fields["dropped"], {m: _mode_from(v) for m, v in fields["modes"].items()})


def _mode_from(fields: dict[str, Any]) -> ModeResult:
    def interval(value: dict[str, Any] | None) -> Interval | None:
        return None if value is None else Interval(**value)

    families = {name: Interval(**value) for name, value in fields["by_family"].items()}
    rest = {name: interval(value) for name, value in fields.items() if name not in ("by_family", "tokens")}
    return ModeResult(by_family=families, tokens=fields["tokens"], **rest)  # type: ignore[arg-type]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
