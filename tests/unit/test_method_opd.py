"""OPD by its oracles O1-O4 (arXiv 2604.13016), and its diagnostics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.method_data import batch_of, gradient, logits_of, random_logits
from visd.config import ConfigError, RunConfig, TeacherSection
from visd.methods.base import Scores
from visd.methods.grpo import GRPO
from visd.methods.opd import BOTH, OPD, SUPPORTS
from visd.objective.divergence import renormalised, reverse_kl
from visd.objective.overlap import Overlap, overlap, with_overlap
from visd.policy.head import read_scores, score_names
from visd.types import ScoreNeeds, TokenScores

P, Q = (0.7, 0.2, 0.1), (0.5, 0.4, 0.1)
P4, Q4 = (0.5, 0.3, 0.15, 0.05), (0.4, 0.1, 0.3, 0.2)


def read(logp: Tensor, ids: Tensor, support: Tensor | None, needs: ScoreNeeds) -> TokenScores:
    """[B, T, V] through the policy's own reading of distributions."""
    flat = None if support is None else support.flatten(0, 1)
    found = read_scores(logp.flatten(0, 1), ids.flatten(), flat, needs)
    return TokenScores(**{n: v.unflatten(0, ids.shape) for n, v in zip(score_names(needs, flat), found, strict=True)})


def scored(student: Tensor, teacher: Tensor, ids: Tensor, asked: ScoreNeeds | None, k: int = 0) -> Scores:
    """What the trainer would hand a method that asks for `asked`, with the diagnostics on the `k` best ids."""
    assert asked is not None
    needs = with_overlap(asked, k)
    p, q = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    own = None
    if needs.top_k and needs.support != "teacher":
        own = read(p.detach(), ids, None, ScoreNeeds(top_k=needs.top_k)).support_ids
    taught = read(q, ids, own, needs)
    asked_student = ScoreNeeds(entropy=True, full=needs.full, overlap_k=needs.overlap_k)
    return Scores(read(p, ids, taught.support_ids, asked_student), taught)


def term(method: OPD, student: Tensor, teacher: Tensor) -> Tensor:
    ids = torch.zeros(student.shape[:2], dtype=torch.long)
    batch = batch_of(ids, [0.0] * len(ids))
    found = method.terms(batch, scored(student, teacher, ids, method.needs(0)), 0)["distillation"]
    return found.weight * found.value * found.mask


def close(value: object, expected: object) -> bool:
    return value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("support", "k", "expected"),
    [
        ("full", 3, [0.167700, -0.158010, -0.009690]),
        ("student", 3, [0.167700, -0.158010, -0.009690]),
        ("student", 2, [0.186333, -0.175566, -0.010767]),
        ("teacher", 2, [0.186333, -0.175566, -0.010767]),
    ],
)
def test_o1_effective_gradient(support: str, k: int, expected: list[float]) -> None:
    logits = logits_of(P)
    value = term(OPD(support=support, top_k=k), logits, logits_of(Q))
    assert close(gradient(value.sum(), logits)[0, 0].tolist(), expected)
    assert close(value.item(), 0.096901 if k == 3 else 0.107668)


def test_o1_the_divergence_of_two_ids_is_renormalised() -> None:
    logits = logits_of(P)
    value = term(OPD(top_k=2, estimator="divergence"), logits, logits_of(Q))
    assert close(value.item(), 0.107668)
    by_hand = reverse_kl(
        renormalised(logits.log_softmax(-1)[..., :2]), renormalised(logits_of(Q).log_softmax(-1)[..., :2])
    )
    torch.testing.assert_close(gradient(value.sum(), logits), gradient(by_hand.sum(), logits))
    whole = term(OPD(support="full", estimator="divergence"), logits, logits_of(Q))
    assert close(gradient(whole.sum(), logits)[0, 0].tolist(), [0.167700, -0.158010, -0.009690])


def test_o1_a_constant_added_to_the_teacher_matters_to_the_reward_alone() -> None:
    """True log-probabilities on part of the vocabulary: what the teacher puts elsewhere counts, unless renormalised."""
    p, q = (torch.tensor([[x]], dtype=torch.float64).log() for x in (P4, Q4))
    ids = p.topk(2, dim=-1).indices
    first = TokenScores(p[..., 0], None, ids, p.gather(-1, ids))
    for estimator, changes in (("reward", True), ("divergence", False)):
        method = OPD(top_k=2, estimator=estimator)
        values = [
            method.estimate(*method.candidates(first, TokenScores(q[..., 0], None, ids, q.gather(-1, ids) + c)))
            for c in (0.0, 0.3)
        ]
        assert close(values[0].item(), values[1].item()) is not changes


def test_o2_the_sampled_reward_is_the_reverse_kl_in_expectation() -> None:
    ids = torch.arange(3)[None]
    found = OPD(support="sampled").advantages(
        batch_of(ids, [0.7]), scored(logits_of(P, P, P), logits_of(Q, Q, Q), ids, ScoreNeeds()), 0
    )
    assert close((torch.tensor(P, dtype=torch.float64) * found.advantages[0]).sum().item(), -0.096901)


@pytest.mark.parametrize("support", SUPPORTS)
def test_o2_identical_models_teach_nothing(support: str) -> None:
    student, _ = random_logits(0, (2, 5, 12))
    ids = torch.arange(10).reshape(2, 5)
    method = OPD(support=support, top_k=4, grpo_weight=1.0)
    given = scored(student, student, ids, method.needs(0), k=4)
    batch = batch_of(ids, [0.5, -1.0])
    assert torch.equal(method.advantages(batch, given, 0).advantages, GRPO().advantages(batch, given, 0).advantages)
    for found in method.terms(batch, given, 0).values():
        assert found.value.abs().max() < 1e-12 and gradient(found.value.sum(), student).abs().max() < 1e-12
    assert given.teacher is not None
    seen = overlap(given.student, given.teacher, method.needs(0) or ScoreNeeds(), 4)
    assert (seen.ratio == 1).all() and seen.entropy_gap.abs().max() < 1e-12 and seen.advantage.abs().max() < 1e-12


def diagnostics(needs: ScoreNeeds, k: int, student: Tensor | None = None, teacher: Tensor | None = None) -> Overlap:
    student, teacher = logits_of(P4) if student is None else student, logits_of(Q4) if teacher is None else teacher
    found = scored(student, teacher, torch.zeros(student.shape[:2], dtype=torch.long), needs, k)
    assert found.teacher is not None
    return overlap(found.student, found.teacher, needs, k)


ASKED = [
    ScoreNeeds(),
    ScoreNeeds(full=True),
    *(ScoreNeeds(top_k=k, support=s) for k in (3, 4) for s in ("student", "teacher", "both")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("needs", ASKED, ids=repr)
def test_o3_diagnostics_whatever_the_method_asks_for(needs: ScoreNeeds) -> None:
    assert close(diagnostics(needs, 2).ratio.item(), 0.5)
    seen = diagnostics(needs, 3)
    assert close(seen.ratio.item(), 2 / 3) and close(seen.advantage.item(), -0.042900)
    assert close([seen.student_mass.item(), seen.teacher_mass.item()], [0.65, 0.70])
    assert close(seen.entropy_gap.item(), 0.137734)


@pytest.mark.parametrize("needs", ASKED[:1] + ASKED[2:5], ids=repr)
def test_o3_agrees_with_the_whole_vocabulary_and_is_never_positive(needs: ScoreNeeds) -> None:
    student, teacher = random_logits(3, (4, 25, 40))
    whole = diagnostics(ScoreNeeds(full=True), 3, student, teacher)
    seen = diagnostics(needs, 3, student, teacher)
    for name, value in vars(seen).items():
        torch.testing.assert_close(value, getattr(whole, name), atol=1e-9, rtol=1e-9, equal_nan=True, msg=name)
    known = seen.advantage.isfinite()
    assert torch.equal(known, seen.ratio > 0) and not known.all() and (seen.advantage[known] <= 1e-12).all()


def test_o3_what_the_method_gets_stays_as_it_is() -> None:
    student, teacher = random_logits(4, (2, 5, 20))
    ids = torch.zeros(2, 5, dtype=torch.long)
    for needs in (ScoreNeeds(top_k=6), ScoreNeeds(top_k=6, support="student"), ScoreNeeds(full=True)):
        plain, watched = (scored(student, teacher, ids, needs, k) for k in (0, 4))
        for of, other in ((plain.student, watched.student), (plain.teacher, watched.teacher)):
            assert of is not None and other is not None
            for name, value in vars(of).items():
                assert value is None or torch.equal(value, getattr(other, name)), name


def test_o4_where_both_agree_on_the_ids_all_sets_are_one() -> None:
    student, _ = random_logits(5, (2, 6, 15), scale=3.0)
    best = student.detach().topk(4, dim=-1).indices
    teacher = student.detach().clone()
    teacher.scatter_add_(-1, best, 1 + torch.rand(best.shape, dtype=torch.float64))
    values = {name: term(OPD(support=name, top_k=4), student, teacher) for name in ("student", *BOTH)}
    for name in ("union", "intersection"):
        torch.testing.assert_close(values[name], values["student"], atol=1e-12, rtol=0)
    assert values["difference"].abs().max() == 0 and gradient(values["difference"].sum(), student).abs().max() == 0


def test_o4_each_id_of_a_union_counts_once() -> None:
    """K = 3 of four ids: the student's {0, 1, 2}, the teacher's {0, 2, 3}."""
    method = OPD(support="union", top_k=3, weighting="uniform")
    logits = logits_of(P4)
    p, q = (torch.tensor(x, dtype=torch.float64) for x in (P4, Q4))
    for name, ids in (
        ("union", [0, 1, 2, 3]),
        ("intersection", [0, 2]),
        ("teacher", [0, 2, 3]),
        ("student", [0, 1, 2]),
    ):
        expected = (p.log() - q.log())[ids].mean().item()
        assert close(term(replace(method, support=name), logits, logits_of(Q4)).item(), expected)
    expected = (p * (p.log() - q.log()))[[1, 3]].sum().item()
    assert close(term(replace(method, support="difference"), logits, logits_of(Q4)).item(), expected)


def test_o4_an_empty_intersection_gives_nothing() -> None:
    logits = logits_of((0.6, 0.3, 0.08, 0.02))
    for estimator in ("reward", "divergence"):
        value = term(OPD(support="intersection", top_k=1, estimator=estimator), logits, logits_of((0.1, 0.1, 0.7, 0.1)))
        assert value.item() == 0 and gradient(value.sum(), logits).abs().max() == 0


def test_o4_reward_and_distillation_add_up() -> None:
    student, teacher = random_logits(6, (2, 4, 9))
    ids = torch.arange(8).reshape(2, 4)
    batch = batch_of(ids, [0.5, -1.0], has_teacher=[True, False])
    given = scored(student, teacher, ids, ScoreNeeds())
    assert given.teacher is not None
    ratio = (given.teacher.logp - given.student.logp).detach()
    found = OPD(support="sampled", weight=0.5, grpo_weight=2.0).advantages(batch, given, 0)
    assert close(found.advantages[0].tolist(), (1.0 + 0.5 * ratio[0]).tolist())
    assert found.advantages[1].tolist() == [-2.0] * 4
    pure = OPD(support="sampled").advantages(batch, given, 0)
    assert torch.equal(pure.advantages[0], ratio[0]) and not pure.advantages[1].any()
    off = OPD(weight=0, grpo_weight=1.0)
    assert off.needs(0) is None and not off.active(0)
    alone = Scores(given.student, None)
    assert torch.equal(off.advantages(batch, alone, 0).advantages, GRPO().advantages(batch, alone, 0).advantages)


def test_weights_by_the_teacher_and_uniform() -> None:
    logits = logits_of(P)
    p, q = (torch.tensor(x, dtype=torch.float64)[:2] for x in (P, Q))
    gap = p.log() - q.log()
    for weighting, weights in (("teacher", q / q.sum()), ("uniform", torch.full((2,), 0.5))):
        value = term(OPD(top_k=2, weighting=weighting), logits, logits_of(Q))
        assert close(value.item(), (weights * gap).sum().item())


def test_settings_are_checked() -> None:
    for wrong in ({"support": "some"}, {"estimator": "k1"}, {"weighting": "none"}, {"top_k": 0}, {"weight": -1.0}):
        with pytest.raises(ConfigError, match=f"method.{next(iter(wrong))}"):
            OPD(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"teacher\.weights: opd learns from another model"):
        OPD().check([], RunConfig(teacher=TeacherSection(weights="ema")))
    OPD().check([], RunConfig(teacher=TeacherSection(weights="external")))
