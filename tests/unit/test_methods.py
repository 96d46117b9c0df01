"""Oracles of RLSD (arXiv 2604.03128) and VISD (arXiv 2605.06094) through the method interface."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from visd.config import ConfigError, build
from visd.methods.base import Scores, StepView
from visd.methods.grpo import GRPO
from visd.methods.rlsd import RLSD
from visd.methods.visd import VISD
from visd.methods.visd_release import VISDRelease
from visd.types import (
    Answer,
    Evidence,
    JudgeReport,
    Message,
    Prompt,
    Rollout,
    RolloutGroup,
    Sample,
    TokenBatch,
    TokenScores,
    VisionInputs,
)

B, T, V = 3, 5, 12
TEACHERS = [RLSD(), VISD(), VISDRelease(), VISD(top_k=0), VISD(gamma=0.5, lam=1.0, eps=0.5)]


def group(report: JudgeReport | None = None) -> RolloutGroup:
    sample = Sample(
        id="s",
        source="test",
        family="when_window",
        media=(),
        messages=(Message("user", "When?"),),
        answer=Answer("window", (1.0, 3.0)),
        evidence=Evidence(windows=((1.0, 3.0),), frames=(1.0, 2.0)),
    )
    empty = torch.zeros(0, dtype=torch.long)
    prompt = Prompt("s", "", empty, empty.int(), empty.expand(4, 0), VisionInputs(), (), 0)
    return RolloutGroup(sample, prompt, (), reports=(report,) if report else ())


def batch(advantages: list[float], has_teacher: bool = True) -> TokenBatch:
    numbers = torch.Generator().manual_seed(3)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 3:] = False
    return TokenBatch(
        token_ids=torch.randint(0, V, (B, T), generator=numbers),
        mask=mask,
        advantages=torch.tensor(advantages),
        engine_logp=torch.zeros(B, T),
        groups=[group()] * B,
        indices=[0] * B,
        has_teacher=torch.full((B,), has_teacher),
        dimensions=torch.arange(T).expand(B, T) % 4,
        dimension_scores=torch.tensor([[1.0, 0.5, math.nan, 0.0]] * B),
    )


def scores(tokens: TokenBatch, k: int, seed: int, shift: float) -> Scores:
    """Teacher and student whose logits differ by noise of size `shift`."""
    numbers = torch.Generator().manual_seed(seed)
    student = torch.randn(B, T, V, generator=numbers).log_softmax(-1)
    moved = (student + shift * torch.randn(B, T, V, generator=numbers)).log_softmax(-1)
    teacher = moved if shift else student
    support = teacher.topk(k, dim=-1).indices if k else None

    def of(logp: torch.Tensor) -> TokenScores:
        sampled = logp.gather(-1, tokens.token_ids[..., None]).squeeze(-1)
        return TokenScores(sampled, None, support, None if support is None else logp.gather(-1, support))

    return Scores(of(student), of(teacher))


@pytest.mark.parametrize("method", TEACHERS, ids=repr)
def test_sign_never_flips_and_weights_stay_in_their_range(method: RLSD | VISD) -> None:
    tokens = batch([1.5, -0.7, 0.0])
    for step in (0, 10, 49):
        credit = method.advantages(tokens, scores(tokens, 4, step, shift=20.0), step)
        lam = method.lam_at(step)
        assert (torch.sign(credit.advantages) == torch.sign(tokens.advantages)[:, None]).all()
        assert (credit.weights >= 1 - lam * method.eps - 1e-6).all()
        assert (credit.weights <= 1 + lam * method.eps + 1e-6).all()
        assert credit.clipped is not None and credit.clipped.any()


@pytest.mark.parametrize("method", TEACHERS[:2], ids=repr)
def test_teacher_equal_to_student_leaves_grpo(method: RLSD | VISD) -> None:
    tokens = batch([1.5, -0.7, 0.3])
    if isinstance(method, VISD):
        method = VISD(dimension_strength=0.0)
    credit = method.advantages(tokens, scores(tokens, 4, 0, shift=0.0), 0)
    assert torch.equal(credit.advantages, GRPO().advantages(tokens, scores(tokens, 0, 0, 0.0), 0).advantages)


def test_rlsd_by_hand() -> None:
    tokens = batch([1.0, -1.0, 2.0])
    given = scores(tokens, 0, 1, shift=0.3)
    assert given.teacher is not None
    credit = RLSD(lam=0.5, lam_steps=50, eps=0.2).advantages(tokens, given, 25)
    gap = given.teacher.logp - given.student.logp
    for b in range(B):
        for t in range(T):
            a = tokens.advantages[b].item()
            weight = min(1.2, max(0.8, math.exp(math.copysign(1, a) * gap[b, t].item())))
            expected = a * (0.75 + 0.25 * weight)
            assert credit.advantages[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_release_stops_its_teacher_after_its_last_step() -> None:
    method = VISDRelease()
    assert method.lam_at(0) == 0.5 and method.lam_at(300) == pytest.approx(0.25)
    assert method.lam_at(599) == pytest.approx(0.5 / 600)
    assert method.active(599) and not method.active(600)
    assert method.needs(600) is None and not method.wants_judge(600)
    needs = method.needs(0)
    assert needs is not None and needs.top_k == 16


def test_contexts() -> None:
    right = JudgeReport("ok", answer=1.0, feedback="The window starts too late.")
    failed = JudgeReport("timeout", feedback="")
    told = VISD().context(group(right), 0)
    assert told is not None and told.feedback == right.feedback and told.window == (1.0, 3.0)
    assert told.key_times == (1.0, 2.0) and told.answer is not None
    untold = VISD().context(group(failed), 0)
    assert untold is not None and not untold.feedback and untold.answer == told.answer
    silent = VISD(feedback=False).context(group(right), 0)
    assert silent is not None and not silent.feedback
    only = RLSD().context(group(right), 0)
    assert only is not None and only.answer == told.answer and only.window is None and not only.key_times


def test_a_row_without_teacher_keeps_its_advantage() -> None:
    tokens = batch([1.5, -0.7, 0.3], has_teacher=False)
    for method in (RLSD(), VISD(dimension_strength=0.0)):
        credit = method.advantages(tokens, scores(tokens, 4, 0, shift=3.0), 0)
        assert torch.equal(credit.advantages, tokens.advantages[:, None].expand(B, T))


def weights(method: VISD, tokens: TokenBatch, given: Scores, step: int = 0) -> torch.Tensor:
    return method.advantages(tokens, given, step).weights


def test_weights_may_be_made_mean_one_within_their_bound() -> None:
    tokens, plain = batch([1.5, -0.7, 0.3]), VISD(dimension_strength=0.0, eps=0.5)
    given = scores(tokens, 4, 0, shift=0.2)
    before, after = weights(plain, tokens, given), weights(replace(plain, mean_one=True), tokens, given)
    for b in range(B):
        own = tokens.mask[b]
        mean = before[b][own].mean()
        assert abs(mean - 1) > 1e-3
        assert torch.allclose(after[b][own], before[b][own] / mean)
        assert after[b][own].mean() == pytest.approx(1.0, abs=1e-6)
    wild = weights(replace(plain, mean_one=True), tokens, scores(tokens, 4, 0, shift=20.0))
    assert (wild >= 0.5).all() and (wild <= 1.5).all()


def test_weights_only_where_the_student_is_unsure_or_in_a_part_of_the_rollout() -> None:
    tokens = batch([1.5, -0.7, 0.3])
    given = scores(tokens, 4, 0, shift=0.5)
    entropy = torch.tensor([[0.1, 0.5, 0.2, 0.4, 0.3], [0.3, 0.1, 0.2, 9.0, 9.0], [0.2, 0.2, 0.2, 0.1, 0.1]])
    given = Scores(replace(given.student, entropy=entropy), given.teacher)
    full = weights(VISD(), tokens, given)
    assert (full[tokens.mask] != 1).all()

    def kept(**settings: float) -> list[list[int]]:
        found = weights(VISD(**settings), tokens, given)
        assert torch.equal(found[found != 1], full[found != 1])
        return [[t for t in range(T) if tokens.mask[b, t] and found[b, t] != 1] for b in range(B)]

    assert kept(entropy_share=0.4) == [[1, 3], [0, 2], [0, 1, 2]]  # ties are in; padding counts for nothing
    assert kept(entropy_share=0.0) == [[1], [0], [0, 1, 2]]
    assert kept(position_until=0.5) == [[0, 1, 2], [0, 1], [0, 1, 2]]
    assert kept(position_from=0.5) == [[3, 4], [2], [3, 4]]
    assert kept(position_from=0.2, position_until=0.6, entropy_share=0.6) == [[1], [], [1, 2]]


def test_lam_follows_the_gap_between_teacher_and_policy() -> None:
    """Means over all ranks' tokens: 2 at the first step, 0.5 at the second, 3 at the third."""
    method = VISD(lam=0.8, lam_schedule="gap", lam_steps=3)
    rollout = Rollout((1, 2), (-1.0, -1.0), "", ("", ""), "eos", 0, 0)
    groups = [replace(group(), rollouts=(rollout, rollout))]

    def observe(step: int, gap: float, elsewhere: tuple[float, int]) -> dict[str, float]:
        taught = {("s", 0): TokenScores(torch.tensor([-1.0 - gap, -1.0 + gap]))}  # the second rollout has no teacher
        return method.observe(StepView(groups, taught, lambda own: [own, elsewhere]), step)

    assert observe(0, 1.0, (4.0, 1)) == {"gap": 2.0, "lam": 0.8}
    assert observe(1, 0.5, (0.5, 1)) == {"gap": 0.5, "lam": pytest.approx(0.2)}
    resumed = VISD(lam=0.8, lam_schedule="gap", lam_steps=3)
    resumed.load_state_dict(method.state_dict())
    method = resumed
    assert observe(2, 3.0, (3.0, 1)) == {"gap": 3.0, "lam": 0.8}
    assert observe(1, 0.0, (0.0, 0))["lam"] == 0.0 and method.active(1) and not method.active(3)
    assert observe(3, 1.0, (0.0, 0)) == {} and VISD().state_dict() == {}


def test_settings_are_checked() -> None:
    for field, value in (("lam_schedule", "wave"), ("entropy_share", 1.5), ("position_from", 1.0)):
        with pytest.raises(ConfigError, match=rf"method\.{field}"):
            build({"_target_": "visd.methods.visd.VISD", field: value}, "method")
    with pytest.raises(ConfigError, match=r"method\.eps"):
        build({"_target_": "visd.methods.visd.VISD", "eps": 1.0}, "method")
    with pytest.raises(ConfigError, match="lamb"):
        build({"_target_": "visd.methods.visd.VISD", "lamb": 1.0}, "method")
