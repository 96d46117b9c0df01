"""Learning rates chosen on validation, and the table of costs, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from eval.collect import ACCURACY, RunData, table_rows
from eval.costs import cost_rows, costs_markdown, has_collapsed, last_mean, tokens_until
from eval.results import Attempt, QuestionResult, summarise
from eval.suite import Suite, SuiteEval, load_suite, planned_runs
from eval.tuning import chosen_rates, tried, tuning_runs, write_tries
from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import ConfigError, load
from visd.types import VisdError

RATES = [1e-4, 3e-4, 1e-3]


@pytest.fixture
def suite() -> Suite:
    return Suite(
        title="Toy", experiment="demo", steps=4, seeds=[0, 1], methods={"grpo": ["method=grpo"], "visd": ["method=visd"]},
        window=1, learning_rates=RATES, tune_steps=2, validation="validation.jsonl", costs=True,
        eval=SuiteEval(root="data", data="test.jsonl"),
    )  # fmt: skip


def pretend(suite: Suite, folder: Path, accuracies: dict[str, Sequence[float]]) -> None:
    """Write what the short runs of these methods would have found, rate by rate."""
    for run in tuning_runs(suite, folder):
        if run.method in accuracies:
            accuracy = accuracies[run.method][RATES.index(run.lr or 0)]
            attempt = Attempt("", 0, accuracy, False, {"format": 1.0}, False, 5)
            result = summarise([QuestionResult("q", "when", "word", "left", (), (attempt,))])
            out = run.eval_dir(suite.tune_steps)
            out.mkdir(parents=True)
            (out / "results.json").write_text(json.dumps({"result": asdict(result)}))


def test_each_rate_is_tried_briefly_on_validation_with_a_seed_of_its_own(suite: Suite, tmp_path: Path) -> None:
    runs = tuning_runs(suite, tmp_path)
    assert [(run.lr, run.method) for run in runs[:3]] == [(1e-4, "grpo"), (1e-4, "visd"), (3e-4, "grpo")]
    assert len({run.dir for run in runs}) == 6
    for run in runs:
        config = load(compose_config(run.train_arguments))
        assert (config.optim.lr, config.train.steps, config.run.seed) == (run.lr, 2, 100)
        arguments = run.eval_arguments("m", tmp_path)
        assert "data=validation.jsonl" in arguments and "split=validation" in arguments
    assert suite.steps == 4 and suite.eval.data == "test.jsonl", "the suite itself is not changed"


def test_the_best_rate_is_taken_and_the_smaller_of_equals(suite: Suite, tmp_path: Path) -> None:
    pretend(suite, tmp_path, {"grpo": [0.2, 0.5, 0.4], "visd": [0.6, 0.6, 0.1]})
    assert chosen_rates(suite, tmp_path) == {"grpo": 3e-4, "visd": 1e-4}
    runs = planned_runs(suite, tmp_path, chosen_rates(suite, tmp_path))
    assert [(run.method, run.seed, run.lr) for run in runs] == [
        ("grpo", 0, 3e-4), ("visd", 0, 1e-4), ("grpo", 1, 3e-4), ("visd", 1, 1e-4),
    ]  # fmt: skip
    assert load(compose_config(runs[0].train_arguments)).optim.lr == 3e-4


def test_a_method_whose_tries_are_not_done_waits_and_the_others_go_on(suite: Suite, tmp_path: Path) -> None:
    pretend(suite, tmp_path, {"grpo": [0.2, 0.5, 0.4]})
    assert tried(suite, tmp_path)["visd"] == {}
    assert {run.method for run in planned_runs(suite, tmp_path, chosen_rates(suite, tmp_path))} == {"grpo"}


def test_another_suite_may_use_the_rates(suite: Suite, tmp_path: Path) -> None:
    other = replace(suite, learning_rates=[], rates_from="toy")
    with pytest.raises(VisdError, match="run suite=toy first"):
        chosen_rates(other, tmp_path / "toy_text")
    pretend(suite, tmp_path / "toy", {"grpo": [0.2, 0.5, 0.4]})
    write_tries(suite, tmp_path / "toy")
    with pytest.raises(VisdError, match="no learning rate of visd"):
        chosen_rates(other, tmp_path / "toy_text")
    pretend(replace(suite, methods={"visd": []}), tmp_path / "toy", {"visd": [0.1, 0.2, 0.3]})
    write_tries(suite, tmp_path / "toy")
    assert chosen_rates(other, tmp_path / "toy_text") == {"grpo": 3e-4, "visd": 1e-3}
    assert tuning_runs(other, tmp_path) == []
    assert chosen_rates(replace(suite, learning_rates=[]), tmp_path) == {"grpo": None, "visd": None}


def run_data(method: str, seed: int, accuracy: Sequence[float], **metrics: float) -> RunData:
    records = [{"step": i, ACCURACY: a, "time/run": 10.0 * i, **metrics} for i, a in enumerate(accuracy, start=1)]
    return RunData(method, seed, records, {})


def test_costs_by_hand(suite: Suite) -> None:
    """The baseline ends at 0.4; visd is there after 2 steps with seed 0 and never with seed 1, which falls to a fifth."""
    runs = [run_data("grpo", s, [0.1, 0.2, 0.3, 0.4], **{"rollout/tokens": 100.0}) for s in (0, 1)]
    more = {"rollout/tokens": 100.0, "teacher/tokens_written": 50.0, "policy/entropy": 0.5, "leak/mention_rate": 0.25}
    runs += [run_data("visd", 0, [0.3, 0.4, 0.4, 0.4], **more), run_data("visd", 1, [0.2, 0.3, 0.1, 0.06], **more)]
    grpo, visd = cost_rows(runs, table_rows(runs, suite), suite, {"grpo": 3e-4, "visd": None})
    assert grpo.tokens_to is not None and (grpo.tokens_to.mean, grpo.seconds_to.mean, grpo.all_reach) == (400, 40, True)
    assert visd.tokens_to is not None and (visd.tokens_to.mean, visd.seconds_to.mean) == ((300 + 600) / 2, 30)
    assert not visd.all_reach and (grpo.collapsed, visd.collapsed) == (0.0, 0.5)
    assert grpo.entropy is None and visd.entropy is not None and visd.leak is not None and visd.leak.mean == 0.25
    text = costs_markdown([grpo, visd], suite)
    assert "| grpo | 0.0003 | 400 [400, 400] |" in text and "| visd | - | ≥ 450" in text and "| 50% |" in text
    assert "the best of 0.0001, 0.0003, 0.001 by one run of 2 steps each on validation.jsonl" in text


def test_a_metric_that_is_missing_is_not_taken_for_zero() -> None:
    run = run_data("grpo", 0, [0.1, 0.2])
    assert tokens_until(run, 2) is None and last_mean(run, "policy/entropy", 5) is None
    run.records[1]["policy/entropy"] = 0.7
    assert last_mean(run, "policy/entropy", 5) == 0.7


def test_collapse_needs_a_full_window() -> None:
    assert has_collapsed(run_data("m", 0, [0.8, 0.8, 0.1, 0.1]), 2)
    assert not has_collapsed(run_data("m", 0, [1.0, 0.2, 0.2, 0.3]), 3), "one lucky step is no best"


def test_the_family_holds_every_method() -> None:
    names = {path.stem for path in (ROOT / "configs/method").glob("*.yaml")}
    external = {name for name in names if load(compose_config([f"method={name}"])).teacher.weights == "external"}
    for suite in ("family", "family_text"):
        found = load_suite(ROOT / f"configs/suite/{suite}.yaml")
        assert set(found.leave_out) == external, "those that need another model"
        assert load(compose_config(found.methods["sod_self"])).prompt.system == ""
        assert names - set(found.leave_out) < set(found.methods) and {"grpo, DAPO", "grpo, GSPO"} < set(found.methods)
        assert found.baseline == "grpo" and len(found.seeds) >= (3 if suite == "family" else 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rates: [1, 2]", "tune_steps"),
        ("learning_rates: [1, 2]\ntune_steps: 1\nvalidation: v\ntune_seed: 0", "tune_seed"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        f"title: x\nexperiment: y\nsteps: 1\nseeds: [0]\nmethods: {{grpo: []}}\neval: {{root: r, data: d}}\n{text}"
    )
    with pytest.raises(ConfigError, match=message):
        load_suite(path)
