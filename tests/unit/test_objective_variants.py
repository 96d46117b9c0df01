"""DAPO, Dr. GRPO, GSPO and CISPO as settings of `objective`: numbers by hand, and TRL's own loss on random inputs."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer

from tests.unit.method_data import group_of
from visd.cli import compose_config
from visd.config import ConfigError, ObjectiveSection, load
from visd.objective.advantage import group_advantages, overlong, returns_of
from visd.objective.loss import Denominators, PolicyLoss, policy_loss, token_weights

LOGP = ((-1.0, -2.0, -0.5), (-0.7, -1.2, 0.0))
RATIOS = ((1.5, 0.9, 0.6), (1.1, 2.0, 1.0))
MASK = ((True, True, True), (True, True, False))
ADVANTAGES = (1.0, -1.0)
WHOLE = Denominators(tokens=5, rollouts=2, longest=8)


def settings_of(option: str) -> ObjectiveSection:
    return load(compose_config([f"objective={option}", "data.root=x", "model.path=x"])).objective


def loss_of(section: ObjectiveSection, logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> PolicyLoss:
    tokens, rollouts = int(mask.sum()), len(mask)
    weights = token_weights(mask.double(), section.aggregation, Denominators(tokens, rollouts, WHOLE.longest))
    return policy_loss(logp, old, advantages[:, None].expand(mask.shape), weights, section)


def by_hand(section: ObjectiveSection) -> tuple[PolicyLoss, Tensor]:
    """Loss and gradient on the example above."""
    logp = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    old = logp.detach() - torch.tensor(RATIOS, dtype=torch.float64).log()
    found = loss_of(section, logp, old, torch.tensor(ADVANTAGES, dtype=torch.float64), torch.tensor(MASK))
    return found, torch.autograd.grad(found.loss, logp)[0]


def test_dapo_clips_higher_and_means_over_tokens() -> None:
    """Of 1.5, 0.9, 0.6 (A > 0) only the first is clipped, at 1.28; of 1.1, 2.0 (A < 0) none: a fall is bounded below only."""
    found, gradient = by_hand(settings_of("dapo"))
    assert found.loss.item() == pytest.approx(-(1.28 + 0.9 + 0.6 - 1.1 - 2.0) / 5, abs=1e-9)
    assert found.clipped.tolist() == [[True, False, False], [False, False, False]]
    expected = [[0.0, -0.9 / 5, -0.6 / 5], [1.1 / 5, 2.0 / 5, 0.0]]
    assert gradient.tolist() == [pytest.approx(row, abs=1e-9) for row in expected]
    plain, _ = by_hand(settings_of("grpo"))
    assert plain.loss.item() == pytest.approx(-(1.2 + 0.9 + 0.6 - 1.1 - 2.0) / 5, abs=1e-9)


def test_dapo_punishes_the_last_fifth_of_the_length() -> None:
    """20 tokens at most, buffer 4: nothing up to 16, then a quarter a token, 1 at the end."""
    assert [overlong(n, 20, 0.2) for n in (3, 16, 17, 18, 20)] == pytest.approx([0, 0, 0.25, 0.5, 1])
    assert overlong(20, 20, 0.0) == 0
    section = settings_of("dapo")
    group = group_of([1.0, 0.0], length=18)
    assert returns_of(group, section, 20) == pytest.approx([1.1 - 0.5, 0.1 - 0.5])
    assert returns_of(group, ObjectiveSection(), 20) == pytest.approx([1.1, 0.1])
    half = ObjectiveSection(overlong_share=0.2, overlong_penalty=0.5)
    assert returns_of(group, half, 20) == pytest.approx([1.1 - 0.25, 0.1 - 0.25])


def test_dr_grpo_divides_by_a_constant_and_not_by_the_deviation() -> None:
    section = settings_of("dr_grpo")
    assert group_advantages([1.0, 0.0, 0.0, 0.0], section) == (0.75, -0.25, -0.25, -0.25)
    found, gradient = by_hand(section)
    assert found.loss.item() == pytest.approx(-(1.2 + 0.9 + 0.6 - 1.1 - 2.0) / (2 * 8), abs=1e-9)
    assert gradient[0].tolist() == pytest.approx([0.0, -0.9 / 16, -0.6 / 16], abs=1e-9)


def test_gspo_takes_the_ratio_of_the_whole_answer() -> None:
    """Geometric means: (1.5 * 0.9 * 0.6)^(1/3) = 0.932170, within no bound of 0.0004; (1.1 * 2.0)^(1/2) = 1.483240."""
    wide = ObjectiveSection(ratio="sequence", aggregation="sequence", eps_low=0.2, eps_high=0.6)
    found, gradient = by_hand(wide)
    first, second = 0.81 ** (1 / 3), 2.2**0.5
    assert found.ratio[0].tolist() == pytest.approx([first] * 3, abs=1e-9)
    assert found.loss.item() == pytest.approx(-(first - second) / 2, abs=1e-9)
    assert gradient[0].tolist() == pytest.approx([-first / 6] * 3, abs=1e-9)
    assert gradient[1].tolist() == pytest.approx([second / 4] * 2 + [0.0], abs=1e-9)
    narrow, gradient = by_hand(settings_of("gspo"))
    assert not narrow.clipped.any(), "a good answer that lost and a bad one that won are both to move back"
    up = ObjectiveSection(ratio="sequence", eps_low=3e-4, eps_high=4e-4)
    logp = torch.tensor([[-1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    clipped = loss_of(up, logp, logp.detach() - 0.1, torch.ones(1, dtype=torch.float64), torch.ones(1, 2).bool())
    assert clipped.loss.item() == pytest.approx(-1.0004) and clipped.clipped.all()
    assert torch.autograd.grad(clipped.loss, logp)[0].tolist() == [[0.0, 0.0]]


def test_gspo_keeps_the_credit_of_each_token() -> None:
    section = ObjectiveSection(ratio="sequence", aggregation="sequence", eps_high=9.0)
    logp = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    credit = torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    weights = token_weights(torch.ones(1, 3, dtype=torch.float64), "sequence", Denominators(3, 1, 3))
    found = policy_loss(logp, torch.full((1, 3), -math.log(2), dtype=torch.float64), credit, weights, section)
    assert torch.autograd.grad(found.loss, logp)[0].tolist() == [pytest.approx([-4 / 3, 0.0, -2 / 3])]


def test_cispo_bounds_the_weight_and_keeps_every_gradient() -> None:
    section = ObjectiveSection(surrogate="cispo", eps_low=1.0, eps_high=0.28)
    found, gradient = by_hand(section)
    value = 1.28 * -1.0 + 0.9 * -2.0 + 0.6 * -0.5 - (1.1 * -0.7 + 1.28 * -1.2)
    assert found.loss.item() == pytest.approx(-value / 5, abs=1e-9)
    assert gradient[0].tolist() == pytest.approx([-1.28 / 5, -0.9 / 5, -0.6 / 5], abs=1e-9)
    assert gradient[1].tolist() == pytest.approx([1.1 / 5, 1.28 / 5, 0.0], abs=1e-9)
    assert found.clipped.tolist() == [[True, False, False], [False, True, False]]
    assert settings_of("cispo").surrogate == "cispo"


def test_a_first_update_is_the_same_for_all_of_them() -> None:
    """Where the policy is the one that sampled, ratios are 1: only the denominators differ."""
    numbers = torch.Generator().manual_seed(0)
    logp = torch.randn(2, 3, generator=numbers, dtype=torch.float64).requires_grad_()
    advantages, mask = torch.tensor([0.7, -0.2], dtype=torch.float64), torch.tensor(MASK)
    found = []
    for fields in ({}, {"ratio": "sequence"}, {"surrogate": "cispo"}):
        loss = loss_of(ObjectiveSection(**fields), logp, logp.detach(), advantages, mask).loss
        found.append(torch.autograd.grad(loss, logp)[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-12, rtol=0)


def trl_loss(loss_type: str, level: str, logp: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """`GRPOTrainer._compute_loss` of one batch, its forward replaced by the given log-probabilities."""
    cap = 1.28 if loss_type == "cispo" else 0.28  # of the ratio itself, not of its distance from 1
    args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, args=args,
        importance_sampling_level=level, beta=0.0, loss_type=loss_type, epsilon_low=0.2, epsilon_high=cap,
        use_vllm=False, model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=WHOLE.longest, accelerator=accelerator, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    ids = torch.zeros_like(mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.double(),
        "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize(
    ("loss_type", "level", "fields"),
    [
        ("grpo", "token", {"aggregation": "sequence"}),
        ("bnpo", "token", {"aggregation": "token"}),
        ("dapo", "token", {"aggregation": "token"}),
        ("dr_grpo", "token", {"aggregation": "constant"}),
        ("grpo", "sequence", {"aggregation": "sequence", "ratio": "sequence"}),
        ("dapo", "sequence", {"aggregation": "token", "ratio": "sequence"}),
        ("cispo", "token", {"surrogate": "cispo", "eps_low": 1.0}),
        ("cispo", "sequence", {"surrogate": "cispo", "eps_low": 1.0, "ratio": "sequence"}),
    ],
)
def test_loss_and_gradient_are_those_of_trl(loss_type: str, level: str, fields: dict[str, Any]) -> None:
    """bnpo's own denominator, the tokens of one micro-batch, is that of the whole step here, as dapo's."""
    numbers = torch.Generator().manual_seed(3)
    section = ObjectiveSection(**({"eps_low": 0.2, "eps_high": 0.28} | fields))
    for _ in range(5):
        mask = torch.arange(7)[None] < torch.randint(1, 8, (4,), generator=numbers)[:, None]
        logp = (-torch.rand(4, 7, generator=numbers, dtype=torch.float64) * mask).requires_grad_()
        old = (logp.detach() + 0.5 * torch.randn(4, 7, generator=numbers, dtype=torch.float64)) * mask
        advantages = torch.randn(4, generator=numbers, dtype=torch.float64)
        ours = loss_of(section, logp, old, advantages, mask).loss
        theirs = trl_loss(loss_type, level, logp, old, advantages, mask)
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
        gradients = [torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["objective.mini_batches=2"], "objective.old_logp"),
        (["objective.dynamic_sampling=drop", "objective.judge_weight=1"], "objective.dynamic_sampling"),
        (["objective.ratio=group"], "objective.ratio"),
        (["objective.overlong_share=2"], "objective.overlong_share"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(compose_config(["data.root=x", "model.path=x", *overrides]))
