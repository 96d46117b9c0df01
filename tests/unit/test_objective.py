"""Oracles of advantages, credit and loss: RLSD (arXiv 2604.03128) and VISD (arXiv 2605.06094)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from visd.config import ObjectiveSection
from visd.objective.advantage import group_advantages
from visd.objective.credit import (
    annealed,
    dimension_weight,
    evidence_weight,
    mixed_advantages,
    restricted_log_ratio,
    sampled_log_ratio,
)
from visd.objective.loss import Denominators, kl_to_reference, policy_loss, token_weights
from visd.types import TokenScores

finite = st.floats(-30, 30, allow_nan=False)


def scores(logits_BTV: Tensor, ids_BT: Tensor, support_BTK: Tensor | None = None) -> TokenScores:
    logp = logits_BTV.log_softmax(-1)
    support_logp = None if support_BTK is None else logp.gather(-1, support_BTK)
    return TokenScores(logp.gather(-1, ids_BT[..., None]).squeeze(-1), None, support_BTK, support_logp)


def random_pair(vocab: int = 40, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, 3, 7, vocab, generator=numbers, dtype=torch.float64) * 2
    return teacher, student, torch.randint(0, vocab, (3, 7), generator=numbers)


def test_group_advantage_by_hand() -> None:
    section = ObjectiveSection()
    got = group_advantages([1.0, 0.0, 0.0, 1.0], section)
    expected = 0.5 / (math.sqrt(4 * 0.25 / 3) + 1e-4)
    assert got == pytest.approx([expected, -expected, -expected, expected], abs=1e-12)
    population = group_advantages([1.0, 0.0, 0.0, 1.0], ObjectiveSection(advantage_std_ddof=0, advantage_eps=0.0))
    assert population == pytest.approx([1, -1, -1, 1], abs=1e-12)
    assert group_advantages([1.0, 0.0], ObjectiveSection(advantage_std=False)) == (0.5, -0.5)


def test_equal_rewards_teach_nothing() -> None:
    assert group_advantages([0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2], ObjectiveSection()) == (0.0, 0.0, 0.0)
    assert group_advantages([0.7], ObjectiveSection()) == (0.0,)


def test_lam_schedule_of_the_release() -> None:
    lam = [annealed(0.5, step, 600, "linear") for step in (0, 300, 599, 600, 601)]
    assert lam == pytest.approx([0.5, 0.25, 0.5 / 600, 0.0, 0.0], abs=1e-12)
    assert annealed(0.5, 10_000, 0, "linear") == 0.5
    assert annealed(0.5, 25, 50, "cosine") == pytest.approx(0.25)
    assert annealed(0.5, 49, 50, "constant") == 0.5 and annealed(0.5, 50, 50, "constant") == 0.0


def test_top_k_over_the_whole_vocabulary_is_the_sampled_ratio() -> None:
    teacher, student, ids = random_pair()
    support = teacher.topk(40, dim=-1).indices
    restricted = restricted_log_ratio(scores(teacher, ids, support), scores(student, ids, support), ids)
    sampled = sampled_log_ratio(scores(teacher, ids), scores(student, ids))
    torch.testing.assert_close(restricted, sampled, atol=1e-12, rtol=0)


def test_restricted_ratio_by_its_definition() -> None:
    """S_t is the teacher's top K and the sampled token, counted once, for tokens inside and outside the top K."""
    teacher, student, ids = random_pair()
    support = teacher.topk(4, dim=-1).indices
    got = restricted_log_ratio(scores(teacher, ids, support), scores(student, ids, support), ids)
    inside = 0
    for b in range(3):
        for t in range(7):
            ids_here = sorted(set(support[b, t].tolist()) | {int(ids[b, t])})
            inside += len(ids_here) == 4
            z_t, z_s = teacher[b, t, ids_here], student[b, t, ids_here]
            y = ids_here.index(int(ids[b, t]))
            expected = (z_t[y] - z_t.logsumexp(0)) - (z_s[y] - z_s.logsumexp(0))
            assert got[b, t].item() == pytest.approx(expected.item(), abs=1e-12)
    assert 0 < inside < 21


def test_teacher_equal_to_student_gives_weight_one_exactly() -> None:
    teacher, _, ids = random_pair()
    support = teacher.topk(16, dim=-1).indices
    same = scores(teacher, ids, support)
    ratio = restricted_log_ratio(same, same, ids)
    weight = evidence_weight(ratio, torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64), 0.2)
    assert (ratio == 0).all() and (weight.value == 1).all() and not weight.clipped.any()


def test_clip_engages_where_the_release_says() -> None:
    """eps = 0.2: above ln 1.2 = 0.182 and below ln 0.8 = -0.223."""
    ratio = torch.tensor([[0.18, 0.19, -0.22, -0.23, 500.0, -500.0]], dtype=torch.float64)
    weight = evidence_weight(ratio, torch.tensor([3.0]), 0.2)
    assert weight.clipped.tolist() == [[False, True, False, True, True, True]]
    assert weight.value[0].tolist() == pytest.approx([math.exp(0.18), 1.2, math.exp(-0.22), 0.8, 1.2, 0.8])
    flipped = evidence_weight(ratio, torch.tensor([-3.0]), 0.2)
    torch.testing.assert_close(flipped.value, evidence_weight(-ratio, torch.tensor([3.0]), 0.2).value)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(finite, min_size=2, max_size=6),
    st.floats(-3, 3, allow_nan=False, allow_subnormal=False),  # half of the smallest number is 0: it has no sign
    st.floats(0, 1),
    st.floats(0.01, 0.9),
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=4, max_size=4),
    st.floats(0, 2),
)
def test_sign_and_range_hold_for_every_input(
    ratios: list[float], advantage: float, lam: float, eps: float, judged: list[float | None], strength: float
) -> None:
    ratio = torch.tensor([ratios], dtype=torch.float64)
    a = torch.tensor([advantage], dtype=torch.float64)
    mask = torch.ones_like(ratio, dtype=torch.bool)
    dims = torch.arange(len(ratios))[None] % 4
    judge = torch.tensor([[math.nan if s is None else s for s in judged]], dtype=torch.float64)
    g = dimension_weight(judge, dims, mask, a, strength)
    assert g.mean().item() == pytest.approx(1, abs=1e-9)
    weight = (evidence_weight(ratio, a, eps).value * g).clamp(1 - eps, 1 + eps)
    advantages, multiplier = mixed_advantages(a, weight, lam)
    assert (torch.sign(advantages) == torch.sign(a)).all()
    assert (multiplier >= 1 - lam * eps - 1e-12).all() and (multiplier <= 1 + lam * eps + 1e-12).all()
    assert torch.equal(mixed_advantages(a, weight, 0.0)[0], a[:, None].expand_as(weight))


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 10_000), st.floats(0.01, 0.9))
def test_the_order_of_rollouts_changes_nothing(order: list[int], seed: int, eps: float) -> None:
    numbers = torch.Generator().manual_seed(seed)
    ratio, rewards = torch.randn(4, 6, generator=numbers), torch.rand(4, generator=numbers).tolist()
    judged = torch.rand(4, 4, generator=numbers)
    dims = torch.randint(0, 4, (4, 6), generator=numbers)
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 5, 1])[:, None]

    def credit(rows: list[int]) -> Tensor:
        a = torch.tensor(group_advantages([rewards[row] for row in rows], ObjectiveSection()))
        g = dimension_weight(judged[rows], dims[rows], mask[rows], a, 1.0)
        weight = (evidence_weight(ratio[rows], a, eps).value * g).clamp(1 - eps, 1 + eps)
        return mixed_advantages(a, weight, 0.7)[0]

    torch.testing.assert_close(credit(order), credit([0, 1, 2, 3])[order], atol=1e-6, rtol=1e-6)


def test_dimension_weight_by_hand() -> None:
    """Right answer, wrong time: a rewarded rollout is credited for the answer, a punished one blamed for the time."""
    judged = torch.tensor([[1.0, math.nan, 0.0, math.nan]])
    dims = torch.tensor([[0, 0, 2, 2]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    up = dimension_weight(judged, dims, mask, torch.tensor([1.0]), 1.0)
    down = dimension_weight(judged, dims, mask, torch.tensor([-1.0]), 1.0)
    assert up.tolist() == [[1.5, 1.5, 0.5, 0.5]] and down.tolist() == [[0.5, 0.5, 1.5, 1.5]]
    unscored = dimension_weight(torch.full((1, 4), math.nan), dims, mask, torch.tensor([1.0]), 1.0)
    assert unscored.tolist() == [[1.0] * 4]


def test_policy_loss_against_autograd_by_definition() -> None:
    numbers = torch.Generator().manual_seed(1)
    logp = torch.randn(2, 5, generator=numbers, dtype=torch.float64).requires_grad_()
    old = logp.detach() + 0.4 * torch.randn(2, 5, generator=numbers, dtype=torch.float64)
    advantages = torch.randn(2, 5, generator=numbers, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    weights = token_weights(mask, "token", Denominators(tokens=7, rollouts=2, longest=5)).double()
    got = policy_loss(logp, old, advantages, weights, ObjectiveSection(eps_low=0.2, eps_high=0.28))
    ratio = (logp - old).exp()
    expected = (
        torch.stack(
            [
                -min(ratio[b, t] * advantages[b, t], ratio[b, t].clamp(0.8, 1.28) * advantages[b, t])
                for b in range(2)
                for t in range(5)
                if mask[b, t]
            ]
        ).sum()
        / 7
    )
    torch.testing.assert_close(got.loss, expected, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (got.loss, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)
    assert bool(got.clipped.any()) and not bool(got.clipped[1, 2:].any())


def test_aggregations() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    whole = Denominators(tokens=8, rollouts=4, longest=10)
    assert token_weights(mask, "token", whole).sum().item() == pytest.approx(0.5)
    sequence = token_weights(mask, "sequence", whole)
    assert sequence[0].tolist() == pytest.approx([1 / 12] * 3) and sequence[1, 0].item() == pytest.approx(0.25)
    assert token_weights(mask, "constant", whole)[mask].tolist() == pytest.approx([1 / 40] * 4)


def test_kl_estimator() -> None:
    logp, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.0, -1.5]])
    assert kl_to_reference(logp, reference).tolist() == [pytest.approx([0.0, math.exp(0.5) - 1.5])]
