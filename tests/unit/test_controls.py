"""Controls of visd: they keep the form of a signal and take away what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from eval.suite import load_suite, planned_runs
from tests.tree import ROOT
from tests.unit.test_methods import B, T, batch, group, scores
from visd.cli import compose_config
from visd.config import ConfigError, build, load
from visd.methods.base import Method, Services
from visd.methods.visd import VISD
from visd.types import JudgeReport, Rollout, RolloutGroup, TokenBatch


def judged(name: str, *feedback: str | None) -> RolloutGroup:
    """A group whose rollouts got this feedback; None: the judgement failed."""
    of = group()
    reports = tuple(JudgeReport("timeout") if text is None else JudgeReport("ok", feedback=text) for text in feedback)
    rollouts = tuple(Rollout((1,), (0.0,), "", ("",), "eos", seed, 0) for seed in range(len(feedback)))
    return replace(of, sample=replace(of.sample, id=name), rollouts=rollouts, reports=reports)


def told(method: Method, groups: list[RolloutGroup]) -> dict[str, list[str | None]]:
    groups = list(method.prepare(groups, cast(Services, None)))  # it generates nothing
    found: dict[str, list[str | None]] = {}
    for of in groups:
        contexts = [method.context(of, i) for i in range(len(of.rollouts))]
        assert all(context is not None and context.answer for context in contexts), "the facts stay"
        found[of.sample.id] = [context.feedback for context in contexts if context is not None]
    return found


GROUPS = [judged("a", "a0", "a1"), judged("c", "c0", None), judged("b", "b0", "b1")]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_feedback_comes_from_another_sample_whatever_the_order(order: list[int]) -> None:
    found = told(VISD(control="shuffled_feedback"), [GROUPS[i] for i in order])
    assert found == {"a": ["b0", "b1"], "b": ["c0", None], "c": ["a0", "a1"]}
    assert told(VISD(), GROUPS) == {"a": ["a0", "a1"], "b": ["b0", "b1"], "c": ["c0", None]}


def test_a_rank_with_one_sample_gives_no_feedback_rather_than_the_true_one() -> None:
    assert told(VISD(control="shuffled_feedback"), GROUPS[:1]) == {"a": [None, None]}
    assert told(VISD(control="shuffled_feedback", feedback=False), GROUPS) == {key: [None, None] for key in "abc"}


def tokens() -> TokenBatch:
    rollouts = tuple(Rollout((), (), "", (), "eos", seed, 0) for seed in range(B))
    return replace(batch([1.0, -0.5, 2.0]), groups=[replace(group(), rollouts=rollouts)] * B, indices=list(range(B)))


def test_random_weights_are_the_same_weights_on_other_tokens() -> None:
    data = tokens()
    given = scores(data, 4, seed=1, shift=1.0)
    true, random = (VISD(control=c).advantages(data, given, 0) for c in ("none", "random_weights"))
    for row in range(B):
        own, other = (credit.weights[row][data.mask[row]] for credit in (true, random))
        torch.testing.assert_close(own.sort().values, other.sort().values)
    assert not torch.equal(true.weights, random.weights)
    again = VISD(control="random_weights").advantages(data, given, 5)
    reordered = [2, 0, 1]
    moved = replace(
        data, token_ids=data.token_ids[reordered], mask=data.mask[reordered], advantages=data.advantages[reordered],
        has_teacher=data.has_teacher[reordered], dimensions=data.dimensions[reordered], indices=reordered,
        dimension_scores=data.dimension_scores[reordered],
    )  # fmt: skip
    assert again.weights.shape == (B, T)
    shuffled = scores_of_rows(given, reordered)
    torch.testing.assert_close(
        VISD(control="random_weights").advantages(moved, shuffled, 0).weights, random.weights[reordered]
    )


def scores_of_rows(given: Any, rows: list[int]) -> Any:
    return replace(given, student=given.student._map(lambda v: v[rows]), teacher=given.teacher._map(lambda v: v[rows]))


def test_other_controls_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.control: 'noise' is not one of none, shuffled_feedback"):
        VISD(control="noise")


def test_the_suite_of_controls_is_complete_and_each_run_can_be_composed(tmp_path: Path) -> None:
    suite = load_suite(ROOT / "configs" / "suite" / "controls_video.yaml")
    assert len(suite.seeds) >= 5 and suite.baseline == "visd"
    needed = {
        "grpo", "answer-only teacher", "empty context", "shuffled feedback", "random weights", "frozen teacher"
    }  # fmt: skip
    assert needed <= suite.methods.keys()
    assert len(planned_runs(suite, tmp_path)) == len(suite.seeds) * len(suite.methods)
    seen = []
    for overrides in suite.methods.values():
        config = load(compose_config([f"experiment={suite.experiment}", *overrides]))
        seen.append((build(config.method, "method"), config.teacher))
    assert all(one != other for i, one in enumerate(seen) for other in seen[:i]), "no two are the same"
