"""OPSD (arXiv 2601.18734): oracles 3.9. Item 5, the sampled surrogate, is in test_divergence.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.method_data import P, Q, batch_of, gradient, group_of, logits_of, random_logits, sample_of, scores_of
from visd.config import ConfigError, RunConfig, TeacherSection
from visd.methods.opsd import OPSD
from visd.types import Answer, Term, TokenBatch, VisdError

IDS = torch.zeros(1, 1, dtype=torch.long)
SHOWN = RunConfig(teacher=TeacherSection(context=["reference"]))


def term_of(method: OPSD, student: torch.Tensor, teacher: torch.Tensor, tokens: TokenBatch | None = None) -> Term:
    ids = torch.zeros(student.shape[:2], dtype=torch.long)
    tokens = tokens or batch_of(ids, [0.0] * len(ids))
    return method.terms(tokens, scores_of(student, teacher, ids, method.needs(0)), 0)["distillation"]


@pytest.mark.parametrize(
    ("clip", "generator", "value", "slope"),
    [
        (0.0, "signed", 0.340536, [0.3, -0.4, 0.1]),
        (0.05, "signed", -0.202573, [-0.05, 0.09, -0.04]),
        (0.3, "signed", 0.047427, None),
        (0.05, "nonnegative", 0.130685, None),
        (1e9, "nonnegative", 0.340536, [0.3, -0.4, 0.1]),
    ],
)
def test_opsd_3_9_1_to_3_the_clip_and_its_generators(
    clip: float, generator: str, value: float, slope: list[float] | None
) -> None:
    logits = logits_of(P)
    term = term_of(OPSD(clip=clip, generator=generator), logits, logits_of(Q))
    assert term.value.item() == pytest.approx(value, abs=1e-5)
    if slope:
        assert gradient(term.value.sum(), logits)[0, 0].tolist() == pytest.approx(slope, abs=1e-5)


def test_opsd_3_9_2_the_share_of_clipped_mass_is_reported() -> None:
    """Of the contributions -.183, .593, -.069 only the teacher's favourite, with mass .7, is clipped."""
    clipped = term_of(OPSD(clip=0.05), logits_of(P), logits_of(Q)).clipped
    assert clipped is not None and clipped.item() == pytest.approx(0.7, abs=1e-9)


def test_opsd_3_9_4_equal_models_and_rewards() -> None:
    student, teacher = random_logits(0, (2, 3, 9))
    assert term_of(OPSD(), student, student).value.abs().max() < 1e-12
    ids = torch.zeros(2, 3, dtype=torch.long)
    values = [term_of(OPSD(), student, teacher, batch_of(ids, list(a))).value for a in ((1.0, -1.0), (0.0, 0.0))]
    assert torch.equal(*values)
    tokens = batch_of(ids, [1.0, -1.0])
    credit = OPSD().advantages(tokens, scores_of(student, teacher, ids, OPSD().needs(0)), 0)
    assert (credit.advantages == 0).all() and credit.log_ratio is not None


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_opsd_3_9_4_the_full_vocabulary_is_the_teachers_top_k_with_k_equal_v(clip: float) -> None:
    student, teacher = random_logits(1, (2, 3, 9))
    full = term_of(OPSD(clip=clip), student, teacher).value
    torch.testing.assert_close(full, term_of(OPSD(clip=clip, support="teacher", top_k=9), student, teacher).value)
    assert not torch.allclose(full, term_of(OPSD(clip=clip, support="teacher", top_k=3), student, teacher).value)


def test_the_code_recipe_is_the_symmetric_jsd() -> None:
    term = term_of(OPSD(alpha=0.5, clip=0.0), logits_of(P), logits_of(Q))
    assert term.value.item() == pytest.approx(0.082844, abs=1e-5) and term.clipped is None


def test_the_teacher_sees_the_verified_reasoning_and_answer() -> None:
    context = OPSD().context(group_of([0.0]), 0)
    assert context is not None and context.reference == "<think>look left</think><answer>left</answer>"
    wrong = sample_of(meta={"trace_answer": "right", "verified_rationale": "look twice"})
    context = OPSD().context(group_of([0.0], wrong), 0)
    assert context is not None and context.reference == "<think>look twice</think><answer>left</answer>"
    context = OPSD(reference="answer").context(group_of([0.0], sample_of(None)), 0)
    assert context is not None and context.reference == "left"


def test_samples_without_a_solution_are_refused_at_the_start() -> None:
    good, bad = sample_of(), replace(sample_of(None), id="s2", answer=Answer("word", "up"))
    OPSD().check([good], SHOWN)
    OPSD(reference="answer").check([good, bad], SHOWN)
    with pytest.raises(VisdError, match=r"sample 's2'.*'rationale'.*1 of 2.*method\.reference") as error:
        OPSD().check([good, bad], SHOWN)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"teacher\.context.*'reference'"):
        OPSD().check([good], RunConfig())


def test_what_cannot_be_combined_is_refused() -> None:
    for settings in ({"alpha": 0.5}, {"support": "sampled", "clip": 0.0}, {"generator": "both"}, {"clip": -1.0}):
        with pytest.raises(ConfigError, match=r"method\."):
            OPSD(**settings)  # type: ignore[arg-type]
