from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from eval.collect import ACCURACY, RunData, curves, final_level, first_reach, markdown, run_table, steps_to, table_rows
from eval.intervals import t_interval
from eval.results import Attempt, EvalResult, QuestionResult, summarise
from eval.suite import PlannedRun, Suite, SuiteEval, load_suite, planned_runs
from scripts.compare import collect, finish_suite, parse, place_between_markers
from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import ConfigError, load
from visd.types import VisdError

STEPS, WINDOW = 20, 2


def ramp(per_step: float) -> list[float]:
    return [round(per_step * step, 9) for step in range(1, STEPS + 1)]


def result(accuracy: float) -> EvalResult:
    attempt = Attempt("", 0, accuracy, accuracy >= 1, {"format": 1.0, "temporal_iou": accuracy / 2}, False, 5)
    return summarise([QuestionResult(f"q{i}", "when", "window", [0, 1], (attempt,), (attempt,) * 2) for i in range(3)])


def run_data(method: str, seed: int, accuracy: Sequence[float], test: float = 0.5) -> RunData:
    records = [{"step": i, ACCURACY: a, "time/run": 2.0 * i} for i, a in enumerate(accuracy, start=1)]
    return RunData(method, seed, records, {STEPS: result(test)})


@pytest.fixture
def suite() -> Suite:
    return Suite(
        title="Toy",
        experiment="toy",
        steps=STEPS,
        seeds=[0, 1],
        methods={"grpo": ["method=grpo"], "visd": ["method=visd", "method.lam=0.5"]},
        window=WINDOW,
        eval=SuiteEval(root="data", data="test.jsonl", settings=["samples=2"]),
    )


def toy_runs() -> list[RunData]:
    # grpo climbs by 0.01 a step: its smoothed curve ends at (0.19 + 0.20) / 2 = 0.195.
    # visd climbs by 0.02 a step: (0.02 (t - 1) + 0.02 t) / 2 >= 0.195 first at t = 11 (0.21).
    grpo = [run_data("grpo", seed, ramp(0.01), test=0.4 + 0.1 * seed) for seed in (0, 1)]
    visd = [run_data("visd", seed, ramp(0.02), test=0.6 + 0.1 * seed) for seed in (0, 1)]
    return grpo + visd


def test_the_crossing_step_is_the_known_one() -> None:
    runs = toy_runs()
    level = final_level(runs[:2], WINDOW)
    assert level == pytest.approx(0.195)
    assert steps_to(runs[2:], level, WINDOW).of_mean == 11
    assert steps_to(runs[:2], level, WINDOW).of_mean == STEPS


def test_a_lucky_first_step_is_no_crossing() -> None:
    curve = [1.0, 0.0, 0.0, 0.3, 0.5, 0.5]
    assert first_reach(curve, 0.45, window=3) is None
    assert first_reach(curve, 0.4, window=3) == 6
    assert first_reach(curve, 0.4, window=2) == 2
    assert first_reach(curve, 0.9, window=1) == 1


def test_a_seed_that_never_reaches_counts_with_all_its_steps() -> None:
    runs = [run_data("visd", 0, ramp(0.02)), run_data("visd", 1, [0.0] * STEPS)]
    reaching = steps_to(runs, 0.195, WINDOW)
    assert reaching.by_seed == {0: 11, 1: None}
    assert reaching.reached == 1
    assert reaching.interval.mean == (11 + STEPS) / 2
    assert reaching.of_mean == STEPS  # the mean curve is grpo's own


def test_the_table_has_the_known_numbers(suite: Suite) -> None:
    rows = table_rows(toy_runs(), suite)
    grpo, visd = rows
    assert visd.test_sampled is not None and visd.test_sampled.low == pytest.approx(t_interval([0.6, 0.7]).low)
    assert visd.over_baseline is not None and visd.over_baseline.mean == pytest.approx(0.2)
    assert visd.over_baseline.low == pytest.approx(0.2)  # paired: both seeds gain the same
    assert grpo.over_baseline is None
    assert visd.temporal_iou is not None and visd.temporal_iou.mean == pytest.approx(0.325)
    assert visd.seconds.mean == 2.0 * STEPS
    text = markdown(rows, suite, "toy", result(0.3), "Settings.")
    line = next(line for line in text.splitlines() if line.startswith("| visd"))
    assert "| 11 | 11.0 [11.0, 11.0] | 40 |" in line and "0.650" in line
    assert "| warm start (interval over questions) | - | 0.300" in text
    assert "(compare_toy.png)" in text.replace("images/", "")


def test_a_method_that_never_reaches_is_said_to(suite: Suite) -> None:
    runs = toy_runs()[:2] + [run_data("visd", seed, [0.1] * STEPS) for seed in (0, 1)]
    text = markdown(table_rows(runs, suite), suite, "toy", None, "")
    assert "| not reached | ≥ 20.0 [20.0, 20.0] (0 of 2 reach it) |" in text


def test_without_the_baseline_there_is_no_table(suite: Suite) -> None:
    with pytest.raises(VisdError, match="no run of the baseline 'grpo'"):
        table_rows(toy_runs()[2:], suite)


def test_the_run_table_is_csv(suite: Suite) -> None:
    runs = toy_runs()
    lines = list(csv.DictReader(run_table(runs, table_rows(runs, suite), suite).splitlines()))
    assert len(lines) == 4
    assert lines[2]["method"] == "visd" and lines[2]["steps_to_baseline"] == "11"
    assert float(lines[2]["test_sampled_accuracy"]) == 0.6


def test_curves_have_bands_and_start_at_the_warm_start(suite: Suite) -> None:
    shown = curves(toy_runs(), suite, result(0.3))
    assert [curve.title.split(" (")[0] for curve in shown] == ["accuracy of training rollouts", "accuracy on test"]
    series = shown[1].series[1]
    assert list(series.x) == [0, STEPS] and series.y[0] == 0.3 and series.y[1] == pytest.approx(0.65)
    assert series.low[1] < series.y[1] < series.high[1]


def test_markers_hold_the_newest_text_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    path.write_text("# Ours\n\nbefore\n<!-- compare:a -->\nold\n<!-- /compare:a -->\nafter\n")
    place_between_markers(path, "compare:a", "new\n")
    place_between_markers(path, "compare:b", "other\n")
    place_between_markers(path, "compare:b", "other\n")
    assert path.read_text() == (
        "# Ours\n\nbefore\n<!-- compare:a -->\nnew\n<!-- /compare:a -->\nafter\n"
        "\n<!-- compare:b -->\nother\n<!-- /compare:b -->\n"
    )
    path.write_text("<!-- compare:a -->\n")
    with pytest.raises(VisdError, match="only one of"):
        place_between_markers(path, "compare:a", "")


TRAIN = """
import json, sys
from pathlib import Path
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder, steps, seed = Path(given["run.dir"]), int(given["train.steps"]), int(given["run.seed"])
with (folder / "starts").open("a") as handle:
    handle.write("x")
if given["method"] == "broken":
    sys.exit("it broke")
rate = 0.02 if given["method"] == "visd" else 0.01
lines = [{"step": s, "reward/accuracy": round(rate * s, 9), "time/run": float(s)} for s in range(1, steps + 1)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "config.yaml").write_text(
    "train: {prompts_per_step: 4}\\nrollout: {n: 2}\\noptim: {lr: 0.001}\\ndata: {root: world, train: [t.jsonl]}\\nmodel: {path: warm}\\n"
)
model = folder / "checkpoints" / f"step_{steps:06d}" / "model"
model.mkdir(parents=True)
(model / "config.json").write_text("{}")
"""
EVALUATE = """
import json, sys
from pathlib import Path
given = dict(argument.split("=", 1) for argument in sys.argv[2:])
out = Path(given["out"])
out.mkdir(parents=True, exist_ok=True)
(out / "arguments").write_text(json.dumps(given))
(out / "results.json").write_text(json.dumps({"result": json.loads(Path(sys.argv[1]).read_text())}))
"""


@pytest.fixture
def commands(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Programs that write what training and evaluation write, in no time."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    (tmp_path / "result.json").write_text(json.dumps(asdict(result(0.5))))
    train = lambda arguments: [sys.executable, str(tmp_path / "train.py"), *arguments]  # noqa: E731
    evaluate = lambda arguments: [  # noqa: E731
        sys.executable,
        str(tmp_path / "evaluate.py"),
        str(tmp_path / "result.json"),
        *arguments,
    ]
    return train, evaluate


def test_a_suite_runs_once_and_collects(suite: Suite, tmp_path: Path, commands) -> None:  # type: ignore[no-untyped-def]
    folder, docs = tmp_path / "compare", tmp_path / "docs"
    for _ in range(2):
        assert finish_suite(suite, folder, 2, *commands) == []
    assert [path.read_text() for path in folder.glob("*/seed_*/starts")] == ["x"] * 4
    given = json.loads((folder / "visd/seed_1/eval/step_000020/arguments").read_text())
    assert given["config"] == str(folder / "visd/seed_1/config.yaml") and given["samples"] == "2"
    assert json.loads((folder / "start/arguments").read_text())["model"] == "warm"
    collect(suite, "toy", folder, docs)
    assert "| visd | 2 | 0.500" in (docs / "results.md").read_text()
    assert (docs / "images/compare_toy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "results.json").read_text())["methods"][1]["reaching"]["of_mean"] == 11
    assert (folder / "results.csv").exists()


def test_a_failed_run_is_named_and_the_others_are_done(suite: Suite, tmp_path: Path, commands) -> None:  # type: ignore[no-untyped-def]
    suite.methods["broken"] = ["method=broken"]
    failures = finish_suite(suite, tmp_path / "compare", 1, *commands)
    assert len(failures) == 2 and failures[0].startswith("broken, seed 0") and "it broke" in failures[0]
    collect(suite, "toy", tmp_path / "compare", tmp_path / "docs")
    assert "| visd | 2 |" in (tmp_path / "docs/results.md").read_text()


def test_changed_settings_are_not_mixed_with_old_runs(suite: Suite, tmp_path: Path) -> None:
    run = planned_runs(suite, tmp_path)[0]
    run.claim()
    run.claim()
    with pytest.raises(VisdError, match="other settings"):
        PlannedRun(replace(suite, overrides=["optim.lr=1"]), run.method, run.seed, run.dir).claim()


def test_a_new_warm_start_is_not_mixed_with_old_runs(suite: Suite, tmp_path: Path) -> None:
    run = planned_runs(suite, tmp_path)[0]
    run.dir.mkdir(parents=True)
    weights = tmp_path / "warm" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_text("old")
    (run.dir / "config.yaml").write_text(
        f"model: {{path: {weights.parent}}}\ndata: {{root: {tmp_path}, train: [t.jsonl]}}\n"
    )
    run.check_inputs()
    run.check_inputs()
    weights.write_text("new weights")
    with pytest.raises(VisdError, match="other weights or data"):
        run.check_inputs()


def test_seeds_come_before_methods(suite: Suite, tmp_path: Path) -> None:
    assert [(run.seed, run.method) for run in planned_runs(suite, tmp_path)][:3] == [
        (0, "grpo"),
        (0, "visd"),
        (1, "grpo"),
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "suite").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_of_every_suite_can_be_started(path: Path) -> None:
    runs = planned_runs(load_suite(path), Path("outputs") / "compare" / path.stem)
    for run in (run for run in runs if run.seed == runs[0].seed):
        config = load(compose_config(run.train_arguments))
        assert Path(config.run.dir) == run.dir and config.run.seed == run.seed
    assert len({run.dir for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x", "titel"),
        ("steps: many", "steps"),
        ("title: x\nexperiment: y\nsteps: 0\neval: {root: r, data: d}", "must not be empty"),
        (
            "title: x\nexperiment: y\nsteps: 1\nseeds: [0]\nmethods: {a: []}\neval: {root: r, data: d}",
            "'grpo' is not among",
        ),
        (
            "title: x\nexperiment: y\nsteps: 1\nseeds: [0]\nmethods: {grpo: [], a 1: [], 'a, 1': []}\n"
            "eval: {root: r, data: d}",
            "share a folder",
        ),
        ("steps: 1", "title"),
    ],
)
def test_a_wrong_suite_is_refused_by_the_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_suite(path)


def test_arguments(tmp_path: Path) -> None:
    (tmp_path / "main_a.yaml").write_text("")
    (tmp_path / "other.yaml").write_text("")
    assert parse([], tmp_path).suites == ["main_a"]
    options = parse(["suite=x,y", "jobs=3", "--collect-only"], tmp_path)
    assert (options.suites, options.jobs, options.collect_only) == (["x", "y"], 3, True)
    for wrong in ("jobs=0", "job=2", "--collect"):
        with pytest.raises(ConfigError, match="is not one of"):
            parse([wrong], tmp_path)
    with pytest.raises(ConfigError, match="there are main_a, other"):
        load_suite(tmp_path / "nothing.yaml")
