"""What a benchmark run found: records question by question, means with intervals that resample whole units."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.benchmarks.base import Benchmark, Mean
from eval.intervals import RESAMPLES, Interval
from eval.metrics import pass_at_k
from visd import strict_json
from visd.seeding import generator
from visd.types import VisdError


@dataclass(frozen=True)
class Answered:
    """One answer."""

    text: str
    truncated: bool
    tokens: int
    status: str  # how it was read, see eval.answers
    value: Any  # JSON of the reading
    scores: dict[str, float]


@dataclass(frozen=True)
class Record:
    """One line of samples.jsonl. A dropped question has answers that score as none does."""

    id: str
    unit: str
    categories: dict[str, str]
    truth: Any
    answers: list[Answered]
    majority: dict[str, float] | None = None  # scores of the most frequent reading of several answers
    dropped: str | None = None  # reason
    message: str = ""

    def scores(self) -> dict[str, float]:
        """The mean over the question's answers."""
        names = self.answers[0].scores
        return {name: math.fsum(a.scores[name] for a in self.answers) / len(self.answers) for name in names}


@dataclass(frozen=True)
class BenchResult:
    """Numbers of a run. Dropped questions and unread answers are in every denominator."""

    questions: int
    score: Interval
    scores: dict[str, Interval]
    by_category: dict[str, dict[str, Interval]]  # category to value to the headline's metric
    statuses: dict[str, int]  # answers by how they were read
    truncated: Interval
    dropped: dict[str, int] = field(default_factory=dict)
    several: dict[str, Interval] = field(default_factory=dict)  # pass@k and majority@k


def to_line(record: Record) -> str:
    return strict_json.dumps(asdict(record))


def record_from(fields: Mapping[str, Any], where: str) -> Record:
    """The inverse of `to_line`.

    Raises:
        VisdError: the fields are not those of a record.
    """
    try:
        return Record(**{**fields, "answers": [Answered(**answer) for answer in fields["answers"]]})
    except (TypeError, KeyError) as error:
        raise VisdError(f"{where}: is no benchmark record ({error}); delete the file and evaluate again.") from error


# ----------------------------------------------------------------------------------------------------- tables


class Tables:
    """Sums and counts by unit, from which every mean and every resampled mean follows."""

    def __init__(self, records: Sequence[Record], benchmark: Benchmark):
        if not records:
            raise VisdError("nothing to evaluate: the benchmark holds no question.")
        self.benchmark = benchmark
        self.units = sorted({record.unit for record in records})
        place = {unit: i for i, unit in enumerate(self.units)}
        self.columns: dict[tuple[str, str], list[str]] = {}  # values of `by`, in the order of a table's columns
        self._unit_scores: list[dict[str, float]] = [{} for _ in self.units]
        for record in records:
            self._unit_scores[place[record.unit]].update(record.scores())
        self.tables = {name: self._table(records, place, mean) for name, mean in benchmark.means.items()}

    def _table(self, records: Sequence[Record], place: Mapping[str, int], mean: Mean) -> NDArray[np.float64]:
        """[units, columns, 2]: sum and count; one column a value of `mean.by`."""
        if "*" in mean.metric or "|" in mean.metric:
            cells = [
                (i, "", value)
                for i, scores in enumerate(self._unit_scores)
                if (value := _derived(mean.metric, scores)) is not None
            ]
        else:
            cells = [
                (place[record.unit], record.categories.get(mean.by, ""), scores[mean.metric])
                for record in records
                if mean.metric in (scores := record.scores())
            ]
        groups = sorted({value for _, value, _ in cells})
        table = np.zeros((len(self.units), max(len(groups), 1), 2))
        for unit, group, value in cells:
            table[unit, groups.index(group)] += (value, 1.0)
        self.columns[mean.metric, mean.by] = groups
        return table

    def values(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Every reported number under `weights` [resamples, units]: arrays [resamples]."""
        found = {}
        for name, mean in self.benchmark.means.items():
            with np.errstate(invalid="ignore"):
                sums, counts = (np.tensordot(weights, self.tables[name][..., i], axes=1) for i in (0, 1))
                found[name] = _macro(sums / counts, self.columns[mean.metric, mean.by], mean)
        for name, (function, parts) in self.benchmark.combine.items():
            rows = zip(*(found[part] for part in parts))
            found[name] = np.array([function(*(float(v) for v in row)) for row in rows])
        return found

    def intervals(self, seed: int) -> dict[str, Interval]:
        """Percentile bootstrap over units."""
        n = len(self.units)
        point = self.values(np.ones((1, n)))
        if n == 1:
            return {name: Interval(float(value[0]), None, None, 1) for name, value in point.items()}
        drawn = self.values(resampled(n, seed))
        found = {}
        for name, value in point.items():
            found[name] = Interval(float(value[0]), *bounds(drawn[name]), n)
        return found


def bounds(drawn: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The 2.5 % and 97.5 % quantiles, without interpolation, since a logarithmic mean may be infinite; None for that."""
    low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975], method="inverted_cdf"))
    return low if math.isfinite(low) else None, high if math.isfinite(high) else None


def resampled(n: int, seed: int) -> NDArray[np.float64]:
    """How often each of n units is drawn, [RESAMPLES, n]; the same for two runs that are compared."""
    return generator("bench", seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def _derived(metric: str, scores: Mapping[str, float]) -> float | None:
    """`a*b`: the product of a unit's scores; `a|b`: a of the units whose b is 1."""
    first, sign, second = metric.partition("*") if "*" in metric else metric.partition("|")
    if first not in scores or second not in scores:
        return None
    if sign == "*":
        return scores[first] * scores[second]
    return scores[first] if scores[second] == 1 else None


def _macro(means: NDArray[np.float64], groups: Sequence[str], mean: Mean) -> NDArray[np.float64]:
    """Mean over columns, those that `mean.merge` joins averaged first; a column without any item is left out."""
    joined: dict[str, list[int]] = {}
    for column, group in enumerate(groups or [""]):
        joined.setdefault(mean.merge.get(group, group), []).append(column)
    parts = np.stack([_row_means(means[:, columns]) for columns in joined.values()], axis=1)
    return _row_means(parts)


def _row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    present = ~np.isnan(values)
    counts = present.sum(axis=1)
    sums = np.where(present, values, 0.0).sum(axis=1)
    return np.divide(sums, counts, out=np.zeros(len(values)), where=counts > 0)


# ---------------------------------------------------------------------------------------------------- summary


def summarise(records: Sequence[Record], benchmark: Benchmark, seed: int) -> BenchResult:
    """All numbers of a run."""
    scores = Tables(records, benchmark).intervals(seed)
    names = sorted({name for record in records for name in record.categories})
    answers = [answer for record in records for answer in record.answers]
    return BenchResult(
        questions=len(records),
        score=scores[benchmark.headline],
        scores=scores,
        by_category={name: _category(records, benchmark, name, seed) for name in names},
        statuses=dict(sorted(Counter(answer.status for answer in answers).items())),
        truncated=_interval(records, [float(np.mean([a.truncated for a in r.answers])) for r in records], seed),
        dropped=dict(sorted(Counter(r.dropped for r in records if r.dropped is not None).items())),
        several=_several(records, seed),
    )


def _category(records: Sequence[Record], benchmark: Benchmark, name: str, seed: int) -> dict[str, Interval]:
    values = sorted({record.categories[name] for record in records if name in record.categories})
    parts = {value: [r for r in records if r.categories.get(name) == value] for value in values}
    return {value: Tables(part, benchmark).intervals(seed)[benchmark.headline] for value, part in parts.items()}


def _several(records: Sequence[Record], seed: int) -> dict[str, Interval]:
    """pass@k for k = 1, 2, 4, ... and majority@n, over the questions that are right or wrong."""
    graded = [r for r in records if "accuracy" in r.answers[0].scores]
    n = min((len(record.answers) for record in graded), default=0)
    if n < 2:
        return {}
    found = {}
    for k in [2**i for i in range(n.bit_length()) if 2**i <= n]:
        values = [pass_at_k(sum(a.scores["accuracy"] == 1 for a in r.answers), len(r.answers), k) for r in graded]
        found[f"pass@{k}"] = _interval(graded, values, seed)
    voted = [r for r in graded if r.majority is not None]
    if voted:
        found[f"majority@{n}"] = _interval(voted, [(r.majority or {})["accuracy"] for r in voted], seed)
    return found


def _interval(records: Sequence[Record], values: Sequence[float], seed: int) -> Interval:
    units = sorted({record.unit for record in records})
    place = {unit: i for i, unit in enumerate(units)}
    table = np.zeros((len(units), 2))
    for record, value in zip(records, values, strict=True):
        table[place[record.unit]] += (value, 1.0)
    mean = float(table[:, 0].sum() / table[:, 1].sum())
    if len(units) == 1:
        return Interval(mean, None, None, 1)
    weights = resampled(len(units), seed)
    low, high = np.quantile((weights @ table[:, 0]) / (weights @ table[:, 1]), [0.025, 0.975])
    return Interval(mean, float(low), float(high), len(units))
