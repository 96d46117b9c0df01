"""GKD by its oracle O5 (arXiv 2306.13649); parity of the divergence with TRL's is in test_divergence.py."""

from __future__ import annotations

import pytest
import torch
from trl.experimental.gkd import GKDTrainer

from tests.unit.method_data import batch_of, gradient, logits_of, random_logits, scores_of
from visd.config import ConfigError, RunConfig, TeacherSection
from visd.methods.gkd import GKD
from visd.methods.grpo import GRPO

P, Q = (0.7, 0.2, 0.1), (0.5, 0.4, 0.1)


@pytest.mark.parametrize(
    ("beta", "expected"), [(0.1, 0.009646), (0.5, 0.025362), (0.9, 0.008787), (0.0, 0.109023), (1.0, 0.096901)]
)
def test_o5_values_through_the_method(beta: float, expected: float) -> None:
    method, ids = GKD(beta=beta), torch.zeros(1, 1, dtype=torch.long)
    found = method.terms(batch_of(ids, [0.0]), scores_of(logits_of(P), logits_of(Q), ids, method.needs(0)), 0)
    assert found["distillation"].value.item() == pytest.approx(expected, abs=1e-5)


def test_o5_the_ends_of_beta() -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    small = GKD(beta=1e-6)
    value = small.terms(batch_of(ids, [0.0]), scores_of(logits_of(P), logits_of(Q), ids, small.needs(0)), 0)
    assert value["distillation"].value.item() / 1e-6 == pytest.approx(0.109023, abs=1e-5)


def test_o5_lambda_says_how_many_steps_are_on_policy() -> None:
    """1 is purely on-policy, 0 supervised distillation; between them the steps are the same in every start of a run."""
    for share in (0.0, 0.3, 1.0):
        steps = [GKD(on_policy=share).wants_rollouts(step) for step in range(2000)]
        assert steps == [GKD(on_policy=share).wants_rollouts(step) for step in range(2000)]
        assert sum(steps) / 2000 == pytest.approx(share, abs=0.03 if 0 < share < 1 else 0)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradient_equals_that_of_trl(beta: float) -> None:
    """Padded rows of one token mean: TRL divides the sum over tokens by their number."""
    student, teacher = random_logits(7, (3, 5, 30))
    ids = torch.arange(15).reshape(3, 5)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    labels = torch.where(mask, ids, -100)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, temperature=1.0)
    method = GKD(beta=beta)
    term = method.terms(batch_of(ids, [0.0] * 3, mask=mask), scores_of(student, teacher, ids, method.needs(0)), 0)[
        "distillation"
    ]
    ours = (term.weight * term.value * term.mask / mask.sum()).sum()
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradient(ours, student), gradient(theirs, student), atol=1e-9, rtol=1e-9)


def test_the_reward_takes_its_share_and_all_of_it_is_grpo() -> None:
    student, teacher = random_logits(8, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    batch = batch_of(ids, [0.5, -1.0])
    method = GKD(reward_share=0.25, support="student", top_k=3)
    given = scores_of(student, teacher, ids, method.needs(0))
    assert method.advantages(batch, given, 0).advantages.tolist() == [[0.125] * 4, [-0.25] * 4]
    assert method.terms(batch, given, 0)["distillation"].weight == 0.75
    whole = GKD(reward_share=1.0)
    assert whole.needs(0) is None and not whole.active(0)
    assert torch.equal(whole.advantages(batch, given, 0).advantages, GRPO().advantages(batch, given, 0).advantages)


def test_identical_models_teach_nothing_and_settings_are_checked() -> None:
    student, _ = random_logits(9, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    for support in ("full", "student", "teacher"):
        method = GKD(support=support, top_k=4)
        term = method.terms(batch_of(ids, [0.0] * 2), scores_of(student, student, ids, method.needs(0)), 0)
        assert gradient(term["distillation"].value.sum(), student).abs().max() < 1e-12
    for wrong in ({"beta": 2.0}, {"support": "union"}, {"support": "sampled"}, {"reward_share": -0.1}):
        with pytest.raises(ConfigError, match=r"method\."):
            GKD(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"teacher\.weights: gkd"):
        GKD().check([], RunConfig(teacher=TeacherSection(weights="frozen")))
