"""Learning rates of a comparison: a few values tried by one short run each on validation, the best one for all seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eval.results import read_result
from eval.suite import PlannedRun, Suite, folder_name
from visd import strict_json
from visd.observe.files import read_json, write_atomic
from visd.types import VisdError

TRIES = "learning_rates.json"


def tuning_runs(suite: Suite, folder: Path) -> list[PlannedRun]:
    """The short runs, rate by rate; none where there is nothing to choose."""
    if suite.rates_from or len(suite.learning_rates) < 2:
        return []
    test = replace(suite.eval, data=suite.validation, split="validation", every=0)
    short = replace(suite, steps=suite.tune_steps, seeds=[suite.tune_seed], eval=test)
    return [
        PlannedRun(short, method, suite.tune_seed, folder / "tuning" / folder_name(method) / f"lr_{rate:g}", rate)
        for rate in suite.learning_rates
        for method in suite.methods
    ]


def tried(suite: Suite, folder: Path) -> dict[str, dict[float, float]]:
    """Accuracy on validation by method and rate, of the runs that are done."""
    found: dict[str, dict[float, float]] = {method: {} for method in suite.methods}
    for run in tuning_runs(suite, folder):
        path = run.eval_dir(run.suite.steps) / "results.json"
        if path.exists():
            modes = read_result(path).modes
            mode = modes["sampled"] if "sampled" in modes else modes["greedy"]
            found[run.method][run.lr or 0.0] = mode.accuracy.mean
    return found


def chosen_rates(suite: Suite, folder: Path) -> dict[str, float | None]:
    """The rate of each method: the best on validation, the smaller of equals; a method whose tries are not all done is
    left out. None is the experiment's own.

    Raises:
        VisdError: the suite whose rates are to be used has none for a method.
    """
    if suite.rates_from:
        return _rates_of(folder.parent / suite.rates_from / TRIES, suite)
    if len(suite.learning_rates) < 2:
        return dict.fromkeys(suite.methods, suite.learning_rates[0] if suite.learning_rates else None)
    done = {m: tries for m, tries in tried(suite, folder).items() if len(tries) == len(suite.learning_rates)}
    return {method: max(sorted(tries), key=tries.__getitem__) for method, tries in done.items()}


def write_tries(suite: Suite, folder: Path) -> None:
    """Write down what was tried and chosen, for the page and for suites with `rates_from`."""
    if tuning_runs(suite, folder):
        document = {"validation": tried(suite, folder), "chosen": chosen_rates(suite, folder)}
        write_atomic(folder / TRIES, strict_json.dumps(document, indent=1) + "\n")


def _rates_of(path: Path, suite: Suite) -> dict[str, float | None]:
    if not path.exists():
        raise VisdError(f"{path} is missing: run suite={suite.rates_from} first, whose learning rates are used.")
    chosen = read_json(path)["chosen"]
    missing = [method for method in suite.methods if method not in chosen]
    if missing:
        raise VisdError(f"{path} has no learning rate of {', '.join(missing)}: finish suite={suite.rates_from} first.")
    return {method: chosen[method] for method in suite.methods}
