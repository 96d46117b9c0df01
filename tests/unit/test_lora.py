"""Adapters: they begin as nothing, learn what their equation says, make teachers, and leave as plain weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.runs import assert_same_gradients, capture_gradients, groups_with_advantages, small_run
from visd.config import ConfigError, ModelSection
from visd.policy import lora
from visd.policy.batch import VisionFeatures
from visd.policy.policy import Policy
from visd.train.batches import Item
from visd.train.run import Run
from visd.train.state import export_model
from visd.train.update import update_policy
from visd.types import RolloutGroup, ScoreNeeds, VisdError

LORA = ("model.lora.rank=4", "model.lora.alpha=8")


def scores(run: Run, groups: list[RolloutGroup]) -> Tensor:
    """Log-probabilities of the groups' own tokens under the weights in place, one after the other."""
    with run.backend.whole_weights() as module:
        features = run.policy.encode([group.prompt for group in groups])
        found = [
            run.policy.score(
                [item.row() for item in items(group, feature)],
                temperature=1.0,
                needs=ScoreNeeds(),
                forward=module,
            ).logp.flatten()
            for group, feature in zip(groups, features, strict=True)
        ]
    return torch.cat(found)


def items(group: RolloutGroup, features: VisionFeatures | None) -> list[Item]:
    return [Item(group, i, features) for i in range(len(group.rollouts))]


@torch.no_grad()
def move(run: Run, scale: float = 0.05) -> None:
    """Give every adapter a product that is not zero."""
    numbers = torch.Generator().manual_seed(7)
    for parameter in run.policy.model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=numbers) * scale)


@pytest.fixture
def adapted(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> Run:
    return small_run(small_world, tiny_qwen2_5_vl, tmp_path, *LORA)


def test_fresh_adapters_change_nothing_and_alone_are_trained(
    adapted: Run, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    plain = small_run(small_world, tiny_qwen2_5_vl, tmp_path)
    groups = groups_with_advantages(plain)
    assert torch.equal(scores(adapted, groups), scores(plain, groups))
    trained = [name for name, p in adapted.policy.model.named_parameters() if p.requires_grad]
    assert trained and all(name.endswith((lora.A, lora.B)) and "language_model" in name for name in trained)
    assert len(trained) == 2 * 7 * 4  # 7 layers in each of 4 decoder blocks
    assert adapted.policy.tower is not None  # the vision tower is frozen and outside, as without adapters


def test_gradient_of_b_is_the_full_gradient_times_a(
    adapted: Run, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """At B = 0: dL/dB = s (dL/dW) A^T, and dL/dA = 0."""
    plain = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo")
    groups = groups_with_advantages(plain)
    expected, found = capture_gradients(plain), capture_gradients(adapted)
    update_policy(plain, groups, {}, {}, 0)
    update_policy(adapted, groups, {}, {}, 0)
    values = dict(adapted.policy.model.named_parameters())
    oracle = {}
    for name, weight in expected.items():
        a = name.removesuffix(".weight") + lora.A
        if a in values:
            oracle[name.removesuffix(".weight") + lora.B] = 2.0 * weight @ values[a].detach().T
    assert_same_gradients(oracle, {name: g for name, g in found.items() if name.endswith(lora.B)}, relative=1e-5)
    assert all(not gradient.any() for name, gradient in found.items() if name.endswith(lora.A))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_exported_folder_is_the_adapted_model(
    family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A plain folder: the same tensors as the base's, and the same log-probabilities as base and adapters together."""
    base: Path = request.getfixturevalue(f"tiny_{family}")
    run = small_run(small_world, base, tmp_path, *LORA)
    groups = groups_with_advantages(run)
    move(run)
    export_model(run, tmp_path / "model")
    shapes, before = ({n: (v.shape, v.dtype) for n, v in weights(p).items()} for p in (tmp_path / "model", base))
    assert shapes == before
    plain = small_run(small_world, tmp_path / "model", tmp_path)
    assert not any("lora" in name for name, _ in plain.policy.model.named_parameters())
    torch.testing.assert_close(scores(plain, groups), scores(run, groups), atol=1e-5, rtol=0)
    unmoved = small_run(small_world, base, tmp_path)
    assert (scores(unmoved, groups) - scores(run, groups)).abs().max() > 1e-2


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_merged_weight_by_its_equation() -> None:
    w, a, b = torch.randn(5, 3), torch.randn(2, 3), torch.randn(5, 2)
    expected = w.double() + 0.5 * b.double() @ a.double()
    torch.testing.assert_close(lora.merged_weight(w, a, b, 0.5).double(), expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(VisdError, match=r"adapter of 'x.q.weight' is not whole.*lora_B"):
        lora.merged({"x.q.base_layer.weight": w, "x.q" + lora.A: a}, 0.5)


def test_frozen_adapters_are_the_base_and_the_student_comes_back(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *LORA, "method=visd", "teacher.weights=frozen")
    plain = small_run(small_world, tiny_qwen2_5_vl, tmp_path)
    groups = groups_with_advantages(plain)
    move(run)
    student = scores(run, groups)
    assert run.teacher is not None
    with run.teacher.applied(run.backend):
        assert torch.equal(scores(run, groups), scores(plain, groups))
    assert torch.equal(scores(run, groups), student)


@pytest.mark.parametrize("freeze_a", [True, False])
def test_the_average_of_adapters_is_that_of_weights_where_a_is_fixed(
    freeze_a: bool, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """s B_T A against (1 - r) s B_0 A + r s B_S A in float64; with a moving A the mean of products is another matrix."""
    settings = (*LORA, "method=visd", f"model.lora.freeze_a={freeze_a}", "teacher.rate=0.25")
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings)
    assert run.teacher is not None
    expected = products(run)
    for step in range(1, 4):
        move(run)
        run.teacher.update(run.backend, step)
        expected = {name: 0.75 * value + 0.25 * products(run)[name] for name, value in expected.items()}
    with run.teacher.applied(run.backend):
        taught = products(run)
    gap = max(float((taught[name] - value).abs().max()) for name, value in expected.items())
    assert (gap < 1e-6) if freeze_a else (gap > 1e-3)


def products(run: Run) -> dict[str, Tensor]:
    values = {name: p.detach().double() for name, p in run.policy.model.named_parameters()}
    pairs = {name: lora.adapter_names(name) for name in values if lora.is_adapted(name)}
    assert pairs
    return {name: 2.0 * values[b] @ values[a] for name, (a, b) in pairs.items()}


def test_initial_adapters_depend_on_the_seed_and_the_layer(tiny_qwen2_5_vl: Path) -> None:
    section = ModelSection(path=str(tiny_qwen2_5_vl))
    section.lora.rank = 2

    def first(seed: int) -> list[Tensor]:
        model = Policy.load(section, torch.device("cpu"), seed=seed).model
        return [p for name, p in model.named_parameters() if name.endswith(lora.A)]

    one, again, other = first(1), first(1), first(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[0], one[1])
    assert max(float(a.detach().abs().max()) * a.shape[1] ** 0.5 for a in one) == pytest.approx(1.0, abs=0.02)


def test_bfloat16_weights_get_float32_adapters(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *LORA, "model.dtype=bfloat16")
    dtypes = {p.requires_grad: p.dtype for p in run.policy.model.parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    groups = groups_with_advantages(run)
    assert update_policy(run, groups, {}, {}, 0).made == 1
    moved = [p for name, p in run.policy.model.named_parameters() if name.endswith(lora.B) and bool(p.any())]
    assert moved


def test_layers_of_the_tower_by_name(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *LORA, "model.lora.vision_targets=[qkv,proj]")
    assert run.policy.tower is None
    trained = [name for name, p in run.policy.model.named_parameters() if p.requires_grad]
    assert sum(".visual." in name for name in trained) == 2 * 2 * 2
    groups = groups_with_advantages(run)
    assert torch.isfinite(torch.tensor(update_policy(run, groups, {}, {}, 0).metrics.values()["optim/grad_norm"]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.lora.targets=[q_prj]", r"model\.lora\.targets: 'q_prj' names no linear layer.*q_proj"),
        ("model.lora.vision_targets=[q_proj]", r"model\.lora\.vision_targets: 'q_proj'.*qkv"),
        ("model.freeze=[]", r"model\.freeze: with model\.lora\.rank > 0.*vision_targets"),
        ("model.lora.rank=-1", r"model\.lora\.rank"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    override: str, expected: str, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        small_run(small_world, tiny_qwen2_5_vl, tmp_path, *LORA, override)


def test_quantised_weights_are_refused(tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(tiny_qwen2_5_vl, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"are quantised.*model\.lora\.quantize=nf4"):
        Policy.load(ModelSection(path=str(folder)), torch.device("cpu"))


def test_peft_is_asked_for_by_name(tiny_qwen2_5_vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    section = ModelSection(path=str(tiny_qwen2_5_vl))
    Policy.load(section, torch.device("cpu"))
    section.lora.rank = 2
    with pytest.raises(ConfigError, match=r"pip install 'visd\[lora\]'"):
        Policy.load(section, torch.device("cpu"))
