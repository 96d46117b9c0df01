"""A short comparison of the family: real training, tests and tables, two methods with a tiny model, and its second start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.run import parse, run
from eval.suite import Suite, SuiteEval
from scripts import compare
from visd.cli import main


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Commands run in this process; says which."""
    done: list[str] = []

    def execute(command: list[str], log: Path) -> None:
        if command[0] == "train":
            assert main(command[1:]) == 0, f"training failed, see {log}"
        else:
            run(parse(command[1:]))
        done.append(command[0])

    monkeypatch.setattr(compare, "run_logged", execute)
    return done


def test_a_short_comparison_is_made_by_one_command_and_not_made_again(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, in_process: list[str]
) -> None:
    suite = Suite(
        title="Short",
        experiment="demo",
        steps=2,
        seeds=[0],
        methods={"grpo": ["method=grpo"], "opsd": ["method=opsd"]},
        window=1,
        learning_rates=[1e-4, 1e-3],
        tune_steps=1,
        validation="text_validation.jsonl",
        costs=True,
        overrides=[
            f"data.root={small_world}", f"model.path={tiny_qwen2_5_vl}", "data.train=[text_train.jsonl]",
            "train.prompts_per_step=2", "rollout.n=2", "rollout.max_new_tokens=6", "data.frames.workers=0",
            "checkpoint.every=0", "checkpoint.keep=1", "tracking.table_every=0", "tracking.dump_every=0",
        ],
        eval=SuiteEval(
            root=str(small_world), data="text_test.jsonl",
            settings=["samples=1", "greedy=false", "max_new_tokens=6"],
        ),
    )  # fmt: skip
    folder, docs = tmp_path / "short", tmp_path / "docs"

    def command(kind: str):  # type: ignore[no-untyped-def]
        return lambda arguments: [kind, *arguments]

    assert compare.finish_suite(suite, folder, 1, command("train"), command("evaluate")) == []
    assert in_process.count("train") == 4 + 2, "two rates and one seed a method"
    compare.collect(suite, "short", folder, docs)
    chosen = json.loads((folder / "learning_rates.json").read_text())["chosen"]
    assert set(chosen) == {"grpo", "opsd"} and set(chosen.values()) <= {1e-4, 1e-3}
    document = json.loads((folder / "results.json").read_text())
    costs = {line["method"]: line for line in document["costs"]}
    assert all(line["length"]["mean"] > 0 and line["tokens_to"]["mean"] > 0 for line in costs.values())
    assert costs["opsd"]["entropy"] is not None and 0 <= costs["grpo"]["leak"]["mean"] <= 1
    assert "| opsd |" in (docs / "results.md").read_text() and "generated tokens" in (docs / "results.md").read_text()

    in_process.clear()
    assert compare.finish_suite(suite, folder, 1, command("train"), command("evaluate")) == []
    assert in_process == ["evaluate"], "only the warm start is looked at again, which finds its own results"
