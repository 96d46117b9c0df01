"""Rows that share a prefix against the same rows one by one: the same log-probabilities, the same gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.models import FAMILIES, MEDIA_FAMILIES, tiny_hf, tiny_policy, video_prompt
from visd.config import LoraSection
from visd.policy import attention, lora
from visd.policy.attention import SharedLayout, layout_of, shared_attention
from visd.policy.batch import Row
from visd.policy.policy import Policy
from visd.policy.prefix import build_shared_inputs, bundles_of
from visd.train.plan import Plan, plan_rows
from visd.types import Prompt, ScoreNeeds, TokenScores, VisdError

RESPONSES = ([7, 8, 9, 10, 7], [11, 12], [13], [])
ADDED = ([20, 21, 22], [20, 30], [20, 21, 22, 23, 24], [])
"""Privileged texts of three rollouts: the first begin alike, the last has none."""


def told(policy: Policy, prompt: Prompt, text: list[int]) -> Prompt:
    """The prompt with tokens put before its last one, as privileged text is put into a teacher's prompt."""
    start = prompt.suffix_start
    types = torch.cat([prompt.mm_token_type_ids[:start], torch.zeros(len(text), dtype=torch.int)])
    types = torch.cat([types, prompt.mm_token_type_ids[start:]])
    ids = torch.cat([prompt.input_ids[:start], torch.tensor(text, dtype=torch.long), prompt.input_ids[start:]])
    positions = policy.family.positions(types, prompt.vision, "transformers")
    return dataclasses.replace(prompt, input_ids=ids, mm_token_type_ids=types, position_ids=positions)


def rows_of(policy: Policy, view: str) -> list[Row]:
    prompts = [video_prompt(policy.family, name, grids) for name, grids in (("a", 3), ("b", 1))]
    rows = []
    for prompt, feature in zip(prompts, policy.encode(prompts), strict=True):
        for response, text in zip(RESPONSES, ADDED, strict=True):
            rows.append(Row(told(policy, prompt, text) if view == "teacher" else prompt, response, feature))
    return rows


def score(policy: Policy, rows: list[Row], needs: ScoreNeeds, support: Tensor | None = None) -> TokenScores:
    return policy.score(rows, temperature=0.7, needs=needs, support_ids=support)


def gradients(policy: Policy, scores: TokenScores) -> dict[str, Tensor]:
    """Of a function that weighs every token and every log-probability differently."""
    policy.model.zero_grad()
    total = torch.zeros(())
    for value in (scores.logp, scores.support_logp, scores.full_logp):
        if value is not None:
            value = value.masked_fill(value == -torch.inf, 0.0)
            total = total + (value * torch.linspace(0.5, 1.5, value.numel()).view_as(value)).mean()
    total.backward()
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], relative: float = 1e-5) -> None:
    assert one.keys() == other.keys() and one
    whole = sum(float(g.square().sum()) for g in one.values()) ** 0.5
    for name, value in one.items():
        # A gradient that cancels (a bias of keys) is only rounding; it is measured against the whole.
        error = float((other[name] - value).norm())
        assert error <= relative * max(float(value.norm()), 1e-2 * whole), name


NEEDS = {
    "sampled": ScoreNeeds(),
    "top_k": ScoreNeeds(top_k=5),
    "full": ScoreNeeds(full=True),
    "entropy": ScoreNeeds(entropy=True),
}


@pytest.mark.parametrize("view", ["student", "teacher"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_rows_equal_rows_by_themselves(family: str, view: str) -> None:
    plain, shared = tiny_policy(family), tiny_policy(family)
    shared.share_prefixes()
    rows = rows_of(plain, view)
    saved = sum(map(len, rows)) - build_shared_inputs(rows).input_ids.shape[1]
    assert saved >= 3 * sum(len(prompt) - 1 for prompt in (rows[0].prompt, rows[4].prompt)) - (
        24 if view == "teacher" else 0
    )
    for needs in NEEDS.values():
        expected, got = score(plain, rows, needs), score(shared, rows, needs)
        for field in ("logp", "entropy", "support_logp", "full_logp"):
            one, other = getattr(expected, field), getattr(got, field)
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
        if expected.support_ids is not None:
            assert got.support_ids is not None and bool((got.support_ids == expected.support_ids).all())
        assert_same(gradients(plain, expected), gradients(shared, got))


@pytest.mark.parametrize("family", MEDIA_FAMILIES)
def test_a_trained_tower_gets_the_same_gradients(family: str) -> None:
    """And runs once a prompt: its media are there once."""
    plain, shared = (tiny_policy(family, tower_inside=True) for _ in range(2))
    shared.share_prefixes()
    rows = rows_of(plain, "student")
    assert len(build_shared_inputs(rows).media) == 2
    found = [gradients(policy, score(policy, rows, ScoreNeeds())) for policy in (plain, shared)]
    assert_same(*found)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_adapters_get_the_same_gradients(family: str) -> None:
    """Adapters whose product is not zero, beside frozen weights; with activations recomputed, too."""
    found = []
    for how in ("plain", "shared", "recomputed"):
        policy = tiny_policy(family)
        lora.add_adapters(policy.model.hf, policy.family, LoraSection(rank=4), seed=0)
        numbers = torch.Generator().manual_seed(1)
        for name, parameter in policy.model.named_parameters():
            if name.endswith(lora.B):
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=numbers)
        if how != "plain":
            policy.share_prefixes()
        if how == "recomputed":
            recompute(policy)
        found.append(gradients(policy, score(policy, rows_of(policy, "teacher"), ScoreNeeds())))
    assert all(name.endswith((lora.A, lora.B)) for name in found[0])
    for other in found[1:]:
        assert_same(found[0], other, relative=3e-5)  # of a product of two small matrices; CPUs round it differently


def recompute(policy: Policy) -> None:
    policy.model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.set_training(True)


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_activations_changes_nothing(family: str) -> None:
    found = []
    for again in (False, True):
        policy = tiny_policy(family)
        policy.share_prefixes()
        if again:
            recompute(policy)
        found.append(gradients(policy, score(policy, rows_of(policy, "teacher"), ScoreNeeds())))
    assert_same(*found)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_leaves_other_forwards_as_they_are(family: str) -> None:
    """Bit for bit: rows without a layout, as in sampling."""
    plain, shared = tiny_policy(family), tiny_policy(family)
    rows = rows_of(plain, "student")
    shared.share_prefixes()
    shared.shares_prefixes = False
    assert torch.equal(score(plain, rows, ScoreNeeds()).logp, score(shared, rows, ScoreNeeds()).logp)


LAYOUTS = {
    "one group": [(7, [3, 5, 2])],
    "groups, rows without a suffix, a prefix alone": [(7, [3, 5, 0]), (4, []), (9, [2]), (1, [1, 1])],
    "no suffix": [(5, []), (3, [0])],
}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("bundles", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_pieces_add_up_to_attention_under_a_dense_mask(
    bundles: list[tuple[int, list[int]]], heads: tuple[int, int]
) -> None:
    layout = layout_of(bundles)
    length = layout.spans[-1].end
    torch.manual_seed(0)
    parts = [torch.randn(1, length, h, 16, dtype=torch.float64).transpose(1, 2) for h in (heads[0], *2 * heads[1:])]
    for part in parts:
        part.requires_grad_()
    query, key, value = parts
    got = shared_attention(query, key, value, layout, 0.3)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=layout.dense_mask(), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    direction = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad(got, parts, direction), torch.autograd.grad(expected, parts, direction), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_the_mask_says_who_sees_whom() -> None:
    mask = layout_of([(2, [2, 1]), (1, [1])]).dense_mask().int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_no_score_is_computed_under_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores computed are those of causal pieces, and of suffixes with their prefix."""
    seen: list[tuple[int, int, int, bool]] = []
    forward = attention.CpuKernel.forward

    def count(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        seen.append((query.shape[0], query.shape[2], key.shape[2], causal))
        return forward(query, key, value, causal, scale)

    monkeypatch.setattr(attention.CpuKernel, "forward", staticmethod(count))
    layout: SharedLayout = layout_of([(8, [3, 2]), (6, [3])])
    part = torch.randn(1, 2, layout.spans[-1].end, 16)
    shared_attention(part, part, part, layout, 0.25)
    assert sorted(seen) == [(1, 3, 6, False), (1, 5, 8, False), (1, 6, 6, True), (1, 8, 8, True), (3, 3, 3, True)]


def test_rows_are_bundled_by_what_they_begin_with() -> None:
    policy = tiny_policy("qwen3_vl")
    prompt, other = video_prompt(policy.family, "a", 2), video_prompt(policy.family, "b", 2)
    start = prompt.suffix_start
    rows = [Row(told(policy, prompt, text), [7, 8]) for text in ([20, 21], [20, 22])]
    rows += [Row(other, [7]), Row(told(policy, prompt, [20, 21, 23]), [9])]
    found = bundles_of(rows)
    assert [(b.rows, b.prefix) for b in found] == [((0, 1, 3), start + 1), ((2,), len(other))]
    earlier = dataclasses.replace(prompt, input_ids=prompt.input_ids.roll(1))
    apart = bundles_of([Row(prompt, [7]), Row(earlier, [7])])
    assert [b.rows for b in apart] == [(0,), (1,)], "a prefix that ends before its media was shared"
    another = dataclasses.replace(prompt, vision=other.vision)
    assert len(bundles_of([Row(prompt, [7]), Row(another, [7])])) == 2, "rows with other pixels were shared"
    moved = dataclasses.replace(prompt, position_ids=prompt.position_ids + (torch.arange(len(prompt)) > start - 1))
    assert bundles_of([Row(prompt, [7]), Row(moved, [7])])[0].prefix == start, "other positions were shared"


def test_a_plan_keeps_groups_whole_and_divides_what_does_not_fit() -> None:
    policy = tiny_policy("text")
    prompts = [video_prompt(policy.family, name, 16) for name in ("a", "b", "c")]  # 21 tokens each
    rows = [Row(p, [7] * 5) for p in prompts for _ in range(4)]
    assert plan_rows(rows, 82, str, shared=True) == Plan([[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]], 123, 0)
    assert plan_rows(rows[:4], 33, str, shared=True) == Plan([[0, 1], [2, 3]], 62, 21)
    assert plan_rows(rows[:4], 52, str, shared=False) == Plan([[0, 1], [2, 3]], 104)
    with pytest.raises(VisdError, match=r"row 0 takes 26 tokens, more than train\.micro_batch_tokens = 25"):
        plan_rows(rows, 25, lambda i: f"row {i}", shared=True)


def test_attention_of_another_kind_is_refused() -> None:
    policy = tiny_policy("text")
    policy.model.hf.set_attn_implementation("eager")
    with pytest.raises(VisdError, match=r"needs model\.attention=sdpa"):
        policy.share_prefixes()
    windows = tiny_hf("text")
    windows.config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert "sliding_attention" in attention.why_not(windows.model)
