"""AntiSD's code (arXiv 2605.11609): oracle 5.9.6 and what section 5.4 of the specification derives of the code."""

from __future__ import annotations

import math

import pytest
import torch

from tests.unit.method_data import batch_of
from tests.unit.test_method_antisd import after_warmup, ids, scores
from visd.methods.antisd import Gate, phi
from visd.methods.antisd_code import AntiSDCode, standardised


def test_antisd_5_9_6_standardisation_of_the_code() -> None:
    raw = -phi(torch.tensor([[-3.0, 0.0, math.log(8)]], dtype=torch.float64))
    assert raw[0].tolist() == pytest.approx([0.32228, 0, -0.75204], abs=1e-5)
    whole = torch.ones(1, 3, dtype=torch.bool)
    assert standardised(raw, whole)[0].tolist() == pytest.approx([1.03421, 0.31825, -1.35245], abs=1e-5)
    padded = torch.tensor([[True, True, True, False]])
    longer = standardised(torch.cat([raw, torch.full((1, 1), 9.0)], -1), padded)
    assert longer[0].tolist() == pytest.approx([1.03421, 0.31825, -1.35245, 0.0], abs=1e-5)
    assert (standardised(torch.full((1, 3), 1e-9, dtype=torch.float64), whole) == 0).all(), "noise is not blown up"


def test_code_recipe_weights_by_perplexity() -> None:
    """At the warm-up's median .2 ln(1 / .93) = .0145; never more than .2 ln 3 = .2197; above the limit 0."""
    method = AntiSDCode()
    method._gate = Gate(0.93, 1.07, 1, True, seen=[1.2])
    method._lam = method.lam
    found = method.lam_of(torch.tensor([1.2, 2.9, 3.0, 3.1, 0.9], dtype=torch.float64))
    expected = [0.014514, 0.2 * math.log(2.9 / 1.116), 0.2 * math.log(3.0 / 1.116), 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    method._gate.seen = [0.5]
    assert method.lam_of(torch.tensor([3.0])).item() == pytest.approx(0.2197, abs=1e-4)


def test_code_recipe_drops_outliers_and_long_rollouts() -> None:
    method = after_warmup(AntiSDCode(), 0.4)
    method._sigmas = [0.5]
    u = [0.4, -0.6, 3.0, 0.1]
    credit = method.advantages(batch_of(ids(4), [0.0]), scores(u, -1.4), 6)
    kept = torch.tensor([[0.4, -0.6, 0.0, 0.1]], dtype=torch.float64)
    perplexity = math.exp(-(-1.4 + sum(u) / 4))
    lam = 0.2 * math.log(min(3.0, max(0.5, perplexity / (0.93 * math.exp(0.4)))))
    assert lam > 0.05
    expected = lam * standardised(-phi(kept), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(credit.advantages, expected, atol=1e-9, rtol=0)
    assert credit.clipped is not None and credit.clipped[0].tolist() == [False, False, True, False]
    low = scores([-0.5, -0.6, -0.4, -0.1], -0.4)
    assert (method.advantages(batch_of(ids(4), [0.0]), low, 6).advantages != 0).any()
    method.max_length = 4
    assert (method.advantages(batch_of(ids(4), [0.0]), low, 6).advantages == 0).all()
