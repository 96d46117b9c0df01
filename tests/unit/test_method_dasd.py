"""DASD (arXiv 2605.22263): oracles D1 to D5."""

from __future__ import annotations

import pytest
import torch

from tests.unit.method_data import batch_of
from visd.methods.base import Scores
from visd.methods.dasd import DASD
from visd.methods.grpo import GRPO
from visd.types import TokenScores

ENTROPY = torch.tensor([[0.1, 0.2, 0.3, 0.4, 2.0, 3.0]], dtype=torch.float64)
DELTA = torch.tensor([[1.0, -1.0, 2.0, 0.0, 1.0, -2.0]], dtype=torch.float64)
WHOLE = torch.ones(1, 6, dtype=torch.bool)
IDS = torch.zeros(1, 6, dtype=torch.long)
LOW = ([0.049834, 0, -0.072863, -0.053082, -0.473403, -0.725672], [0.049834, 0, -0.145726, 0, -0.473403, 1.451344])
HIGH = ([0.478119, 0.473403, 0.683839, 0.247875, 0, -0.556770], [0.478119, -0.473403, 1.367678, 0, 0, 1.113540])


def scores(delta: torch.Tensor, entropy: torch.Tensor = ENTROPY) -> Scores:
    student = torch.full_like(delta, -1.0)
    return Scores(TokenScores(student, entropy), TokenScores(student + delta))


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (DASD(beta=0.0), scores(DELTA)),
        (DASD(), scores(torch.zeros_like(DELTA))),
        (DASD(), scores(DELTA, torch.full_like(ENTROPY, 0.7))),
        (DASD(zero_advantage=False), scores(DELTA, torch.zeros_like(ENTROPY))),
    ],
    ids=["beta 0", "delta 0", "constant entropy", "zero entropy"],
)
def test_d1_grpo_exactly(method: DASD, given: Scores) -> None:
    tokens = batch_of(IDS, [0.7])
    found = method.advantages(tokens, given, 0).advantages
    assert torch.equal(found, GRPO().advantages(tokens, given, 0).advantages)


def test_d2_signs() -> None:
    """Up where the student is sure and the teacher agrees; all turned where it is unsure, or the teacher disagrees."""
    method = DASD(beta=1.0, quantile=0.5, normaliser="none")
    entropy = torch.tensor([[0.1, 0.1, 2.0, 2.0]], dtype=torch.float64)
    delta = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    found = method.advantages(batch_of(IDS[:, :4], [0.0]), scores(delta, entropy), 0).advantages
    assert torch.sign(found)[0].tolist() == [1.0, -1.0, -1.0, 1.0]


@pytest.mark.parametrize(("quantile", "expected"), [(0.2, LOW), (0.8, HIGH)], ids=["lower", "upper"])
def test_d3_values(quantile: float, expected: tuple[list[float], list[float]]) -> None:
    method = DASD(beta=1.0, quantile=quantile, normaliser="none")
    weight = method.weight(ENTROPY, DELTA, WHOLE)
    assert weight[0].tolist() == pytest.approx(expected[0], abs=1e-5)
    found = method.advantages(batch_of(IDS, [0.0]), scores(DELTA), 0).advantages
    assert found[0].tolist() == pytest.approx(expected[1], abs=1e-5)


def test_d3_the_deviation_about_the_median_is_smaller() -> None:
    """0.8 in place of 1.0."""
    about_median = DASD(quantile=0.8, deviation_about="median", reliability=False).routed(ENTROPY, WHOLE)
    torch.testing.assert_close(about_median, torch.tanh((2.0 - ENTROPY) / 0.8), atol=1e-9, rtol=0)


def test_d4_scale_of_entropy_and_uniform_routers() -> None:
    method = DASD()
    for factor in (0.01, 7.0):
        torch.testing.assert_close(method.weight(factor * ENTROPY, DELTA, WHOLE), method.weight(ENTROPY, DELTA, WHOLE))
    gate = torch.sigmoid(DELTA.abs() - 1)
    assert torch.equal(DASD(router="attract").weight(ENTROPY, DELTA, WHOLE), gate)
    assert torch.equal(DASD(router="repel").weight(ENTROPY, DELTA, WHOLE), -gate)
    assert torch.equal(DASD(router="attract", reliability=False).weight(ENTROPY, DELTA, WHOLE), torch.ones_like(gate))


@pytest.mark.parametrize("normaliser", ["rms", "std", "none"])
@pytest.mark.parametrize("about", ["mean", "median"])
def test_d5_padding_enters_no_statistic(normaliser: str, about: str) -> None:
    method = DASD(beta=1.0, normaliser=normaliser, deviation_about=about)
    alone = method.advantages(batch_of(IDS, [0.5]), scores(DELTA), 0).advantages
    wide = torch.cat([DELTA, torch.full((1, 3), 50.0)], -1), torch.cat([ENTROPY, torch.full((1, 3), 99.0)], -1)
    mask = torch.cat([WHOLE, torch.zeros(1, 3, dtype=torch.bool)], -1)
    padded = method.advantages(batch_of(torch.zeros(1, 9, dtype=torch.long), [0.5], mask=mask), scores(*wide), 0)
    torch.testing.assert_close(padded.advantages[:, :6], alone, atol=1e-12, rtol=0)
    assert (padded.advantages[:, 6:] == 0.5).all()


def test_normalisers_keep_the_sign() -> None:
    rms, std = (DASD(normaliser=n).normalised(DELTA, WHOLE) for n in ("rms", "std"))
    torch.testing.assert_close(rms, DELTA / (11 / 6) ** 0.5)
    torch.testing.assert_close(std, DELTA / (11 / 6 - (1 / 6) ** 2) ** 0.5)


def test_rollouts_without_advantage_are_corrected_only_if_asked() -> None:
    tokens = batch_of(IDS, [0.0])
    assert (DASD().advantages(tokens, scores(DELTA), 0).advantages != 0).any()
    assert (DASD(zero_advantage=False).advantages(tokens, scores(DELTA), 0).advantages == 0).all()
