"""RLRT (arXiv 2605.10781): oracles 4.7."""

from __future__ import annotations

import math

import pytest
import torch

from tests.unit.method_data import batch_of, group_of
from visd.methods.base import Scores
from visd.methods.grpo import GRPO
from visd.methods.rlrt import RLRT
from visd.methods.rlsd import RLSD
from visd.types import TokenScores

IDS = torch.zeros(1, 2, dtype=torch.long)


def scores(student: tuple[float, ...] = (0.4, 0.1), teacher: tuple[float, ...] = (0.1, 0.4)) -> Scores:
    """The oracle's two tokens: w = 4 and w = 1/4."""
    s, t = (torch.tensor([x], dtype=torch.float64).log() for x in (student, teacher))
    return Scores(TokenScores(s), TokenScores(t))


@pytest.mark.parametrize(("eps", "expected"), [(1.0, [0.75, 0.3125]), (0.5, [0.625, 0.375]), (0.2, [0.55, 0.45])])
def test_rlrt_4_7_table(eps: float, expected: list[float]) -> None:
    credit = RLRT(lam=0.5, eps=eps).advantages(batch_of(IDS, [0.5]), scores(), 0)
    assert credit.advantages[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert credit.clipped is not None and credit.clipped[0].tolist() == [True, eps < 0.75]


def test_rlrt_4_7_table_rlsd_is_the_other_way_round() -> None:
    """The table's last column, and the same as RLRT with student and teacher exchanged."""
    rlsd = RLSD(lam=0.5, lam_steps=0, eps=1.0).advantages(batch_of(IDS, [0.5]), scores(), 0)
    ours = RLRT(lam=0.5, eps=1.0).advantages(batch_of(IDS, [0.5]), scores((0.1, 0.4), (0.4, 0.1)), 0)
    assert rlsd.advantages[0].tolist() == pytest.approx([0.3125, 0.75], abs=1e-5)
    torch.testing.assert_close(rlsd.advantages, ours.advantages, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("method", "given", "taught"),
    [
        (RLRT(), scores(), False),
        (RLRT(lam=0.0), scores(), True),
        (RLRT(eps=0.0), scores(), True),
        (RLRT(), scores((0.4, 0.1), (0.4, 0.1)), True),
    ],
    ids=["r = 0", "lam 0", "eps 0", "t = s"],
)
def test_rlrt_4_7_invariants_give_grpo(method: RLRT, given: Scores, taught: bool) -> None:
    tokens = batch_of(IDS, [0.5], has_teacher=[taught])
    assert torch.equal(method.advantages(tokens, given, 0).advantages, GRPO().advantages(tokens, given, 0).advantages)


def test_rlrt_4_7_the_sign_never_flips() -> None:
    numbers = torch.Generator().manual_seed(0)
    gap = 8 * torch.randn(3, 20, generator=numbers, dtype=torch.float64)
    tokens = batch_of(torch.zeros(3, 20, dtype=torch.long), [0.7, -0.4, 0.0])
    for eps in (1.0, 0.5, 0.2):
        given = Scores(TokenScores(torch.zeros_like(gap)), TokenScores(gap))
        found = RLRT(eps=eps).advantages(tokens, given, 0).advantages
        assert (torch.sign(found) == torch.sign(tokens.advantages)[:, None]).all()
    assert math.isfinite(float(found.abs().max()))


def test_only_right_rollouts_are_targets_and_see_another_right_one() -> None:
    group = group_of([0.0, 1.0, 1.0])
    shown = [RLRT().context(group, i) for i in range(3)]
    assert shown[0] is None
    assert shown[1] is not None and shown[1].peers == ("<think>why 2</think>answer 2",)
    assert shown[2] is not None and shown[2].peers == ("<think>why 1</think>answer 1",)
    alone = RLRT().context(group_of([0.0, 1.0]), 1)
    assert alone is not None and alone.peers == ("<think>why 1</think>answer 1",)
    assert RLRT(own_success=False).context(group_of([0.0, 1.0]), 1) is None
    ungated = RLRT(gate=False).context(group, 0)
    assert ungated is not None and ungated.peers == shown[2].peers
