"""The policy's log-probabilities against transformers' own forward, for every family, padding and place of the tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import FAMILIES, MEDIA_FAMILIES, Numbers, tiny_hf, tiny_policy, video_prompt
from visd.media.families import family_from_config
from visd.policy.batch import Row
from visd.policy.policy import Policy, part_of
from visd.policy.vision import PatchProduct, multiply_patches
from visd.rollout.base import Sampling
from visd.rollout.transformers_engine import TransformersEngine
from visd.types import Prompt, ScoreNeeds

RESPONSES = ([7, 8, 9, 10], [11, 12], [13, 3])


def prompts_for(policy: Policy) -> list[Prompt]:
    return [video_prompt(policy.family, name, grids) for name, grids in (("a", 3), ("b", 2), ("c", 1))]


def score(policy: Policy, prompts: list[Prompt], needs: ScoreNeeds, temperature: float = 1.0) -> dict[str, Tensor]:
    features = policy.encode(prompts)
    rows = [Row(p, r, f) for p, r, f in zip(prompts, RESPONSES, features, strict=True)]
    scores = policy.score(rows, temperature=temperature, needs=needs)
    return {k: v for k, v in vars(scores).items() if v is not None}


def plain_log_probabilities(
    hf: Any, family: str, prompt: Prompt, response: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """[R, V] by transformers' forward, which computes its own positions from token types and grids."""
    record = family_from_config(hf.config)
    ids = torch.cat([prompt.input_ids, torch.tensor(list(response))])[None]
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    vision = prompt.vision
    if vision.video_grid_thw is not None:
        types = torch.cat([prompt.mm_token_type_ids, torch.zeros(len(response), dtype=torch.int)])
        assert vision.pixel_values_videos is not None
        inputs |= {
            "mm_token_type_ids": types[None],
            "pixel_values_videos": vision.pixel_values_videos,
            "video_grid_thw": vision.video_grid_thw,
        }
        if family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor(vision.second_per_grid_ts)
    elif vision.pixel_values is not None:
        inputs["pixel_values"] = vision.pixel_values
    logits = hf(**inputs).logits[0, len(prompt) - 1 : -1].float() / temperature
    logits[:, list(record.banned_ids)] = float("-inf")
    return logits.log_softmax(-1)


@pytest.mark.parametrize("tower_inside", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batch_equals_plain_forward(family: str, tower_inside: bool) -> None:
    policy = tiny_policy(family, tower_inside=tower_inside)
    prompts = prompts_for(policy)
    got = score(policy, prompts, ScoreNeeds(entropy=True, top_k=5, full=True), temperature=0.7)
    for b, (prompt, response) in enumerate(zip(prompts, RESPONSES, strict=True)):
        with torch.no_grad():
            expected = plain_log_probabilities(tiny_hf(family), family, prompt, response, 0.7)
        n = len(response)
        torch.testing.assert_close(got["full_logp"][b, :n], expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(
            got["logp"][b, :n], expected[torch.arange(n), torch.tensor(response)], atol=2e-6, rtol=0
        )
        entropy = torch.special.entr(expected.exp()).sum(-1)
        torch.testing.assert_close(got["entropy"][b, :n], entropy, atol=1e-5, rtol=0)
        torch.testing.assert_close(got["support_logp"][b, :n], expected.topk(5).values, atol=2e-6, rtol=0)
        assert (got["logp"][b, n:] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_head_changes_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(family)
    prompts = prompts_for(policy)
    whole, chunked = {}, {}
    for out, elements in ((whole, 1 << 20), (chunked, 300)):
        monkeypatch.setattr("visd.policy.head.CHUNK_ELEMENTS", elements)
        policy.model.zero_grad()
        logp = score(policy, prompts, ScoreNeeds(entropy=True, top_k=3))["logp"]
        (logp * torch.arange(logp.numel()).view_as(logp)).sum().backward()
        out |= {"logp": logp.detach()} | {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}
    assert whole.keys() == chunked.keys()
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MEDIA_FAMILIES)
def test_tower_outside_gives_the_gradients_of_the_plain_forward(family: str) -> None:
    outside = tiny_policy(family)
    inside = tiny_policy(family, tower_inside=True)
    for policy in (outside, inside):
        score(policy, prompts_for(policy), ScoreNeeds())["logp"].sum().backward()
    grads = {n: p.grad for n, p in inside.model.named_parameters()}
    for name, parameter in outside.model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], atol=1e-6, rtol=1e-5)
    tower = [g for n, g in grads.items() if part_of(n.removeprefix("hf."), inside.family) == "encoder"]
    assert any(g is not None and g.abs().sum() > 0 for g in tower)


@pytest.mark.parametrize("tower_inside", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_plain_forward(family: str, tower_inside: bool) -> None:
    """Of every trained parameter to 1e-5 of its norm, with transformers' own forward, prompt by prompt."""
    policy, hf = tiny_policy(family, tower_inside=tower_inside), tiny_hf(family)
    prompts = prompts_for(policy)
    score(policy, prompts, ScoreNeeds())["logp"].sum().backward()
    for prompt, response in zip(prompts, RESPONSES, strict=True):
        logp = plain_log_probabilities(hf, family, prompt, response)
        logp[torch.arange(len(response)), torch.tensor(response)].sum().backward()
    plain = dict(hf.named_parameters())
    scale = max(float(p.grad.norm()) for p in plain.values() if p.grad is not None)
    compared = 0
    for name, parameter in policy.model.hf.named_parameters():
        expected = plain[name].grad
        if expected is None or parameter.grad is None:
            assert expected is None and (parameter.grad is None or not parameter.grad.any()), name
            continue
        # A gradient that is rounding alone (a bias before softmax has none) is compared by the scale of all.
        assert (parameter.grad - expected).norm() <= 1e-5 * max(float(expected.norm()), 1e-3 * scale), name
        compared += 1
    assert compared > 30


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_padded_on_the_left_equal_the_plain_forward(family: str) -> None:
    """What the engine says of its tokens, sampled after prompts of several lengths in one batch."""
    policy, hf = tiny_policy(family), tiny_hf(family)
    prompts = prompts_for(policy)
    engine = TransformersEngine(policy, Numbers())
    groups = engine.generate(prompts, Sampling(2, 1.0, 1.0, 0, 5), [[1, 2], [3, 4], [5, 6]], 0)
    for prompt, group in zip(prompts, groups, strict=True):
        for rollout in group:
            with torch.no_grad():
                expected = plain_log_probabilities(hf, family, prompt, rollout.token_ids)
            found = expected[torch.arange(len(rollout.token_ids)), torch.tensor(rollout.token_ids)]
            torch.testing.assert_close(torch.tensor(rollout.logp), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.startswith("qwen")])
def test_positions_given_are_positions_used(family: str) -> None:
    """A forward that fell back on the library's positions would not notice that ours were moved."""
    policy = tiny_policy(family)
    prompts = prompts_for(policy)
    before = score(policy, prompts, ScoreNeeds())["logp"]
    prompts[0].position_ids[1, 5:8] += 3
    after = score(policy, prompts, ScoreNeeds())["logp"]
    assert (before[0] - after[0]).abs().max() > 1e-4
    torch.testing.assert_close(before[1:], after[1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", MEDIA_FAMILIES)
def test_trained_tower_without_media_stays_in_the_graph(family: str) -> None:
    """Text alone must touch the tower's parameters too, or ranks would disagree about gradients."""
    policy = tiny_policy(family, tower_inside=True)
    text = video_prompt(tiny_policy("text").family, "t", 3)
    scores = policy.score([Row(text, [7, 8])], temperature=1.0, needs=ScoreNeeds())
    scores.logp.sum().backward()
    named = [(n.removeprefix("hf."), p) for n, p in policy.model.named_parameters()]
    tower = [p for n, p in named if part_of(n, policy.family) != "language" and "mask_token" not in n]
    assert tower and all(p.grad is not None and p.grad.abs().sum() == 0 for p in tower)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.startswith("qwen")])
def test_patches_by_matrix_product_equal_the_convolution(family: str) -> None:
    towers = [tiny_hf(family).model.visual for _ in range(2)]
    names = list(towers[0].state_dict())
    multiply_patches(towers[1])
    assert list(towers[1].state_dict()) == names
    assert any(isinstance(module, PatchProduct) for module in towers[1].modules())
    media = video_prompt(family_from_config(tiny_hf(family).config), "a", 3).vision
    outputs = []
    for tower in towers:
        output = tower(media.pixel_values_videos, grid_thw=media.video_grid_thw, return_dict=True).pooler_output
        output.square().sum().backward()
        outputs.append(output)
    torch.testing.assert_close(outputs[0], outputs[1], atol=2e-6, rtol=1e-5)
    for one, other in zip(towers[0].parameters(), towers[1].parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            assert (one.grad - other.grad).norm() <= 1e-5 * one.grad.norm()


def test_other_inputs_are_convolved() -> None:
    plain = torch.nn.Conv3d(3, 4, (2, 3, 3), (2, 3, 3))
    tower = torch.nn.Sequential(plain)
    image = torch.randn(1, 3, 4, 6, 9)
    expected = tower(image)
    multiply_patches(tower)
    assert torch.equal(tower(image), expected) and expected.shape[2:] == (2, 2, 3)
