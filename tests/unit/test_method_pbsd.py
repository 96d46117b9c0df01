"""PBSD (arXiv 2605.05040): oracles 6.7."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tests.runs import small_config, small_run
from tests.unit.method_data import batch_of, gather, group_of, sample_of
from visd.config import ConfigError, RewardSection, RunConfig
from visd.methods.base import Scores, StepView
from visd.methods.pbsd import PBSD, preference_loss
from visd.objective.loss import Denominators, token_weights
from visd.reward.combine import score
from visd.train.launch import run_stage
from visd.train.services import StepServices
from visd.types import RolloutGroup, TokenBatch, TokenScores

CHOSEN, REJECTED = ("s", 1), ("s", 0)


def paired(group: RolloutGroup, student: dict[tuple[str, int], list[float]]) -> PBSD:
    """A method whose step has the pair (1 over 0) with these log-probabilities of the student."""
    method = PBSD()
    method._partner, method._chosen = {CHOSEN: REJECTED, REJECTED: CHOSEN}, {CHOSEN}
    method._student = {key: math.fsum(values) for key, values in student.items()}
    return method


def loss_of(
    chosen: tuple[list[float], list[float]], rejected: tuple[list[float], list[float]], split: bool = False
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """Loss, gradients and metrics of one pair, (student, teacher) a token each; `split`: in two micro-batches."""
    width = len(chosen[0])
    group = group_of([0.0, 1.0], length=width)
    given = {REJECTED: rejected, CHOSEN: chosen}
    method = paired(group, {key: values[0] for key, values in given.items()})
    teacher = {key: TokenScores(torch.tensor(values[1], dtype=torch.float64)) for key, values in given.items()}
    seen = method.observe(StepView([group], teacher, gather), 0)
    total, gradients = 0.0, {}
    for part in ([0], [1]) if split else ([0, 1],):
        keys = [("s", i) for i in part]
        rows: TokenBatch = replace(
            batch_of(torch.zeros(len(part), width, dtype=torch.long), [0.0] * len(part)),
            groups=[group] * len(part),
            indices=part,
        )
        student = torch.tensor([given[k][0] for k in keys], dtype=torch.float64, requires_grad=True)
        scores = Scores(
            TokenScores(student), TokenScores(torch.tensor([given[k][1] for k in keys], dtype=torch.float64))
        )
        term = method.terms(rows, scores, 0)["preference"]
        weights = token_weights(rows.mask.double(), "sequence", Denominators(2 * width, 2, width))
        loss = term.weight * (term.value * weights * term.mask).sum()
        total += loss.item()
        found = torch.autograd.grad(loss, student)[0]
        gradients |= {"chosen" if i == 1 else "rejected": found[row] for row, i in enumerate(part)}
    return total, gradients, seen


@pytest.mark.parametrize("split", [False, True])
def test_pbsd_6_7_1_margin_loss_and_gradients(split: bool) -> None:
    """-50 over -40, -30 over -45, in two tokens each; the same where the pair lies in two micro-batches."""
    loss, gradients, seen = loss_of(([-20.0, -30.0], [-15.0, -25.0]), ([-10.0, -20.0], [-25.0, -20.0]), split)
    assert seen["margin"] == pytest.approx(-2.5, abs=1e-9) and seen["margin_right_share"] == 0
    assert loss == pytest.approx(2.578890, abs=1e-5)
    assert gradients["chosen"].tolist() == pytest.approx([-0.092414] * 2, abs=1e-5)
    assert gradients["rejected"].tolist() == pytest.approx([0.092414] * 2, abs=1e-5)
    assert (seen["chosen_logp"], seen["rejected_logp"], seen["pairs"]) == (-50, -30, 1)


def test_pbsd_6_7_2_teacher_equal_to_student_or_equal_texts() -> None:
    same = ([-1.0, -2.0], [-1.0, -2.0])
    assert loss_of(same, ([-3.0, -1.0], [-3.0, -1.0]))[0] == pytest.approx(math.log(2), abs=1e-9)
    loss, gradients, _ = loss_of(([-1.0, -2.0], [-0.5, -3.0]), ([-1.0, -2.0], [-0.5, -3.0]))
    assert loss == pytest.approx(0.693147, abs=1e-6)
    torch.testing.assert_close(gradients["chosen"], -gradients["rejected"])


def test_pbsd_6_7_3_optimum_of_the_regularised_reward() -> None:
    """pi* = pi_T exp(r / beta) / Z; descent on the expected DPO loss with Bradley-Terry labels of r arrives there."""
    teacher, reward = (
        torch.tensor([0.2, 0.7, 0.1], dtype=torch.float64),
        torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
    )
    best = teacher * reward.exp() / (teacher * reward.exp()).sum()
    assert best.tolist() == pytest.approx([0.404610, 0.520967, 0.074424], abs=1e-6)

    def objective(policy: Tensor) -> float:
        return float((policy * reward).sum() - (policy * (policy / teacher).log()).sum())

    assert objective(best) == pytest.approx(0.295395, abs=1e-6) and objective(teacher) == pytest.approx(0.2)
    logits = teacher.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14)

    def expected() -> Tensor:
        gap = logits.log_softmax(0) - teacher.log()
        margins = gap[:, None] - gap[None]
        prefer = torch.sigmoid(reward[:, None] - reward[None])
        loss = (prefer * preference_loss(margins)).sum()
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(expected)
    assert logits.softmax(0).tolist() == pytest.approx(best.tolist(), abs=1e-5)


def test_pbsd_6_7_4_is_dpo_with_the_teacher_as_reference() -> None:
    numbers = torch.Generator().manual_seed(0)
    chosen, rejected = -torch.rand(2, 5, generator=numbers, dtype=torch.float64)
    reference = -torch.rand(5, 2, generator=numbers, dtype=torch.float64)
    beta, smoothing = 0.1, 0.2
    logits = (chosen - rejected) - (reference[:, 0] - reference[:, 1])
    expected = -logsigmoid(beta * logits) * (1 - smoothing) - logsigmoid(-beta * logits) * smoothing
    found = preference_loss(beta * ((chosen - reference[:, 0]) - (rejected - reference[:, 1])), smoothing)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_pair_without_its_other_half_is_left_out() -> None:
    group = group_of([0.0, 1.0], length=2)
    method = paired(group, {CHOSEN: [-1.0], REJECTED: [-2.0]})
    scores = TokenScores(torch.zeros(2, dtype=torch.float64))
    seen = method.observe(StepView([group], {CHOSEN: scores}, gather), 0)
    assert seen["pairs"] == 0
    rows = replace(batch_of(torch.zeros(2, 2, dtype=torch.long), [0.0, 0.0]), groups=[group] * 2)
    both = TokenScores(torch.zeros(2, 2, dtype=torch.float64))
    assert not method.terms(rows, Scores(both, both), 0)["preference"].mask.any()
    assert method.context(group, 0) is not None and PBSD().context(group, 0) is None


@pytest.mark.parametrize(("keep", "kept"), [("all", True), ("right", False), ("contrast", False)])
def test_wrong_texts_make_pairs_only_where_asked(keep: str, kept: bool) -> None:
    group = group_of([0.0, 1.0], sample_of())
    method = PBSD(keep=keep)
    wrong = score(group.sample, group.rollouts[0].text, RewardSection(), 0.0)
    assert method._kept(wrong, group.rewards[0]) is kept


def test_a_tools_tokens_are_in_no_margin() -> None:
    plain = group_of([0.0], length=4)
    rollout = replace(plain.rollouts[0], text="abcd", pieces=tuple("abcd"))
    written = replace(rollout, own=(True, False, False, True))
    services: Any = SimpleNamespace(
        step=0, seed=lambda *parts: 1, teacher_view=lambda prompt, context: prompt, write=lambda *asked: [written],
        score=lambda prompts, texts: [[-1.0, -10.0, -10.0, -2.0]] * len(texts),
    )  # fmt: skip
    method = PBSD()
    method.prepare([replace(plain, rollouts=(rollout,), advantages=(0.0,))], services)
    assert method._student == {CHOSEN: -3.0, REJECTED: -23.0}


def test_settings_that_cannot_work_are_refused() -> None:
    config = RunConfig()
    config.teacher.context, config.teacher.weights = ["reference"], "live"
    with pytest.raises(ConfigError, match=r"objective\.aggregation"):
        PBSD().check([sample_of()], config)
    config.objective.aggregation, config.teacher.weights = "sequence", "trust_region"
    with pytest.raises(ConfigError, match=r"teacher\.weights"):
        PBSD().check([sample_of()], config)
    with pytest.raises(ConfigError, match="keep"):
        PBSD(keep="some")


def test_the_teacher_writes_and_no_metric_of_the_policy_counts_it(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """A step on videos: two prompts, four rollouts and two pairs each."""
    config = small_config(
        small_world,
        tiny_qwen2_5_vl,
        tmp_path,
        "method=pbsd",
        "method.pairs=2",
        "train.steps=1",
        "tracking.dump_every=1",
    )
    assert run_stage(config) == 0
    (seen,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert seen["rollout/count"] == 8 and seen["method/pairs"] == 4 and seen["teacher/tokens_written"] > 0
    assert math.isfinite(seen["term/preference"]) and seen["optim/grad_norm"] > 0
    assert seen["teacher/row_share"] == pytest.approx(8 / 12)
    assert len((tmp_path / "rollouts/step_000001.jsonl").read_text().splitlines()) == 12, "the texts are written down"


def test_scores_of_a_text_are_the_policys(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    services = StepServices(run)
    prompts = [prompt for _, prompt in run.prompts(run.sampler.batch(0))]
    texts = services.write(prompts, [1, 2], 6)
    for text, logp in zip(texts, services.score(prompts, texts), strict=True):
        assert logp == pytest.approx(text.logp, abs=1e-4)
    assert services.score([], []) == []
