"""AntiSD (arXiv 2605.11609), the paper's recipe: oracles 5.9; those of the code are in test_method_antisd_code.py."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch

from tests.unit.method_data import P, Q, batch_of, gather, gradient, group_of, logits_of, sample_of
from visd.config import ConfigError, RunConfig
from visd.methods.antisd import AntiSD, phi
from visd.methods.antisd_code import AntiSDCode
from visd.methods.base import Scores, StepView
from visd.methods.grpo import GRPO
from visd.objective.divergence import generalised_jsd
from visd.types import TokenScores

SIGNAL = {
    -20.0: 0.346574,
    -3.0: 0.322280,
    -1.0: 0.189943,
    0.0: 0.0,
    1.0: -0.310057,
    math.log(8): -0.752039,
    5.0: -2.156784,
}
"""Oracle 5.9.1: log ratio to signal."""


def scores(u: Sequence[float], student: float = -1.0) -> Scores:
    """One row whose log ratios are `u`."""
    s = torch.full((1, len(u)), student, dtype=torch.float64)
    return Scores(TokenScores(s), TokenScores(s + torch.tensor([u], dtype=torch.float64)))


def taught(entropies: Sequence[float]) -> dict[tuple[str, int], TokenScores]:
    h = torch.tensor(entropies, dtype=torch.float64)
    return {("s", 0): TokenScores(-h, h)}


def after_warmup(method: AntiSD, entropy: float = 0.4) -> AntiSD:
    """The method as it is at its first step after a warm-up of equal steps."""
    for step in range(method.warmup_steps + 1):
        method.observe(StepView([group_of([1.0], length=2)], taught([entropy, entropy]), gather), step)
    return method


def ids(width: int) -> torch.Tensor:
    return torch.zeros(1, width, dtype=torch.long)


@pytest.mark.parametrize(("direction", "sign"), [("away", 1.0), ("toward", -1.0)])
def test_antisd_5_9_1_and_5_signal_and_its_negative(direction: str, sign: float) -> None:
    method = after_warmup(AntiSD(lam=1.0, direction=direction))
    credit = method.advantages(batch_of(ids(len(SIGNAL)), [0.0]), scores(list(SIGNAL)), 5)
    assert credit.advantages[0].tolist() == pytest.approx([sign * v for v in SIGNAL.values()], abs=1e-5)


def test_antisd_5_9_2_ascent_is_minus_the_descent_of_sdpo() -> None:
    logits = logits_of(P)
    p, q = logits.log_softmax(-1)[0, 0], logits_of(Q).detach().log_softmax(-1)[0, 0]
    half_log_ratio = 0.5 * (p - torch.logsumexp(torch.stack([p, q]), 0) + math.log(2))
    assert torch.allclose(-phi(q - p), half_log_ratio, atol=1e-12)
    expected = (p.detach().exp() * -phi(q - p).detach() * p).sum()
    found = gradient(expected, logits)[0, 0]
    torch.testing.assert_close(found, gradient(generalised_jsd(p, q, 0.5), logits)[0, 0], atol=1e-12, rtol=0)
    assert found.tolist() == pytest.approx([0.068512, -0.089018, 0.020506], abs=1e-5)


def test_antisd_5_9_3_off_is_grpo_and_groups_without_variance_still_learn() -> None:
    tokens, given = batch_of(ids(3), [0.7]), scores([1.0, -1.0, 0.5])
    plain = GRPO().advantages(tokens, given, 0).advantages
    assert torch.equal(AntiSD().advantages(tokens, given, 0).advantages, plain), "lam is 0 before the gate has spoken"
    assert not AntiSD(lam=0.0).active(0) and AntiSD(lam=0.0).needs(0) is None
    method = after_warmup(AntiSD())
    assert torch.equal(method.advantages(tokens, scores([0.0] * 3), 6).advantages, plain)
    untaught = batch_of(ids(3), [0.7], has_teacher=[False])
    assert torch.equal(method.advantages(untaught, given, 6).advantages, plain)
    flat = method.advantages(batch_of(ids(3), [0.0]), given, 6)
    assert (flat.advantages != 0).all() and (flat.weights == 1).all() and AntiSD.learns_without_advantage


def test_antisd_5_9_4_gate() -> None:
    method = AntiSD()
    seen = []
    for step, entropy in enumerate([0.40] * 5 + [0.45, 0.41, 0.37, 0.38, 0.399, 0.40, 0.5]):
        seen.append(method.observe(StepView([group_of([1.0])], taught([0.0, entropy, 9.0]), gather), step)["lam"])
    assert seen == [0.0] * 5 + [0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5]
    starts_off = AntiSD(gate_starts_on=False)
    for step, entropy in enumerate([0.40] * 5 + [0.39, 0.41]):
        last = starts_off.observe(StepView([group_of([1.0])], taught([entropy]), gather), step)["lam"]
        assert last == (0.5 if step == 6 else 0.0)
    assert AntiSD(gate=False).observe(StepView([group_of([1.0])], taught([0.1]), gather), 0)["lam"] == 0.5


def test_the_median_is_over_all_tokens_of_all_ranks() -> None:
    method = AntiSD(gate=False)
    seen = method.observe(
        StepView([], taught([1.0, 2.0, 9.0]), lambda mine: [mine, torch.tensor([3.0, 4.0]).numpy()]), 0
    )
    assert seen["teacher_entropy_median"] == 3.0


@pytest.mark.parametrize("kind", [AntiSD, AntiSDCode])
def test_the_gate_survives_a_restart(kind: type[AntiSD]) -> None:
    values = [0.40, 0.41, 0.39, 0.40, 0.40, 0.30, 0.395, 0.45]
    straight, first, second = kind(), kind(), kind()
    group = group_of([1.0], length=2)
    expected = [straight.observe(StepView([group], taught([v, v]), gather), i) for i, v in enumerate(values)]
    found = [first.observe(StepView([group], taught([v, v]), gather), i) for i, v in enumerate(values[:6])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.observe(StepView([group], taught([v, v]), gather), 6 + i) for i, v in enumerate(values[6:])]
    assert found == expected and second.state_dict() == straight.state_dict()
    assert first.state_dict()["is_on"] is False, "the gate went off, so its state matters"


def test_the_teacher_sees_a_right_rollout_or_the_answer_and_the_assessment() -> None:
    group = group_of([0.0, 1.0, 1.0])
    contexts = [AntiSD().context(group, i) for i in range(3)]
    assert all(c is not None and len(c.peers) == 1 and c.reference is None for c in contexts)
    assert [c.feedback for c in contexts if c] == ["incorrect", "correct", "correct"]
    assert contexts[1] is not None and "2" in contexts[1].peers[0] and contexts[1] == AntiSD().context(group, 1)
    alone = AntiSD().context(group_of([1.0, 0.0]), 0)
    assert alone is not None and not alone.peers and alone.reference == "left"
    code = AntiSDCode(solution_tokens=5).context(group_of([0.0, 0.0]), 0)
    assert code is not None and not code.peers and code.reference is None and code.feedback == "incorrect"
    cut = AntiSDCode(solution_tokens=5).context(group, 0)
    assert cut is not None and cut.peers == ("<thin",)
    assert AntiSD(assessment=False, reference="none").context(group_of([0.0]), 0) is None


def test_blocks_that_the_teacher_would_not_be_shown_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.context.*'peers'"):
        AntiSD().check([sample_of()], RunConfig())
