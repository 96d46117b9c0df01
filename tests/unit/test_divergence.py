"""Divergences and their supports: SDPO oracles 1.9 (arXiv 2601.20802), GKD O5 (arXiv 2306.13649), parity with TRL."""

from __future__ import annotations

import math

import pytest
import torch
from trl.experimental.gkd import GKDTrainer
from trl.experimental.sdpo import loss_utils

from tests.unit.method_data import P, Q, gradient, logits_of, random_logits
from visd.objective.divergence import (
    clipped_forward_kl,
    entropy,
    forward_kl,
    generalised_jsd,
    renormalised,
    reverse_kl,
    sampled_reverse_kl,
    with_tail,
)

KINDS = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": lambda p, q: generalised_jsd(p, q, 0.5),
    "jsd 0.1": lambda p, q: generalised_jsd(p, q, 0.1),
    "jsd 0.9": lambda p, q: generalised_jsd(p, q, 0.9),
}


def close(value: object, expected: object) -> bool:
    return value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("reverse", 0.342585), ("forward", 0.340536), ("jsd", 0.082844), ("jsd 0.1", 0.030325), ("jsd 0.9", 0.030464)],
)
def test_sdpo_1_9_1_values(kind: str, expected: float) -> None:
    p, q = logits_of(P).log_softmax(-1), logits_of(Q).log_softmax(-1)
    assert close(KINDS[kind](p, q).item(), expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("reverse", [0.286853, -0.356965, 0.070112]),
        ("jsd", [0.068512, -0.089018, 0.020506]),
        ("forward", [0.3, -0.4, 0.1]),
    ],
)
def test_sdpo_1_9_2_gradients_of_the_logits(kind: str, expected: list[float]) -> None:
    logits = logits_of(P)
    found = gradient(KINDS[kind](logits.log_softmax(-1), logits_of(Q).detach().log_softmax(-1)).sum(), logits)
    assert close(found[0, 0].tolist(), expected)


def test_sdpo_1_9_3_the_ends_of_the_alpha_family_jump() -> None:
    p, q = logits_of(P).log_softmax(-1), logits_of(Q).log_softmax(-1)
    for alpha, end in ((1e-6, forward_kl(p, q)), (1 - 1e-6, reverse_kl(p, q))):
        assert generalised_jsd(p, q, alpha).item() / (alpha * (1 - alpha)) == pytest.approx(end.item(), abs=1e-5)
    jump = generalised_jsd(p, q, 1.0).item() / generalised_jsd(p, q, 0.999).item()
    assert jump == pytest.approx(1000, rel=0.01)


def test_sdpo_1_9_4_top_k_with_tail_and_renormalised() -> None:
    p, q = (torch.tensor(x, dtype=torch.float64).log() for x in ((0.5, 0.3, 0.15, 0.05), (0.2, 0.6, 0.05, 0.15)))
    top = slice(0, 2)
    for kind, full, tailed, closed in (
        ("reverse", 0.360062, 0.250201, 0.312752),
        ("jsd", 0.084854, 0.058692, 0.073365),
    ):
        divergence = KINDS[kind]
        assert close(divergence(p, q).item(), full)
        assert close(divergence(with_tail(p[top]), with_tail(q[top])).item(), tailed)
        assert close(divergence(renormalised(p[top]), renormalised(q[top])).item(), closed)
        assert close(divergence(with_tail(p), with_tail(q)).item(), full)


@pytest.mark.parametrize("kind", KINDS)
def test_sdpo_1_9_4_a_tail_never_exceeds_the_whole(kind: str) -> None:
    student, teacher = random_logits(0, (50, 40))
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    whole, before = KINDS[kind](p, q), torch.zeros(50, dtype=torch.float64)
    for k in (1, 4, 16, 39, 40):
        ids = p.topk(k, dim=-1).indices
        tailed = KINDS[kind](with_tail(p.gather(-1, ids)), with_tail(q.gather(-1, ids)))
        assert (tailed <= whole + 1e-6).all() and (tailed >= before - 1e-6).all()
        before = tailed
    torch.testing.assert_close(before, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_sdpo_1_9_5_equal_distributions_give_nothing(kind: str) -> None:
    student, _ = random_logits(1, (4, 9))
    loss = KINDS[kind](student.log_softmax(-1), student.detach().log_softmax(-1))
    assert loss.abs().max() < 1e-12 and gradient(loss.sum(), student).abs().max() < 1e-12


def test_sdpo_1_9_5_and_opsd_3_9_5_the_sampled_surrogate_has_the_reverse_gradient() -> None:
    logits = logits_of(P)
    p, q = logits.log_softmax(-1)[0, 0], logits_of(Q).detach().log_softmax(-1)[0, 0]
    values = sampled_reverse_kl(p, q)
    expected = (p.detach().exp() * values).sum()
    assert values.min() < 0, "the value is no divergence"
    assert close(gradient(expected, logits)[0, 0].tolist(), [0.286853, -0.356965, 0.070112])


def test_gkd_o5_values() -> None:
    p, q = (torch.tensor(x, dtype=torch.float64).log() for x in ((0.7, 0.2, 0.1), (0.5, 0.4, 0.1)))
    for beta, value in ((0.1, 0.009646), (0.5, 0.025362), (0.9, 0.008787)):
        assert close(generalised_jsd(p, q, beta).item(), value)
    assert close(generalised_jsd(p, q, 0.5).item(), generalised_jsd(q, p, 0.5).item())
    assert close(generalised_jsd(p, q, 1e-6).item() / 1e-6, 0.109023) and close(forward_kl(p, q).item(), 0.109023)
    assert close(reverse_kl(p, q).item(), 0.096901)


def test_trace_t5_the_clip_can_turn_a_gradient_round() -> None:
    """The signed contributions of the shared pair of GKD O5; the same hazard as OPSD 3.9.2."""
    logits = logits_of((0.7, 0.2, 0.1))
    q = torch.tensor([[(0.5, 0.4, 0.1)]], dtype=torch.float64).log()
    value, share = clipped_forward_kl(logits.log_softmax(-1), q, 0.05, "signed")
    assert close(value.item(), -0.118236) and close(share.item(), 0.4)
    assert close(gradient(value.sum(), logits)[0, 0].tolist(), [-0.08, 0.12, -0.04])


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("k", [1, 8, 30])
def test_parity_with_trl_sdpo(alpha: float, tail: bool, k: int) -> None:
    """Same value and gradient on the student's top K of random logits, for every alpha, its ends included.

    With K = V and a tail TRL's bucket holds 1e-7, where ours does as well.
    """
    student, teacher = random_logits(k, (3, 5, 30))
    theirs = loss_utils.compute_topk_self_distillation_loss(
        student, teacher, distillation_topk=k, distillation_alpha=alpha, distillation_add_tail=tail
    )
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    ids = p.detach().topk(k, dim=-1).indices
    shut = with_tail if tail else renormalised
    ours = generalised_jsd(shut(p.gather(-1, ids)), shut(q.gather(-1, ids)), alpha)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(*(gradient(x.sum(), student) for x in (ours, theirs)), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_parity_with_trl_sdpo_over_the_full_vocabulary(alpha: float) -> None:
    student, teacher = random_logits(3, (3, 5, 30))
    theirs = loss_utils.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=alpha)
    ours = generalised_jsd(student.log_softmax(-1), teacher.log_softmax(-1), alpha)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_parity_with_trl_sampled_token() -> None:
    student, teacher = random_logits(4, (3, 5, 30))
    ids = torch.arange(15).reshape(3, 5)
    theirs = loss_utils.compute_sampled_token_self_distillation_loss(student, teacher, ids, distillation_alpha=1.0)
    p, q = (x.log_softmax(-1).gather(-1, ids[..., None])[..., 0] for x in (student, teacher))
    torch.testing.assert_close(sampled_reverse_kl(p, q), theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_parity_with_trl_gkd(beta: float) -> None:
    """Same convention (beta 0 forward, 1 reverse KL); GKD sums over tokens and divides by their number, as given here.

    GKD's temperature divides the logits inside its loss; here the policy's head has divided them already.
    """
    student, teacher = random_logits(5, (3, 5, 30))
    labels = torch.arange(15).reshape(3, 5)
    labels[1, 3:] = -100
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels=labels, beta=beta, temperature=0.9)
    per_token = generalised_jsd((student / 0.9).log_softmax(-1), (teacher / 0.9).log_softmax(-1), beta)
    mask = labels != -100
    torch.testing.assert_close((per_token * mask).sum() / mask.sum(), theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_cannot_be_sampled_add_exactly_nothing(kind: str) -> None:
    student, teacher = random_logits(6, (4, 9))
    banned = torch.zeros(9, dtype=torch.bool)
    banned[[2, 5]] = True
    p, q = (x.masked_fill(banned, -math.inf).log_softmax(-1) for x in (student, teacher))
    loss = KINDS[kind](p, q)
    kept = KINDS[kind](student[:, ~banned].log_softmax(-1), teacher[:, ~banned].log_softmax(-1))
    torch.testing.assert_close(loss, kept, atol=1e-12, rtol=0)
    found = gradient(loss.sum(), student)
    assert found.isfinite().all() and (found[:, banned] == 0).all()
    assert entropy(p).isfinite().all()
    tailed = with_tail(p[:, [2, 0]])
    assert tailed.logsumexp(-1).abs().max() < 1e-6
