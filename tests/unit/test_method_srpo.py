"""SRPO (arXiv 2604.02288): oracles 2.9."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.method_data import batch_of, gather, group_of, random_logits, scores_of
from visd.config import ObjectiveSection
from visd.methods.base import Scores, StepView
from visd.methods.grpo import GRPO
from visd.methods.sdpo import SDPO
from visd.methods.srpo import SRPO
from visd.objective.advantage import group_advantages, returns_of
from visd.objective.loss import Denominators, policy_loss, token_weights
from visd.types import RolloutGroup, TokenBatch, TokenScores


def loss_of(method: GRPO | SDPO, tokens: TokenBatch, scores: Scores, denominators: Denominators) -> Tensor:
    """The step's loss of these rows, as the update sums it."""
    weights = token_weights(tokens.mask, "token", denominators)
    credit = method.advantages(tokens, scores.__class__(scores.student.detach(), scores.teacher), 0)
    section, logp = ObjectiveSection(eps_high=0.28), scores.student.logp
    loss = policy_loss(logp, logp.detach(), credit.advantages, weights, section).loss
    for term in method.terms(tokens, scores, 0).values():
        loss = loss + term.weight * (term.value * weights * term.mask).sum()
    return loss


def observe(method: SRPO, group: RolloutGroup, tokens: TokenBatch, scores: Scores) -> dict[str, float]:
    assert scores.teacher is not None
    taught = {
        ("s", i): scores.teacher.row(i, int(tokens.mask[i].sum()))
        for i in range(len(tokens.indices))
        if tokens.has_teacher[i]
    }
    return method.observe(StepView([group], taught, gather), 0)


def test_srpo_2_9_1_without_contexts_it_is_grpo_and_all_wrong_with_contexts_weighted_sdpo() -> None:
    student, teacher = random_logits(0, (2, 4, 9))
    ids, mask = torch.arange(8).reshape(2, 4), torch.tensor([[True] * 4, [True, True, False, False]])
    method, whole = SRPO(top_k=4, is_clip=0), Denominators(6, 2, 9)
    scores = scores_of(student, teacher, ids, method.needs(0))
    nobody = batch_of(ids, [0.7, -0.7], mask=mask, has_teacher=[False, False])
    assert torch.equal(loss_of(method, nobody, scores, whole), loss_of(GRPO(), nobody, scores, whole))

    group = group_of([0.0, 0.0])
    routed = batch_of(ids, [0.0, 0.0], mask=mask, group=group)
    observe(method, group, routed, scores)
    assert scores.teacher is not None and scores.teacher.entropy is not None
    w = (-scores.teacher.entropy).exp()
    w = w / w[mask].mean()
    plain = SDPO(top_k=4, is_clip=0).terms(routed, scores, 0)["distillation"].value
    expected = (w * plain)[mask].mean()
    assert loss_of(method, routed, scores, whole).item() == pytest.approx(expected.item(), abs=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_srpo_2_9_2_weights_have_mean_one_over_the_routed_tokens(beta: float) -> None:
    student, teacher = random_logits(1, (3, 4, 9))
    ids, mask = torch.arange(12).reshape(3, 4) % 9, torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    method = SRPO(top_k=4, is_clip=0, beta=beta)
    group = group_of([1.0, 0.0, 0.0])
    tokens = batch_of(ids, [2.0, -1.0, -1.0], mask=mask, group=group, has_teacher=[False, True, True])
    scores = scores_of(student, teacher, ids, method.needs(0))
    observe(method, group, tokens, scores)
    routed = mask & tokens.has_teacher[:, None]
    plain = SDPO(top_k=4, is_clip=0).terms(tokens, scores, 0)["distillation"].value
    weights = method.terms(tokens, scores, 0)["distillation"].value / plain
    assert weights[routed].mean().item() == pytest.approx(1, abs=1e-9)
    assert bool((weights[routed] - 1).abs().max() < 1e-9) is (beta == 0)


def test_srpo_2_9_3_one_denominator_by_hand() -> None:
    """Two routed tokens, H = 0 and ln 2, losses .4 and .2; three GRPO tokens at ratio 1 and A = 1: -0.466667."""
    method = SRPO(is_clip=0, support="sampled", alpha=1.0)  # whose loss is (s - t) s
    group = group_of([1.0, 0.0])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    tokens = batch_of(
        torch.zeros(2, 3, dtype=torch.long), [1.0, -1.0], mask=mask, group=group, has_teacher=[False, True]
    )
    entropy = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]], dtype=torch.float64)
    student = torch.full((2, 3), -1.0, dtype=torch.float64).requires_grad_()
    teacher = torch.tensor([[0.0, 0.0, 0.0], [-0.6, -0.8, 0.0]], dtype=torch.float64)
    scores = Scores(TokenScores(student), TokenScores(teacher, entropy))
    observe(method, group, tokens, scores)
    weighted = method.terms(tokens, scores, 0)["distillation"].value[1, :2]
    assert weighted.tolist() == pytest.approx([0.4 * 4 / 3, 0.2 * 2 / 3], abs=1e-9)
    assert loss_of(method, tokens, scores, Denominators(5, 2, 9)).item() == pytest.approx(-0.466667, abs=1e-5)


def test_srpo_2_9_4_routes_of_one_success_in_four() -> None:
    group = group_of([1.0, 0.0, 0.0, 0.0])
    section = ObjectiveSection(advantage_std=False)
    advantages = group_advantages([r.accuracy for r in group.rewards], section)
    assert advantages[0] == pytest.approx(0.75) and group_advantages(returns_of(group, section, 9), section)[
        0
    ] == pytest.approx(0.75)
    contexts = [SRPO().context(group, i) for i in range(4)]
    assert contexts[0] is None
    assert all(c is not None and c.peers == ("answer 0",) for c in contexts[1:])
    assert SRPO().context(group_of([1.0, 1.0, 0.0]), 0) is None, "a right rollout is never routed to distillation"

    student, teacher = random_logits(2, (4, 3, 9))
    ids = torch.arange(12).reshape(4, 3) % 9
    method = SRPO(top_k=4, is_clip=0)
    tokens = batch_of(ids, list(advantages), group=group, has_teacher=[False, True, True, True])
    credit = method.advantages(tokens, scores_of(student, teacher, ids, method.needs(0)), 0)
    assert credit.advantages[0].tolist() == pytest.approx([0.75] * 3) and (credit.advantages[1:] == 0).all()


def test_srpo_2_9_5_an_all_wrong_group_gives_nothing_and_splits_change_nothing() -> None:
    nobody = group_of([0.0, 0.0])
    assert [SRPO().context(nobody, i) for i in range(2)] == [None, None]
    assert group_advantages([0.0, 0.0], ObjectiveSection()) == (0.0, 0.0)

    student, teacher = random_logits(3, (3, 4, 9))
    ids, mask = torch.arange(12).reshape(3, 4) % 9, torch.tensor([[True] * 4, [True, False, False, False], [True] * 4])
    group, whole = group_of([1.0, 0.0, 0.0]), Denominators(9, 3, 9)
    method = SRPO(top_k=4, is_clip=0)

    def part(rows: list[int]) -> tuple[TokenBatch, Scores]:
        tokens = batch_of(
            ids[rows], [[2.0, -1.0, -1.0][r] for r in rows], mask=mask[rows], group=group,
            has_teacher=[[False, True, True][r] for r in rows],
        )  # fmt: skip
        tokens.indices = rows
        return tokens, scores_of(student[rows], teacher[rows], ids[rows], method.needs(0))

    observe(method, group, *part([0, 1, 2]))
    at_once = loss_of(method, *part([0, 1, 2]), whole)
    split = sum(loss_of(method, *part(rows), whole) for rows in ([0], [1], [2]))
    torch.testing.assert_close(at_once, split, atol=1e-12, rtol=0)


def test_the_mean_weight_is_of_all_ranks() -> None:
    entropies = {0: [0.0, 1.0], 1: [2.0]}
    scores = [{("s", i): TokenScores(torch.zeros(len(h)), torch.tensor(h))} for i, h in entropies.items()]
    group = group_of([1.0, 0.0])
    sent: list[object] = []
    for mine in scores:
        SRPO().observe(StepView([group], mine, lambda m: sent.append(m) or [m]), 0)
    method = SRPO()
    method.observe(StepView([group], scores[0], lambda m: [sent[0], sent[2]] if m is not None else []), 0)
    assert method._mean_weight == pytest.approx((1 + math.exp(-1) + math.exp(-2)) / 3, abs=1e-7)
