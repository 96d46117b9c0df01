"""SDPO (arXiv 2601.20802): oracles 1.9 through the method, its contexts, and the trust-region teacher.

The divergences' part of 1.9 (items 1 to 5) is in test_divergence.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.unit.method_data import P, Q, batch_of, gather, gradient, group_of, logits_of, random_logits, scores_of
from visd.config import ConfigError
from visd.methods.base import StepView
from visd.methods.grpo import GRPO
from visd.methods.sdpo import SDPO
from visd.objective.loss import Denominators, token_weights
from visd.teacher.scorer import mixed_logp
from visd.types import Term, TokenScores

IDS = torch.zeros(1, 1, dtype=torch.long)


def total(term: Term, mask: torch.Tensor, denominators: Denominators, aggregation: str = "sequence") -> torch.Tensor:
    """The term's part of the loss, as the update sums it."""
    return term.weight * (term.value * token_weights(mask, aggregation, denominators) * term.mask).sum()


@pytest.mark.parametrize(
    ("method", "value"),
    [
        (SDPO(alpha=0.5, support="full", is_clip=0), 0.082844),
        (SDPO(alpha=1.0, support="student", top_k=3, is_clip=0), 0.342585),
        (SDPO(alpha=0.0, support="teacher", top_k=3, is_clip=0), 0.340536),
    ],
    ids=["full", "student", "teacher"],
)
def test_sdpo_1_9_1_through_the_method(method: SDPO, value: float) -> None:
    logits = logits_of(P)
    term = method.terms(batch_of(IDS, [0.0]), scores_of(logits, logits_of(Q), IDS, method.needs(0)), 0)["distillation"]
    assert term.value.item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("tail", [True, False])
def test_sdpo_1_9_4_top_k_through_the_method(tail: bool) -> None:
    student, teacher = logits_of((0.5, 0.3, 0.15, 0.05)), logits_of((0.2, 0.6, 0.05, 0.15))
    method = SDPO(alpha=1.0, top_k=2, tail=tail, is_clip=0)
    term = method.terms(batch_of(IDS, [0.0]), scores_of(student, teacher, IDS, method.needs(0)), 0)["distillation"]
    assert term.value.item() == pytest.approx(0.250201 if tail else 0.312752, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_sdpo_1_9_5_a_teacher_equal_to_the_student_teaches_nothing(alpha: float) -> None:
    student, _ = random_logits(0, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    method = SDPO(alpha=alpha, top_k=4)
    scores = scores_of(student, student, ids, method.needs(0))
    term = method.terms(batch_of(ids, [1.0, -1.0], engine_logp=scores.student.logp.detach()), scores, 0)["distillation"]
    assert term.value.abs().max() < 1e-9 and gradient(term.value.sum(), student).abs().max() < 1e-9


def test_sdpo_1_9_6_without_context_nothing_is_learnt() -> None:
    student, teacher = random_logits(1, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    method = SDPO(top_k=4)
    tokens = batch_of(ids, [1.0, -1.0], has_teacher=[False, False])
    scores = scores_of(student, teacher, ids, method.needs(0))
    loss = total(method.terms(tokens, scores, 0)["distillation"], tokens.mask, Denominators(8, 2, 9))
    assert loss.item() == 0.0 and (gradient(loss, student) == 0).all()
    assert (method.advantages(tokens, scores, 0).advantages == 0).all()
    nobody = group_of([0.0, 0.0, 0.0])
    assert [method.context(nobody, i) for i in range(3)] == [None] * 3


def test_sdpo_1_9_7_mixing_ends_in_grpo_and_in_pure_sdpo() -> None:
    student, teacher = random_logits(2, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    tokens = batch_of(ids, [1.5, -0.5])
    pure, grpo, mixed = SDPO(top_k=4), SDPO(top_k=4, grpo_share=1.0), SDPO(top_k=4, grpo_share=0.9)
    scores = scores_of(student, teacher, ids, pure.needs(0))
    plain = GRPO().advantages(tokens, scores, 0)
    assert torch.equal(grpo.advantages(tokens, scores, 0).advantages, plain.advantages)
    assert grpo.needs(0) is None and not grpo.active(0)
    assert (pure.advantages(tokens, scores, 0).advantages == 0).all()
    assert pure.terms(tokens, scores, 0)["distillation"].weight == 1.0
    torch.testing.assert_close(mixed.advantages(tokens, scores, 0).advantages, 0.9 * plain.advantages)
    assert mixed.terms(tokens, scores, 0)["distillation"].weight == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0.01, [0.595829, 0.303769, 0.100402]), (0.0, [0.6, 0.3, 0.1]), (1.0, [0.2, 0.7, 0.1])],
)
def test_sdpo_1_9_8_the_trust_region_mixes_logits(rate: float, expected: list[float]) -> None:
    reference, live = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.6, 0.3, 0.1, 0.0], [0.2, 0.7, 0.1, 0.0]))
    mixed = mixed_logp(reference, live, rate).exp().tolist()
    assert mixed[:3] == pytest.approx(expected, abs=1e-5) and mixed[3] == 0


def test_the_importance_ratio_is_capped_and_carries_no_gradient() -> None:
    logits = logits_of(P)
    method = SDPO(support="full", is_clip=2.0)
    scores = scores_of(logits, logits_of(Q), IDS, method.needs(0))
    for shift, factor, clipped in (
        (0.0, 1.0, False),
        (0.5, 1.648721, False),
        (3.0, 2.0, True),
        (-1.0, 0.367879, False),
    ):
        tokens = batch_of(IDS, [0.0], engine_logp=scores.student.logp.detach() - shift)
        term = method.terms(tokens, scores, 0)["distillation"]
        assert term.value.item() == pytest.approx(0.082844 * factor, abs=1e-5)
        assert term.clipped is not None and term.clipped.item() is clipped
        expected = [factor * g for g in (0.068512, -0.089018, 0.020506)]
        assert gradient(term.value.sum(), logits)[0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_rollouts_without_context_count_as_zero_in_the_mean() -> None:
    """Two rollouts of lengths 4 and 2, the second without a context: half the first's token mean."""
    student, teacher = random_logits(3, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    method = SDPO(top_k=4, is_clip=0)
    tokens = batch_of(ids, [0.0, 0.0], mask=mask, has_teacher=[True, False])
    term = method.terms(tokens, scores_of(student, teacher, ids, method.needs(0)), 0)["distillation"]
    expected = term.value[0].mean().item() / 2
    assert total(term, mask, Denominators(6, 2, 9)).item() == pytest.approx(expected, abs=1e-9)


def test_the_first_other_success_is_shown_without_its_reasoning() -> None:
    group = group_of([0.0, 1.0, 1.0, 0.2], text="left")
    shown = [SDPO().context(group, i) for i in range(4)]
    assert [c.peers if c else None for c in shown] == [("left 1",), ("left 2",), ("left 1",), ("left 1",)]
    alone = group_of([0.0, 1.0])
    assert SDPO().context(alone, 1) is None
    own = SDPO(own_success=True, strip_think=False).context(alone, 1)
    assert own is not None and own.peers == ("<think>why 1</think>answer 1",)
    strict = SDPO(success_threshold=1.0)
    assert strict.context(group_of([0.6, 0.0]), 1) is None and SDPO().context(group_of([0.6, 0.0]), 1) is not None


@pytest.mark.parametrize(
    ("feedback", "with_solution", "without"),
    [("never", None, None), ("without_solution", None, "Too late."), ("always", "Too late.", "Too late.")],
)
def test_feedback_is_shown_where_the_field_says(feedback: str, with_solution: str | None, without: str | None) -> None:
    method = SDPO(feedback=feedback)
    assert method.wants_judge(0) is (feedback != "never")
    helped = method.context(group_of([1.0, 0.0], feedback="Too late."), 1)
    assert helped is not None and helped.peers and helped.feedback == with_solution
    alone = method.context(group_of([0.0, 0.0], feedback="Too late."), 1)
    assert (alone.feedback if alone else None) == without


def test_shares_of_successes_and_contexts_are_logged() -> None:
    groups = [group_of([1.0, 0.0, 0.0])]
    seen = SDPO().observe(StepView(groups, {("s", 1): TokenScores(torch.zeros(2))}, gather), 0)
    assert seen == pytest.approx({"success_group_share": 1.0, "success_share": 1 / 3, "context_share": 1 / 3})


def test_the_sampled_support_is_the_reverse_kl_alone() -> None:
    with pytest.raises(ConfigError, match=r"method\.alpha"):
        SDPO(support="sampled", alpha=0.5)
    with pytest.raises(ConfigError, match=r"method\.feedback"):
        SDPO(feedback="sometimes")
