"""TRACE (arXiv 2605.10194): oracles T1 to T6, its annotators and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.runs import assert_bit_equal, assert_same_gradients, capture_gradients, groups_with_advantages, small_run
from tests.unit.method_data import batch_of, gather, gradient, group_of, logits_of, random_logits, scores_of
from visd.config import ConfigError, RunConfig, TeacherSection
from visd.methods.base import StepView
from visd.methods.grpo import GRPO
from visd.methods.trace import TRACE, clipped_divergence
from visd.objective.loss import Denominators, token_weights
from visd.train import teach
from visd.train.run import Run
from visd.train.update import update_policy
from visd.types import Answer, Box, Evidence, JudgeReport, Rewards, Rollout, RolloutGroup, Span, TokenBatch, TokenScores

P, Q = (0.7, 0.2, 0.1), (0.5, 0.4, 0.1)
"""Student and teacher of the specification's example."""
PLAIN = TRACE(clip=0.0, cap=1.0)


def judged(length: int, spans: Sequence[tuple[int, int]], correct: bool = True, **of_rollout: object) -> RolloutGroup:
    """One rollout of tokens of one character, with spans [start, end) of its verdict."""
    group = group_of([float(correct)])
    rollout = Rollout((0,) * length, (0.0,) * length, "x" * length, ("x",) * length, "eos", 0, 0)
    marks = tuple(Span(a, b, "logic", "right" if correct else "wrong") for a, b in spans)
    return replace(
        group,
        rollouts=(replace(rollout, **of_rollout),),
        reports=(JudgeReport("ok", spans=marks),),  # type: ignore[arg-type]
    )


def batch(group: RolloutGroup, advantage: float = 1.0, padding: int = 0) -> TokenBatch:
    length = len(group.rollouts[0].token_ids)
    mask = torch.tensor([[True] * length + [False] * padding])
    return batch_of(torch.zeros(1, length + padding, dtype=torch.long), [advantage], group=group, mask=mask)


def loss_of(
    method: TRACE, tokens: TokenBatch, student: torch.Tensor, teacher: torch.Tensor, step: int = 0
) -> torch.Tensor:
    """What the terms add to the loss of a step with this one rollout."""
    terms = method.terms(tokens, scores_of(student, teacher, tokens.token_ids, method.needs(step)), step)
    weights = token_weights(tokens.mask.double(), "sequence", Denominators(int(tokens.mask.sum()), 1, 99))
    return sum((t.weight * (t.value * weights * t.mask).sum() for t in terms.values()), student.sum() * 0.0)


def test_t1_the_schedule() -> None:
    lam = [TRACE().lam_at(step) for step in range(60)]
    assert lam[:10] == [0.5] * 10 and lam[25] == 0.25 and lam[39] == pytest.approx(0.5 / 30) and not any(lam[40:])
    assert sum(lam) == pytest.approx(12.75) and sum(x * x for x in lam) == pytest.approx(5.126, abs=1e-3)
    assert TRACE().needs(39) is not None and TRACE().needs(40) is None and not TRACE().wants_judge(40)


def with_spans(run: Run) -> list[RolloutGroup]:
    """Sampled groups, every second rollout right, whose whole text is judged."""
    groups = []
    for group in groups_with_advantages(run):
        rewards = tuple(Rewards(float(i % 2), {}, bool(i % 2), float(i % 2)) for i in range(4))
        reports = tuple(
            JudgeReport("ok", spans=(Span(0, len(r.text), "logic", "right" if i % 2 else "wrong"),))
            for i, r in enumerate(group.rollouts)
        )
        groups.append(replace(group, rewards=rewards, reports=reports))
    return groups


def test_t1_after_its_last_step_the_run_is_grpos_bit_for_bit(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    asked: list[int] = []
    score_rows = teach.score_rows
    monkeypatch.setattr(teach, "score_rows", lambda *given: asked.append(1) or score_rows(*given))  # type: ignore[func-returns-value]
    for method in ("trace", "grpo"):
        run = small_run(
            small_world, tiny_qwen2_5_vl, tmp_path, f"method={method}", "objective.aggregation=sequence",
            "objective.eps_high=0.28",
        )  # fmt: skip
        groups = with_spans(run)
        groups[0] = replace(groups[0], advantages=(0.0,) * 4)
        run.step = 40
        grads = capture_gradients(run)
        update = update_policy(run, groups, teach.teacher_scores(run, groups, 40), {}, 40)
        found.append((grads, update.metrics.values()["loss"]))
    assert not asked and found[0][1] == found[1][1]
    assert_bit_equal(found[0][0], found[1][0])


def test_any_split_into_micro_batches_gives_the_same_gradients_and_spans_are_logged(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    found = []
    for budget in (100_000, 600):
        run = small_run(
            small_world, tiny_qwen2_5_vl, tmp_path, "method=trace", "method.error=rkl",
            "data.train=[train.jsonl,text_train.jsonl]", f"train.micro_batch_tokens={budget}",
        )  # fmt: skip
        groups = with_spans(run)
        grads = capture_gradients(run)
        metrics = update_policy(run, groups, teach.teacher_scores(run, groups, 0), {}, 0).metrics.values()
        found.append((grads, metrics["loss"]))
        for side in ("key", "error"):
            assert {f"term/{side}{name}" for name in ("", "_clip_share", "_clip_cosine", "_clip_turned")} <= set(
                metrics
            )
        assert 0 < metrics["method/coverage"] <= 0.25 and metrics["method/lam"] == 0.5
    assert_same_gradients(found[0][0], found[1][0], relative=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)


@pytest.mark.parametrize("step", [0, 25, 39])
def test_t2_without_spans_it_is_grpo(step: int) -> None:
    tokens = batch(judged(5, []), 0.7)
    student, teacher = random_logits(0, (1, 5, 9))
    given = scores_of(student, teacher, tokens.token_ids, PLAIN.needs(step))
    assert torch.equal(
        PLAIN.advantages(tokens, given, step).advantages, GRPO().advantages(tokens, given, step).advantages
    )
    assert not PLAIN.terms(tokens, given, step) and PLAIN.context(tokens.groups[0], 0) is None


def test_t2_with_all_tokens_marked_nothing_of_grpo_is_left() -> None:
    tokens = batch(judged(5, [(0, 5)]), 0.7)
    student, teacher = random_logits(1, (1, 5, 9))
    given = scores_of(student, teacher, tokens.token_ids, PLAIN.needs(0))
    assert (PLAIN.advantages(tokens, given, 0).advantages == 0).all()
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    expected = 0.5 * (q.exp() * (q - p)).sum(-1).mean()
    torch.testing.assert_close(loss_of(PLAIN, tokens, student, teacher), expected)


def test_t3_the_mean_over_spans_is_scaled_by_their_share() -> None:
    """|y| = 10, S = {3, 4}, d = (.3, .1): 0.04 times lam."""
    group = judged(10, [(3, 5)])
    tokens = batch(group)
    student = torch.zeros(1, 10, 2, dtype=torch.float64)
    teacher = torch.zeros(1, 10, 2, dtype=torch.float64)
    for place, divergence in ((3, 0.3), (4, 0.1)):
        low, high = 0.5, 1.0 - 1e-12
        for _ in range(80):  # q with KL((q, 1 - q) || (.5, .5)) = divergence
            q = torch.tensor((low + high) / 2, dtype=torch.float64)
            kl = q * (2 * q).log() + (1 - q) * (2 - 2 * q).log()
            low, high = (float(q), high) if kl < divergence else (low, float(q))
        teacher[0, place, 0] = (q / (1 - q)).log()
    assert loss_of(PLAIN, tokens, student, teacher).item() == pytest.approx(0.5 * 0.04, abs=1e-9)


@pytest.mark.parametrize(("step", "rest"), [(0, 0.0), (25, 0.5), (39, 1 - 1 / 30)])
def test_t4_teacher_equal_to_student(step: int, rest: float) -> None:
    tokens = batch(judged(6, [(2, 4)]), 0.8)
    student, _ = random_logits(2, (1, 6, 9))
    given = scores_of(student, student, tokens.token_ids, PLAIN.needs(step))
    loss = loss_of(PLAIN, tokens, student, student, step)
    assert loss.abs() < 1e-12 and gradient(loss, student).abs().max() < 1e-12
    expected = [0.8, 0.8, 0.8 * rest, 0.8 * rest, 0.8, 0.8]
    assert PLAIN.advantages(tokens, given, step).advantages[0].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("clip", "mode", "value", "slope", "share", "cosine"),
    [
        (0.0, "upper", 0.109023, [0.2, -0.2, 0.0], 0.0, 1.0),
        (0.05, "upper", -0.118236, [-0.08, 0.12, -0.04], 0.4, -0.944911),
        (0.05, "symmetric", 0.0, [0.07, 0.02, -0.09], 0.9, 0.305424),
        (0.3, "upper", 0.109023, [0.2, -0.2, 0.0], 0.0, 1.0),
    ],
)
def test_t5_the_clip_and_its_hazard(
    clip: float, mode: str, value: float, slope: list[float], share: float, cosine: float
) -> None:
    """Contributions -.168236, .277259, 0: clipped from above, the token the teacher wants more of is pushed down."""
    logits = logits_of(P)
    found = clipped_divergence(logits.log_softmax(-1), logits_of(Q).log_softmax(-1), "fkl", clip, mode)
    assert found.value.item() == pytest.approx(value, abs=1e-5)
    assert gradient(found.value.sum(), logits)[0, 0].tolist() == pytest.approx(slope, abs=1e-5)
    assert found.share.item() == pytest.approx(share, abs=1e-9)
    assert found.cosine.item() == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize("action", ["fkl", "rkl"])
@pytest.mark.parametrize("mode", ["upper", "symmetric"])
def test_t5_the_cosine_is_that_of_the_gradients(action: str, mode: str) -> None:
    student, teacher = random_logits(3, (4, 9))
    q = teacher.log_softmax(-1)
    slopes = []
    for clip in (0.0, 0.05):
        found = clipped_divergence(student.log_softmax(-1), q, action, clip, mode)
        slopes.append(gradient(found.value.sum(), student))
    assert (found.share > 0).all()
    torch.testing.assert_close(found.cosine, torch.cosine_similarity(*slopes, dim=-1), atol=1e-9, rtol=0)


def test_t5_the_hazard_is_among_the_measures() -> None:
    tokens = batch(judged(1, [(0, 1)]))
    method = TRACE(cap=1.0)
    term = method.terms(tokens, scores_of(logits_of(P), logits_of(Q), tokens.token_ids, method.needs(0)), 0)["key"]
    assert term.clipped is not None and term.clipped.item() == pytest.approx(0.4)
    assert term.measures["clip_turned"].item() == 1 and term.measures["clip_cosine"].item() < 0


def test_t6_further_tokens_scale_the_term_and_padding_does_not() -> None:
    student, teacher = random_logits(4, (1, 12, 9))

    def loss(length: int, padding: int = 0) -> float:
        width = length + padding
        tokens = batch(judged(length, [(1, 3)]), padding=padding)
        return loss_of(PLAIN, tokens, student[:, :width], teacher[:, :width]).item()

    assert loss(12) == pytest.approx(loss(6) * 6 / 12, abs=1e-12) and loss(6, padding=6) == loss(6) != 0


def test_actions_by_side() -> None:
    student, teacher = random_logits(5, (1, 4, 9))
    p, q = student.log_softmax(-1), teacher.log_softmax(-1)
    forward, reverse = (q.exp() * (q - p)).sum(-1), (p.exp() * (p - q)).sum(-1)
    both = TRACE(key="fkl", error="rkl", clip=0.0, cap=1.0)
    for correct, name, expected in ((True, "key", forward), (False, "error", reverse)):
        tokens = batch(judged(4, [(0, 4)], correct))
        given = scores_of(student, teacher, tokens.token_ids, both.needs(0))
        terms = both.terms(tokens, given, 0)
        assert list(terms) == [name]
        torch.testing.assert_close(terms[name].value, expected)
    assert PLAIN.context(judged(4, [(0, 4)], correct=False), 0) is None, "wrong rollouts keep all of GRPO"
    assert (PLAIN.advantages(tokens, given, 0).advantages == 1).all() and not PLAIN.terms(tokens, given, 0)
    unscored = replace(tokens, has_teacher=torch.tensor([False]))
    assert (both.advantages(unscored, given, 0).advantages == 1).all(), "no divergence, so the reward stays"


def test_the_support_of_the_teacher_is_the_full_one_with_k_equal_v() -> None:
    student, teacher = random_logits(6, (1, 4, 9))
    tokens = batch(judged(4, [(0, 4)]))
    wide, narrow = (TRACE(clip=0.0, cap=1.0, support="teacher", top_k=k) for k in (9, 3))
    full = loss_of(PLAIN, tokens, student, teacher)
    torch.testing.assert_close(loss_of(wide, tokens, student, teacher), full, atol=1e-6, rtol=0)
    assert 0 < loss_of(narrow, tokens, student, teacher) < full - 1e-4


def marks(method: TRACE, group: RolloutGroup) -> str:
    return "".join("." if dimension is None else dimension[0] for dimension in method.marked(group, 0))


def test_a_quarter_is_marked_at_most_and_tools_never() -> None:
    group = judged(12, [(0, 2), (6, 8), (8, 10)])
    assert marks(PLAIN, group) == "ll....llll.."
    assert marks(TRACE(), group) == "......l.ll.." and marks(TRACE(keep="first"), group) == "ll....l....."
    assert marks(TRACE(), judged(3, [(0, 3)])) == "...", "a quarter of three tokens is none"
    own = (True,) * 8 + (False,) * 4
    assert marks(PLAIN, judged(12, [(6, 12)], own=own)) == "......ll...."
    assert marks(TRACE(), judged(12, [(0, 12)], own=own)) == "ll..........", "of the tokens that the policy wrote"
    failed = replace(group, reports=(JudgeReport("timeout", spans=group.reports[0].spans),))
    assert marks(PLAIN, failed) == "." * 12


def test_the_evidence_marks_what_is_seen_and_what_is_concluded_wrong() -> None:
    """The word of the conclusion is wrong; the box is where it is said to be."""
    text = "<think>the ball <obj>ball</obj><box>[0.1,0.1,0.3,0.3]</box>at<t>1</t>s. So it is left</think><answer>left</answer>"
    rollout = Rollout((0,) * len(text), (0.0,) * len(text), text, tuple(text), "eos", 0, 0)
    evidence = Evidence(frames=(1.0,), boxes=(Box(1.0, "ball", (0.1, 0.1, 0.3, 0.3)),))
    for gold, correct, said, expected in (
        ("right", False, "What goes wrong: a conclusion.", {"logic"}),
        (
            "left",
            True,
            "What decides it: a conclusion, when it happens, where it is.",
            {"logic", "temporal", "spatial"},
        ),
    ):
        base = group_of([float(correct)])
        sample = replace(base.sample, answer=Answer("word", gold), evidence=evidence)
        group = replace(base, sample=sample, rollouts=(rollout,))
        method = TRACE(annotator="evidence", error="rkl", cap=1.0)
        assert {dimension for dimension in method.marked(group, 0) if dimension} == expected
        context = method.context(group, 0)
        assert context is not None and context.feedback == said
        assert not method.wants_judge(0) and "answer" in TRACE(
            annotator="evidence", error="rkl", cap=1.0, dimensions=["answer"]
        ).marked(group, 0)


def test_what_is_marked_is_counted_over_the_step() -> None:
    right, wrong = judged(8, [(0, 4)]), judged(4, [], correct=False)
    seen = TRACE(cap=0.5).observe(StepView([right, wrong], {}, gather), 25)
    assert seen == {"lam": 0.25, "coverage": 0.25, "right_with_key": 1.0, "wrong_with_error": 0.0}
    assert TRACE().observe(StepView([right], {}, gather), 40) == {"lam": 0.0}


def test_settings_that_cannot_work_are_refused() -> None:
    shown = RunConfig(teacher=TeacherSection(context=["feedback"]))
    TRACE().check([], shown)
    with pytest.raises(ConfigError, match=r"teacher\.context"):
        TRACE().check([], RunConfig(teacher=TeacherSection(context=["answer"])))
    silent = replace(shown, judge={"_target_": None})
    with pytest.raises(ConfigError, match="annotator=evidence"):
        TRACE().check([], silent)
    TRACE(annotator="evidence").check([], silent)
    for wrong in ({"key": "jsd"}, {"key": "none"}, {"cap": 1.5}, {"dimensions": ["color"]}, {"clip_mode": "lower"}):
        with pytest.raises(ConfigError, match=r"method\."):
            TRACE(**wrong)  # type: ignore[arg-type]
    assert TRACE(weight=0.0).lam_at(0) == 0 and not TRACE(weight=0.0).active(0) and TRACE(decay_steps=0).lam_at(10) == 0


def test_without_scores_the_reward_stays() -> None:
    tokens = batch(judged(4, [(0, 4)]), 0.3)
    alone = replace(scores_of(*random_logits(7, (1, 4, 9)), tokens.token_ids, None), teacher=None)
    assert torch.equal(PLAIN.advantages(tokens, alone, 0).advantages, torch.full((1, 4), 0.3, dtype=torch.float64))
    assert not PLAIN.terms(tokens, alone, 0) and isinstance(alone.student, TokenScores)
