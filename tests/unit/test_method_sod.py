"""SOD (arXiv 2605.07725): oracles S1 to S4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runs import small_config
from tests.unit.method_data import batch_of, group_of, sample_of
from visd.config import ConfigError, build
from visd.methods.base import Scores
from visd.methods.grpo import GRPO
from visd.methods.sod import SOD, step_ids, step_means, step_weights
from visd.types import TokenScores

MASK = torch.tensor([[True, True, False, True, True]])
STUDENT = torch.tensor([[-0.8, -0.7, -3.0, -1.6, -0.4]], dtype=torch.float64)
TEACHER = torch.tensor([[-1.0, -0.5, -9.0, -2.0, -0.8]], dtype=torch.float64)
IDS = torch.zeros(1, 5, dtype=torch.long)


def advantages(
    method: SOD, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, advantage: float = 1.0
) -> torch.Tensor:
    scores = Scores(TokenScores(student), TokenScores(teacher))
    return method.advantages(batch_of(IDS, [advantage], mask=mask), scores, 0).advantages


def test_s1_one_step_is_grpo_with_uniform_distillation() -> None:
    everything = torch.ones(1, 5, dtype=torch.bool)
    found = advantages(SOD(), STUDENT, TEACHER, everything, advantage=-0.5)
    torch.testing.assert_close(found, -0.5 + TEACHER - STUDENT)
    weight, _ = SOD().weight(TEACHER - STUDENT, everything)
    assert (weight == 1).all()


def test_s1_without_distillation_or_difference_it_is_grpo() -> None:
    tokens = batch_of(IDS, [0.7], mask=MASK)
    plain = GRPO().advantages(tokens, Scores(TokenScores(STUDENT), None), 0).advantages
    for method, teacher in ((SOD(opd_weight=0.0), TEACHER), (SOD(), STUDENT)):
        found = advantages(method, STUDENT, teacher, MASK, advantage=0.7)
        assert torch.equal(found[MASK], plain[MASK])
    off = SOD(opd_weight=0.0)
    assert off.needs(0) is None and not off.active(0)
    assert torch.equal(off.advantages(tokens, Scores(TokenScores(STUDENT), None), 0).advantages, plain)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((0.2, 0.4, 0.1), (1, 0.500001, 1.2)),
        ((0.218, 0.5, 1.284), (1, 0.436001, 0.169783)),
        ((0.3, 0.3, 0.3), (1, 1, 1)),
        ((0.2, 0.1, 0.4), (1, 1.2, 0.500001)),
    ],
)
def test_s2_weights_of_steps(gaps: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = step_weights(torch.tensor([gaps], dtype=torch.float64), 0.2)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_s3_steps_of_the_mask_and_their_advantages() -> None:
    assert step_ids(MASK).tolist() == [[1, 1, 0, 2, 2]]
    gaps = step_means((STUDENT - TEACHER).abs() * MASK, step_ids(MASK))
    assert gaps[0].tolist() == pytest.approx([0.2, 0.4])
    found = advantages(SOD(), STUDENT, TEACHER, MASK)[0].tolist()
    assert found == pytest.approx([0.8, 1.2, 0.0, 0.8, 0.8], abs=1e-5)


def test_s4_what_a_tool_wrote_has_no_influence() -> None:
    expected = advantages(SOD(), STUDENT, TEACHER, MASK)
    for value in (0.0, 5.0, -1e4, float("nan")):
        student, teacher = STUDENT.clone(), TEACHER.clone()
        student[0, 2], teacher[0, 2] = value, -value
        assert torch.equal(advantages(SOD(), student, teacher, MASK), expected)
    longer = torch.tensor([[True, True, False, False, False, True, True]])
    scores = [torch.cat([x[:, :3], x[:, 2:3] - 1, x[:, 2:3] + 1, x[:, 3:]], dim=1) for x in (STUDENT, TEACHER)]
    tokens = batch_of(torch.zeros(1, 7, dtype=torch.long), [1.0], mask=longer)
    found = SOD().advantages(tokens, Scores(*map(TokenScores, scores)), 0).advantages
    assert torch.equal(found[longer], expected[MASK]), "nor has its length"


def test_s4_weights_depend_on_the_proportions_of_the_gaps() -> None:
    gaps = torch.tensor([[0.2, 0.5, 0.1, 0.9]], dtype=torch.float64)
    torch.testing.assert_close(step_weights(7 * gaps, 0.2), step_weights(gaps, 0.2), atol=1e-5, rtol=0)


def test_rows_of_different_steps_do_not_mix() -> None:
    mask = torch.tensor([[True, True, True, True, True], MASK[0].tolist(), [True, False, True, False, True]])
    ratio = (TEACHER - STUDENT).expand(3, 5)
    both, clipped = SOD().weight(ratio, mask)
    alone = [SOD().weight(ratio[i : i + 1], mask[i : i + 1])[0][0] for i in range(3)]
    torch.testing.assert_close(both, torch.stack(alone))
    assert (both[~mask] == 0).all() and not clipped[~mask].any()
    _, bounded = SOD(delta=0.2).weight(torch.tensor([[0.4, 0.0, 0.1]]), torch.tensor([[True, False, True]]))
    assert bounded.tolist() == [[False, False, True]]


def test_a_floor_keeps_a_first_step_without_a_gap_from_silencing_the_rest() -> None:
    gaps = torch.tensor([[0.0, 0.3]], dtype=torch.float64)
    assert step_weights(gaps, 0.2)[0, 1] < 1e-5
    assert step_weights(gaps, 0.2, floor=0.1)[0, 1].item() == pytest.approx(1 / 3, abs=1e-5)


def test_what_the_teacher_sees() -> None:
    group = group_of([1.0], sample_of())
    contexts = [SOD(reference=kind).context(group, 0) for kind in ("none", "answer", "rationale")]
    shown = [context.reference if context else "no target" for context in contexts]
    assert shown == [None, "left", "<think>look left</think><answer>left</answer>"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method.reference=none"], r"method\.reference: none leaves .*teacher\.weights=frozen"),
        (["teacher.context=[answer]"], r"teacher\.context"),
        (["method.reference=poem"], r"method\.reference"),
        (["method.delta=-1"], r"method\.delta"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(settings: list[str], said: str) -> None:
    config = small_config(Path("world"), Path("model"), Path("run"), "method=sod_self", *settings)
    with pytest.raises(ConfigError, match=said):
        build(config.method, "method").check([], config)
