"""The numbers of a comparison: curves over seeds, steps to reach the baseline's accuracy, tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.intervals import Interval, t_interval
from eval.results import EvalResult, read_result
from eval.suite import PlannedRun, Suite
from visd.observe.files import read_jsonl
from visd.observe.plots import Curve, Series, smooth
from visd.types import VisdError

ACCURACY = "reward/accuracy"


@dataclass(frozen=True)
class RunData:
    """A finished run."""

    method: str
    seed: int
    records: list[dict[str, float]]  # one a step, from step 1
    tests: dict[int, EvalResult]  # by step

    def metric(self, name: str) -> list[float]:
        """One value a step.

        Raises:
            VisdError: a step has none.
        """
        values = [record.get(name) for record in self.records]
        if any(value is None for value in values):
            raise VisdError(f"{self.method}, seed {self.seed}: step {values.index(None) + 1} has no {name}.")
        return [float(value) for value in values if value is not None]


@dataclass(frozen=True)
class Reaching:
    """Steps to the baseline's final training accuracy."""

    of_mean: int | None  # on the mean curve over seeds; None: not reached
    by_seed: dict[int, int | None]
    interval: (
        Interval  # over seeds; a seed that does not reach it counts with all its steps, so the mean is a lower bound
    )

    @property
    def reached(self) -> int:
        return sum(step is not None for step in self.by_seed.values())


@dataclass(frozen=True)
class MethodRow:
    """One method's line of the table; intervals are Student's t over seeds."""

    method: str
    seeds: int
    train_accuracy: Interval  # smoothed, at the last step
    test_sampled: Interval | None
    test_greedy: Interval | None
    over_baseline: Interval | None  # test accuracy (sampled) minus the baseline's, paired by seed
    temporal_iou: Interval | None
    reaching: Reaching
    seconds: Interval


def read_run(run: PlannedRun) -> RunData:
    """A finished run and its finished tests."""
    records = read_jsonl(run.dir / "metrics.jsonl")
    if [record["step"] for record in records] != list(range(1, run.suite.steps + 1)):
        raise VisdError(f"{run.dir}/metrics.jsonl: the steps are not 1 to {run.suite.steps}; train this run anew.")
    paths = {step: run.eval_dir(step) / "results.json" for step in run.tested_steps()}
    return RunData(run.method, run.seed, records, {s: read_result(p) for s, p in paths.items() if p.exists()})


def first_reach(curve: Sequence[float], level: float, window: int) -> int | None:
    """First step (from 1) at which the smoothed curve, its window full, is at least `level`."""
    smoothed = smooth(curve, window)
    for index in range(min(window, len(curve)) - 1, len(curve)):
        if smoothed[index] >= level or math.isclose(smoothed[index], level, rel_tol=1e-12):
            return index + 1
    return None


def mean_curve(runs: Sequence[RunData], name: str) -> list[float]:
    columns = zip(*(run.metric(name) for run in runs), strict=True)
    return [math.fsum(column) / len(column) for column in columns]


def final_level(runs: Sequence[RunData], window: int) -> float:
    """The smoothed mean training accuracy at the last step."""
    return smooth(mean_curve(runs, ACCURACY), window)[-1]


def steps_to(runs: Sequence[RunData], level: float, window: int) -> Reaching:
    """When a method's mean curve and each of its seeds reach `level`."""
    by_seed = {run.seed: first_reach(run.metric(ACCURACY), level, window) for run in runs}
    counted = [len(run.records) if by_seed[run.seed] is None else float(by_seed[run.seed] or 0) for run in runs]
    return Reaching(first_reach(mean_curve(runs, ACCURACY), level, window), by_seed, t_interval(counted))


def table_rows(runs: Sequence[RunData], suite: Suite) -> list[MethodRow]:
    """One row a method of which a run is finished, in the suite's order.

    Raises:
        VisdError: no run of the baseline is finished.
    """
    by_method = {method: [run for run in runs if run.method == method] for method in suite.methods}
    baseline = by_method[suite.baseline]
    if not baseline:
        raise VisdError(f"no run of the baseline {suite.baseline!r} is finished: there is nothing to compare with.")
    level = final_level(baseline, suite.window)
    return [_row(method, some, baseline, level, suite) for method, some in by_method.items() if some]


def _row(method: str, runs: Sequence[RunData], baseline: Sequence[RunData], level: float, suite: Suite) -> MethodRow:
    window, last = suite.window, suite.steps
    against = {run.seed: run for run in baseline if last in run.tests}
    pairs = [
        run.tests[last].modes["sampled"].accuracy.mean - against[run.seed].tests[last].modes["sampled"].accuracy.mean
        for run in runs
        if last in run.tests and run.seed in against and "sampled" in run.tests[last].modes
    ]
    return MethodRow(
        method=method,
        seeds=len(runs),
        train_accuracy=t_interval([smooth(run.metric(ACCURACY), window)[-1] for run in runs]),
        test_sampled=_test_interval(runs, last, "sampled", "accuracy"),
        test_greedy=_test_interval(runs, last, "greedy", "accuracy"),
        over_baseline=t_interval(pairs) if pairs and method != suite.baseline else None,
        temporal_iou=_test_interval(runs, last, "sampled", "temporal_iou"),
        reaching=steps_to(runs, level, window),
        seconds=t_interval([run.records[-1]["time/run"] for run in runs]),
    )


def _test_values(runs: Sequence[RunData], step: int, mode: str, field: str) -> list[float]:
    modes = [run.tests[step].modes[mode] for run in runs if step in run.tests and mode in run.tests[step].modes]
    return [getattr(result, field).mean for result in modes if getattr(result, field) is not None]


def _test_interval(runs: Sequence[RunData], step: int, mode: str, field: str) -> Interval | None:
    values = _test_values(runs, step, mode, field)
    return t_interval(values) if values else None


def curves(runs: Sequence[RunData], suite: Suite, before: EvalResult | None) -> list[Curve]:
    """Training accuracy, length and entropy over steps, and test accuracy where several checkpoints were tested."""
    by_method = {m: some for m in suite.methods if (some := [run for run in runs if run.method == m])}
    shown = [
        Curve(
            title, "optimiser step", [_series(method, some, name, suite.window) for method, some in by_method.items()]
        )
        for name, title in (
            (ACCURACY, f"accuracy of training rollouts (mean of {suite.window} steps)"),
            ("rollout/length_mean", "response length, tokens"),
            ("policy/entropy", "entropy, nats"),
        )
        if all(name in record for run in runs for record in run.records)
    ]
    tests = [_test_series(method, some, before) for method, some in by_method.items()]
    if any(len(series.x) > 1 for series in tests):
        shown.insert(1, Curve(f"accuracy on {suite.eval.split} (sampled)", "optimiser step", tests))
    return shown


def _series(method: str, runs: Sequence[RunData], name: str, window: int) -> Series:
    smoothed = [smooth(run.metric(name), window) for run in runs]
    return _with_band(method, list(range(1, len(smoothed[0]) + 1)), [list(column) for column in zip(*smoothed)])


def _test_series(method: str, runs: Sequence[RunData], before: EvalResult | None) -> Series:
    steps = sorted({step for run in runs for step in run.tests})
    columns = [_test_values(runs, step, "sampled", "accuracy") for step in steps]
    if before is not None and "sampled" in before.modes:
        steps, columns = [0, *steps], [[before.modes["sampled"].accuracy.mean], *columns]
    kept = [(step, column) for step, column in zip(steps, columns) if column]
    return _with_band(method, [step for step, _ in kept], [column for _, column in kept])


def _with_band(name: str, x: list[int], columns: Sequence[list[float]]) -> Series:
    intervals = [t_interval(column) for column in columns]
    low = [i.mean if i.low is None else i.low for i in intervals]
    high = [i.mean if i.high is None else i.high for i in intervals]
    return Series(name, x, [i.mean for i in intervals], low, high)


def markdown(rows: Sequence[MethodRow], suite: Suite, name: str, before: EvalResult | None, setting: str) -> str:
    """The table with what one has to know to read it."""
    lines = [
        f"### {suite.title}",
        "",
        setting,
        "",
        f"![curves](images/compare_{name}.png)",
        "",
        f"| method | seeds | {suite.eval.split} accuracy, sampled | minus baseline | greedy | temporal IoU | training accuracy | "
        "steps to the baseline's accuracy | by seed | wall-clock, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    if before is not None:
        modes = before.modes
        cells = [str(modes[m].accuracy) if m in modes else "-" for m in ("sampled", "greedy")]
        tiou = _cell(modes["sampled"].temporal_iou) if "sampled" in modes else "-"
        lines.append(
            f"| warm start (interval over questions) | - | {cells[0]} | - | {cells[1]} | {tiou} | - | - | - | - |"
        )
    for row in rows:
        lines.append(
            f"| {row.method} | {row.seeds} | {_cell(row.test_sampled)} | {_cell(row.over_baseline)} | "
            f"{_cell(row.test_greedy)} | {_cell(row.temporal_iou)} | {row.train_accuracy} | "
            f"{row.reaching.of_mean or 'not reached'} | {_by_seed(row)} | {row.seconds.mean:.0f} |"
        )
    lines += [
        "",
        f"Intervals are 95 % (Student's t over seeds). Steps to the baseline's accuracy: the first step at which the mean "
        f"training accuracy over seeds, smoothed over the last {suite.window} steps, reaches the level at which "
        f"{suite.baseline} ends; for {suite.baseline} itself, its first time there. By seed: the same for each seed's own "
        "curve; a seed that does not get there counts with all its steps, which makes the mean a lower bound.",
    ]
    return "\n".join(lines) + "\n"


def _by_seed(row: MethodRow) -> str:
    reaching = row.reaching
    mean = reaching.interval
    text = (
        f"{mean.mean:.1f}"
        if mean.low is None or mean.high is None
        else f"{mean.mean:.1f} [{mean.low:.1f}, {mean.high:.1f}]"
    )
    return text if reaching.reached == row.seeds else f"≥ {text} ({reaching.reached} of {row.seeds} reach it)"


def _cell(value: Interval | None) -> str:
    return "-" if value is None else str(value)


def run_table(runs: Sequence[RunData], rows: Sequence[MethodRow], suite: Suite) -> str:
    """CSV, one line a run."""
    reaching = {row.method: row.reaching for row in rows}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    scores = [
        (mode, name)
        for mode in ("sampled", "greedy")
        for name in ("accuracy", "temporal_iou", "spatial_iou", "format_rate")
    ]
    head = ["method", "seed", "steps", "train_accuracy", "steps_to_baseline", "seconds"]
    writer.writerow([*head, *(f"test_{mode}_{name}" for mode, name in scores)])
    for run in runs:
        step = reaching[run.method].by_seed[run.seed]
        final = [_test_values([run], suite.steps, mode, name) for mode, name in scores]
        writer.writerow(
            [run.method, run.seed, len(run.records), smooth(run.metric(ACCURACY), suite.window)[-1]]
            + ["" if step is None else step, run.records[-1]["time/run"]]
            + [values[0] if values else "" for values in final]
        )
    return buffer.getvalue()
