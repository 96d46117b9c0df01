"""Seeded sampling: the right distribution, nothing banned, and independence of the batch."""

from __future__ import annotations

import pytest
import torch

from tests.models import EOS, Numbers, tiny_policy, video_prompt
from visd.policy.batch import Row
from visd.rollout import transformers_engine
from visd.rollout.base import Sampling
from visd.rollout.sampling import SeededSampler, token_pieces
from visd.rollout.transformers_engine import TransformersEngine
from visd.types import ScoreNeeds


def drawn(sampling: Sampling, logits: list[float], rows: int, banned: list[int] | None = None) -> torch.Tensor:
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[banned or []] = True
    sampler = SeededSampler(range(rows), sampling, mask)
    out = sampler(torch.zeros(rows, 1), torch.tensor(logits).expand(rows, -1))
    assert (out.isfinite().sum(-1) == 1).all()
    return out.argmax(-1)


def test_frequencies_follow_the_tempered_distribution() -> None:
    logits = [0.0, 1.0, 2.0, -1.0]
    tokens = drawn(Sampling(1, 0.7, 1.0, 0, 1), logits, 20_000)
    expected = (torch.tensor(logits) / 0.7).softmax(-1)
    observed = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(observed, expected, atol=0.012, rtol=0)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = [3.0, 2.0, 1.0, 0.0]
    assert set(drawn(Sampling(1, 1.0, 1.0, 2, 1), logits, 2000).tolist()) == {0, 1}
    assert set(drawn(Sampling(1, 1.0, 0.7, 0, 1), logits, 2000).tolist()) == {0, 1}
    assert set(drawn(Sampling(1, 1.0, 0.6, 0, 1), logits, 2000).tolist()) == {0}
    assert set(drawn(Sampling(1, 1.0, 1.0, 0, 1, greedy=True), logits, 10).tolist()) == {0}


def test_banned_ids_are_never_drawn_and_have_no_mass() -> None:
    sampler = SeededSampler(range(500), Sampling(1, 1.0, 1.0, 0, 1), torch.tensor([True, False, False]))
    out = sampler(torch.zeros(500, 1), torch.tensor([9.0, 0.0, 0.0]).expand(500, -1))
    assert set(out.argmax(-1).tolist()) == {1, 2}
    torch.testing.assert_close(sampler.logp[0].exp(), torch.full((500,), 0.5))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "text"])
def test_rollouts_depend_on_their_seed_alone(family: str) -> None:
    policy = tiny_policy(family)
    engine = TransformersEngine(policy, Numbers())
    prompts = [video_prompt(policy.family, name, grids) for name, grids in (("a", 3), ("b", 1))]
    sampling = Sampling(3, 1.0, 0.9, 0, 10)
    together = engine.generate(prompts, sampling, [[1, 2, 3], [4, 5, 6]], policy_version=7)
    alone = engine.generate(prompts[1:], Sampling(1, 1.0, 0.9, 0, 10), [[5]], policy_version=7)
    assert together[1][1].token_ids == alone[0][0].token_ids
    assert together[0][0].token_ids != together[0][1].token_ids
    assert all(r.policy_version == 7 for group in together for r in group)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "text"])
def test_leaving_ended_rows_behind_changes_no_answer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(family)
    policy.eos_ids = tuple(range(5, policy.model.vocab_size, 6))  # so many that answers end early
    engine = TransformersEngine(policy, Numbers())
    prompts = [video_prompt(policy.family, name, grids) for name, grids in (("a", 3), ("b", 1))]
    seeds = [list(range(8)), list(range(10, 18))]
    answers = []
    for share in (2.0, 0.25, 0.0):  # never, when a quarter has ended, at every token
        monkeypatch.setattr(transformers_engine, "ENDED_SHARE", share)
        groups = engine.generate(prompts, Sampling(8, 1.0, 1.0, 0, 12), seeds, policy_version=0)
        answers.append([rollout for group in groups for rollout in group])
    lengths = [len(rollout.token_ids) for rollout in answers[0]]
    assert len(set(lengths)) > 3 and min(lengths) < 12
    for others in answers[1:]:
        for one, other in zip(answers[0], others, strict=True):
            assert (one.token_ids, one.stop_reason) == (other.token_ids, other.stop_reason)
            torch.testing.assert_close(torch.tensor(one.logp), torch.tensor(other.logp), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "text"])
def test_engine_log_probabilities_are_the_trainers(family: str) -> None:
    """Shared prefill, expanded cache, left padding: the same numbers as a padded training forward."""
    policy = tiny_policy(family)
    engine = TransformersEngine(policy, Numbers())
    prompts = [video_prompt(policy.family, name, grids) for name, grids in (("a", 3), ("b", 1))]
    groups = engine.generate(prompts, Sampling(4, 0.8, 1.0, 0, 12), [[1, 2, 3, 4], [5, 6, 7, 8]], 0)
    for prompt, feature, group in zip(prompts, policy.encode(prompts), groups, strict=True):
        scores = policy.score([Row(prompt, r.token_ids, feature) for r in group], temperature=0.8, needs=ScoreNeeds())
        for b, rollout in enumerate(group):
            expected = scores.logp[b, : len(rollout.token_ids)]
            torch.testing.assert_close(torch.tensor(rollout.logp), expected, atol=5e-6, rtol=0)
            assert not set(rollout.token_ids) & set(policy.family.banned_ids)
            assert (rollout.token_ids[-1] == EOS) == (rollout.stop_reason == "eos")


def test_one_tower_call_a_prompt_for_rollout_teacher_and_student() -> None:
    policy = tiny_policy("qwen2_5_vl")
    engine = TransformersEngine(policy, Numbers())
    prompts = [video_prompt(policy.family, name) for name in "ab"]
    engine.generate(prompts, Sampling(8, 1.0, 1.0, 0, 4), [list(range(8))] * 2, 0)
    policy.encode(prompts)
    assert policy.tower_calls == 2
    policy.forget_features()
    policy.encode(prompts[:1])
    assert policy.tower_calls == 3


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    euro = "€".encode()

    def decode(ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    pieces = token_pieces([ord("a"), *euro, ord("b")], decode)
    assert pieces == ("a", "", "", "€", "b")
    cut = token_pieces([ord("a"), *euro[:2]], decode)
    assert "".join(cut) == decode([ord("a"), *euro[:2]])
