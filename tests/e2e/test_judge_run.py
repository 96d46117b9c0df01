"""Whole runs with a language-model judge: it is asked early, and its failures cost feedback only."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.judge_server import JudgeServer, Reply, judged_by
from tests.runs import small_config, small_run
from visd.config import ConfigError
from visd.train.launch import run_stage
from visd.train.loop import sample_rollouts, with_reports, with_rewards
from visd.train.teach import teacher_scores
from visd.types import JudgeReport, VisdError


def test_a_batch_is_judged_while_the_next_is_sampled(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    with JudgeServer() as server:
        settings = judged_by(server, "rollout.batch_prompts=1")
        run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "data.train=[text_train.jsonl]", *settings)
        generate, seen = run.engine.generate, []

        def watched(*args: Any) -> Any:
            time.sleep(0.1)  # the requests of the batch before have left by now
            seen.append(len(server.requests))
            return generate(*args)

        run.engine.generate = watched  # type: ignore[method-assign]
        groups = sample_rollouts(run, run.prompts(run.sampler.batch(0)), 0, run.judge)
        assert seen[0] == 0 and seen[1] == len({r.text for r in groups[0].rollouts})
        reports = with_reports(run.judge, groups)
        assert run.judge is not None
        run.judge.close()
    assert all(report.status == "ok" for group in reports for report in group.reports)


@pytest.mark.parametrize(("on_failure", "targets"), [("feedback", 8), ("teacher", 0)])
def test_a_failed_judgement_leaves_rewards_alone(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, on_failure: str, targets: int
) -> None:
    with JudgeServer(lambda number, body: Reply(status=400)) as server:
        settings = judged_by(server, f"judge.on_failure={on_failure}", "objective.judge_weight=1.0")
        run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "data.train=[text_train.jsonl]", *settings)
        groups = [with_rewards(run, g, 0) for g in sample_rollouts(run, run.prompts(run.sampler.batch(0)), 0)]
        judged = with_reports(run.judge, groups)
        assert run.judge is not None
        run.judge.close()
    assert [g.rewards for g in judged] == [g.rewards for g in groups]
    assert {report for g in judged for report in g.reports} == {JudgeReport("refused")}
    for group in judged:
        context = run.method.context(group, 0)
        assert context is not None and context.feedback is None and context.answer
    scored = teacher_scores(run, [replace(g, advantages=(1.0, -1.0, 0.5, -0.5)) for g in judged], 0)
    assert len(scored) == targets


def test_a_dead_server_stops_the_run(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    with JudgeServer() as server:
        pass
    settings = judged_by(server, "judge.max_failure_rate=0.5", "judge.window=4", "judge.retries=0")
    with pytest.raises(VisdError, match=r"the judge failed .*timeout: 4.*ClientConnectorError"):
        run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path, "data.train=[text_train.jsonl]", *settings))


def test_checking_a_run_asks_and_writes_nothing(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    with JudgeServer() as server:
        assert (
            run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path, "check_only=true", *judged_by(server))) == 0
        )
    assert not server.requests and not (tmp_path / "judge").exists()
    with pytest.raises(ConfigError, match=r"judge\.model"):
        run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path, "check_only=true", "judge=openai"))
