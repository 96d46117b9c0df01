"""Train every method of a suite with every seed, test the results, write tables and curves.

    python scripts/compare.py suite=main_video jobs=2
    python scripts/compare.py --collect-only

Suites are the files of configs/suite; without `suite=` those named main_* run. Finished runs are kept, unfinished ones
go on where they stopped. A suite's numbers go to outputs/compare/<suite>/results.json and .csv, its curves to
docs/images, its table to docs/results.md between its markers. A suite with learning_rates first tries these with every
method, one short run each on validation, and takes the best for all seeds.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf  # noqa: E402

from eval.collect import RunData, curves, markdown, read_run, run_table, table_rows  # noqa: E402
from eval.costs import MethodCosts, cost_rows, costs_markdown  # noqa: E402
from eval.results import EvalResult, read_result  # noqa: E402
from eval.suite import PlannedRun, Suite, eval_command, load_suite, planned_runs, train_command  # noqa: E402
from eval.tuning import chosen_rates, tuning_runs, write_tries  # noqa: E402
from visd import strict_json  # noqa: E402
from visd.config import ConfigError  # noqa: E402
from visd.observe.console import Progress  # noqa: E402
from visd.observe.files import write_atomic  # noqa: E402
from visd.observe.plots import draw  # noqa: E402
from visd.types import VisdError  # noqa: E402

Command = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Options:
    """Arguments."""

    suites: list[str]
    jobs: int
    collect_only: bool


def parse(arguments: Sequence[str], suite_dir: Path) -> Options:
    """Arguments to options.

    Raises:
        ConfigError: an unknown argument or a wrong value.
    """
    suites = sorted(path.stem for path in suite_dir.glob("main_*.yaml"))
    jobs, collect_only = 1, False
    for argument in arguments:
        key, _, value = argument.partition("=")
        if argument == "--collect-only":
            collect_only = True
        elif key == "suite" and value:
            suites = value.split(",")
        elif key == "jobs" and value.isdigit() and int(value) > 0:
            jobs = int(value)
        else:
            raise ConfigError(f"{argument!r} is not one of suite=NAME[,NAME], jobs=N, --collect-only.")
    return Options(suites, jobs, collect_only)


def run_logged(command: list[str], log: Path) -> None:
    """Run a command in the project's folder, its output appended to `log`.

    Raises:
        VisdError: it failed; the message ends with the log's last lines.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as handle:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=handle, stderr=subprocess.STDOUT).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])
        raise VisdError(f"{' '.join(command)} ended with {code}; {log} ends with:\n{tail}")


def finish_run(run: PlannedRun, train: Command, evaluate: Command) -> None:
    """Train and test one run, as far as that is not done."""
    run.claim()
    if not run.trained():
        run_logged(train(run.train_arguments), run.dir / "train.log")
    run.check_inputs()
    for step in run.tested_steps():
        out = run.eval_dir(step)
        if not (out / "results.json").exists():
            run_logged(evaluate(run.eval_arguments(run.model(step), out)), run.dir / "eval.log")


def evaluate_start(run: PlannedRun, folder: Path, evaluate: Command) -> None:
    """Test the model that every run began with; `eval.run` itself sees what is done and whether the model has changed."""
    model = OmegaConf.load(run.dir / "config.yaml").model.path
    run_logged(evaluate(run.eval_arguments(model, folder / "start")), folder / "start.log")


def finish_suite(
    suite: Suite, folder: Path, jobs: int, train: Command = train_command, evaluate: Command = eval_command
) -> list[str]:
    """Do what is left of a suite; what went wrong, one text a failed run."""
    failures = finish_runs(tuning_runs(suite, folder), f"{suite.title}: learning rates", jobs, train, evaluate)
    write_tries(suite, folder)
    runs = planned_runs(suite, folder, chosen_rates(suite, folder))
    failures += finish_runs(runs, suite.title, jobs, train, evaluate)
    first = next((run for run in runs if run.trained()), None)
    if first is not None:
        evaluate_start(first, folder, evaluate)
    return failures


def finish_runs(runs: Sequence[PlannedRun], title: str, jobs: int, train: Command, evaluate: Command) -> list[str]:
    """Train and test what is left of some runs, `jobs` at a time; one text a failed run."""
    failures: list[str] = []
    if not runs:
        return failures
    progress = Progress(title, len(runs), unit="run")
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(finish_run, run, train, evaluate): run for run in runs}
        try:
            for future in as_completed(waiting):
                error = future.exception()
                if isinstance(error, VisdError):
                    failures.append(f"{waiting[future].name}: {error}")
                elif error is not None:
                    raise error
                progress.advance()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    progress.close()
    return failures


def collect(suite: Suite, name: str, folder: Path, docs: Path) -> None:
    """Write the tables and curves of the finished runs."""
    rates = chosen_rates(suite, folder)
    planned = [run for run in planned_runs(suite, folder, rates) if run.trained()]
    if not planned:
        raise VisdError(f"suite {name}: no run is finished.")
    runs = [read_run(run) for run in planned]
    start = folder / "start" / "results.json"
    before = read_result(start) if start.exists() else None
    rows = table_rows(runs, suite)
    costs = cost_rows(runs, rows, suite, rates) if suite.costs else []
    write_atomic(folder / "results.csv", run_table(runs, rows, suite))
    write_atomic(
        folder / "results.json",
        strict_json.dumps(strict_json.without_nonfinite(_document(suite, runs, rows, costs, before)), indent=1) + "\n",
    )
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    (images / f"compare_{name}.png").write_bytes(draw(curves(runs, suite, before)))
    text = markdown(rows, suite, name, before, setting_text(suite, planned[0].dir / "config.yaml"))
    if costs:
        text += "\n" + costs_markdown(costs, suite)
    place_between_markers(docs / "results.md", f"compare:{name}", text)
    print(text)


def _document(
    suite: Suite,
    runs: Sequence[RunData],
    rows: Sequence[Any],
    costs: Sequence[MethodCosts],
    before: EvalResult | None,
) -> dict[str, Any]:
    return {
        "costs": [dataclasses.asdict(line) for line in costs],
        "suite": dataclasses.asdict(suite),
        "start": None if before is None else dataclasses.asdict(before),
        "methods": [dataclasses.asdict(row) for row in rows],
        "runs": [dataclasses.asdict(run) for run in runs],
    }


def setting_text(suite: Suite, config_path: Path) -> str:
    """What all runs share."""
    config = OmegaConf.load(config_path)
    test = suite.eval
    chosen = suite.rates_from or len(suite.learning_rates) > 1
    rate = "learning rates by method" if chosen else f"learning rate {config.optim.lr:g}"
    return (
        f"Experiment `{suite.experiment}`, {suite.steps} steps of {config.train.prompts_per_step} prompts with "
        f"{config.rollout.n} rollouts each, {rate}, training data "
        f"{', '.join(config.data.train)}; tested on {test.data} ({', '.join(test.settings) or 'default settings'}). "
        + " ".join(f"`{method}`: {' '.join(overrides)}." for method, overrides in suite.methods.items())
    )


def place_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; append both where they are missing.

    Raises:
        VisdError: one of the two is missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if (begin in page) != (end in page):
        raise VisdError(f"{path}: only one of {begin} and {end} is there; restore the other.")
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    write_atomic(path, f"{head}{begin}\n{text}{end}{tail}")


def main() -> int:
    suite_dir = ROOT / "configs" / "suite"
    failures = []
    os.chdir(ROOT)
    try:
        options = parse(sys.argv[1:], suite_dir)
        for name in options.suites:
            suite = load_suite(suite_dir / f"{name}.yaml")
            folder = Path("outputs") / "compare" / name
            if not options.collect_only:
                failures += finish_suite(suite, folder, options.jobs)
            collect(suite, name, folder, ROOT / "docs")
    except VisdError as error:
        failures.append(str(error))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
