"""What a method costs until it is as good as the baseline ends, how its answers look, and whether its runs hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.collect import ACCURACY, MethodRow, RunData
from eval.intervals import Interval, t_interval
from eval.suite import Suite
from visd.observe.plots import smooth

COLLAPSED = 0.5
"""A run has collapsed where its smoothed training accuracy ends below this share of the best that it had."""

TOKENS = ("rollout/tokens", "teacher/tokens_written")


@dataclass(frozen=True)
class MethodCosts:
    """One method's line; intervals are Student's t over seeds, None where no run has the metric."""

    method: str
    rate: float | None  # learning rate; None is the experiment's own
    tokens_to: (
        Interval | None
    )  # generated tokens until the baseline's accuracy; a lower bound if not all seeds reach it
    seconds_to: Interval  # the same in wall-clock time
    all_reach: bool
    length: Interval | None  # tokens an answer, over the last window
    entropy: Interval | None  # nats a token, over the last window
    leak: Interval | None  # share of answers that speak of privileged text, over the last window
    collapsed: float  # share of seeds


def cost_rows(
    runs: Sequence[RunData], rows: Sequence[MethodRow], suite: Suite, rates: Mapping[str, float | None]
) -> list[MethodCosts]:
    """One line for each of `rows`."""
    return [_costs([run for run in runs if run.method == row.method], row, suite, rates) for row in rows]


def _costs(runs: Sequence[RunData], row: MethodRow, suite: Suite, rates: Mapping[str, float | None]) -> MethodCosts:
    ends = {run.seed: row.reaching.by_seed[run.seed] or len(run.records) for run in runs}
    tokens = [tokens_until(run, ends[run.seed]) for run in runs]
    known = [value for value in tokens if value is not None]

    def late(name: str) -> Interval | None:
        values = [value for run in runs if (value := last_mean(run, name, suite.window)) is not None]
        return t_interval(values) if values else None

    return MethodCosts(
        method=row.method,
        rate=rates.get(row.method),
        tokens_to=t_interval(known) if len(known) == len(runs) else None,
        seconds_to=t_interval([run.records[ends[run.seed] - 1]["time/run"] for run in runs]),
        all_reach=row.reaching.reached == row.seeds,
        length=late("rollout/length_mean"),
        entropy=late("policy/entropy"),
        leak=late("leak/mention_rate"),
        collapsed=sum(has_collapsed(run, suite.window) for run in runs) / len(runs),
    )


def tokens_until(run: RunData, step: int) -> float | None:
    """Tokens generated in the first `step` steps, those that a teacher wrote included; None where they were not counted."""
    records = run.records[:step]
    if any(TOKENS[0] not in record for record in records):
        return None
    return sum(record.get(name, 0.0) for record in records for name in TOKENS)


def last_mean(run: RunData, name: str, window: int) -> float | None:
    """Mean over the last `window` steps that have the metric, of those; a step may have trained on nothing."""
    values = [record[name] for record in run.records[-window:] if name in record]
    return sum(values) / len(values) if values else None


def has_collapsed(run: RunData, window: int) -> bool:
    """Whether the smoothed training accuracy ends below `COLLAPSED` of its best, the window full."""
    curve = run.metric(ACCURACY)
    smoothed = smooth(curve, window)[min(window, len(curve)) - 1 :]
    return smoothed[-1] < COLLAPSED * max(smoothed)


def costs_markdown(costs: Sequence[MethodCosts], suite: Suite) -> str:
    """The table and how to read it."""
    lines = [
        "| method | learning rate | generated tokens to the baseline's accuracy | seconds to it | tokens an answer | "
        "entropy, nats | leak rate | collapsed seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in costs:
        bound = "" if line.all_reach else "≥ "
        rate = "-" if line.rate is None else f"{line.rate:g}"
        lines.append(
            f"| {line.method} | {rate} | {bound}{_number(line.tokens_to, 0)} | {bound}{_number(line.seconds_to, 0)} | "
            f"{_number(line.length, 1)} | {_number(line.entropy, 3)} | {_number(line.leak, 3)} | {line.collapsed:.0%} |"
        )
    lines += [
        "",
        f"Answers are those of training, over the last {suite.window} steps. Leak rate: share of answers that speak of text "
        f"only a teacher is shown. Collapsed: the smoothed training accuracy ends below {COLLAPSED:.0%} of its best. "
        "≥: not all seeds reach the baseline's accuracy; those count with all they used."
        + (
            f" Learning rates: the best of {_rates(suite)} on {suite.validation}."
            if len(suite.learning_rates) > 1
            else ""
        ),
    ]
    return "\n".join(lines) + "\n"


def _rates(suite: Suite) -> str:
    return f"{', '.join(f'{rate:g}' for rate in suite.learning_rates)} by one run of {suite.tune_steps} steps each"


def _number(value: Interval | None, digits: int) -> str:
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
