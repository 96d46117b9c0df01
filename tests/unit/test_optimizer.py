"""Learning rates, and Muon for matrices beside AdamW for the rest."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.runs import small_config
from visd.config import ConfigError, OptimSection
from visd.parallel.place import Place
from visd.parallel.single import SingleProcess
from visd.train.muon import orthogonalised
from visd.train.optimizer import MuonWithAdamW, learning_rate, optimizer_factory, split_for_muon
from visd.train.run import set_up


class Net(nn.Module):
    """A table, a matrix with a bias, and a head that shares the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.patches = nn.Conv3d(1, 4, 2)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(self.table(ids)))) + self.patches.weight.sum()


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.arange(5)), torch.arange(5).roll(step)).backward()
        optimizer.step()


SECTION = OptimSection(algorithm="muon", lr=0.01, weight_decay=0.1)


def test_only_matrices_inside_the_model_are_muons() -> None:
    model = net()
    matrices, others = split_for_muon(model, list(model.parameters()))
    assert [id(p) for p in matrices] == [id(model.inner.weight)]
    assert {id(p) for p in others} == {id(p) for p in model.parameters()} - {id(model.inner.weight)}


def test_it_is_torchs_muon_up_to_its_bfloat16_and_torchs_adamw_side_by_side() -> None:
    mine, theirs = net(), net()
    train(mine, optimizer_factory(SECTION, mine)(list(mine.parameters())), 5)
    muon = torch.optim.Muon([theirs.inner.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed, plain = [theirs.table.weight, theirs.patches.weight], [theirs.inner.bias, theirs.patches.bias]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.01
    )
    for step in range(5):
        theirs.zero_grad()
        nn.functional.cross_entropy(theirs(torch.arange(5)), torch.arange(5).roll(step)).backward()
        muon.step()
        adamw.step()
    moved = (theirs.inner.weight - net().inner.weight).norm()
    assert (mine.inner.weight - theirs.inner.weight).norm() < 0.02 * moved
    for name in ("table.weight", "inner.bias"):  # the gradient of the patches is 0 up to rounding
        torch.testing.assert_close(mine.get_parameter(name), theirs.get_parameter(name), atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 32), (2, 32, 4)], ids=str)
def test_directions_stay_and_singular_values_become_about_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ orthogonalised(matrices) @ v.mT
    new = torch.diagonal(inner, dim1=1, dim2=2)
    well_conditioned = values > 0.05 * values[:, :1]
    assert well_conditioned.float().mean() > 0.9
    assert ((new > 0.6) & (new < 1.3))[well_conditioned].all()
    torch.testing.assert_close(inner, torch.diag_embed(new), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(orthogonalised(matrices)[1], orthogonalised(matrices[1:2])[0], atol=1e-5, rtol=0.0)


def test_the_learning_rate_reaches_both() -> None:
    model = net()
    backend = SingleProcess(Place(), torch.device("cpu"), bf16=False)
    backend.setup(model, optimizer_factory(SECTION, model), 1.0)
    before = copy.deepcopy(model.state_dict())
    backend.backward(model(torch.arange(5)).square().sum(), last=True)
    backend.step(0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    backend.backward(model(torch.arange(5)).square().sum(), last=True)
    backend.step(0.1)
    assert not torch.equal(model.inner.weight, before["inner.weight"])
    assert not torch.equal(model.table.weight, before["table.weight"])


def test_training_goes_on_bit_exactly_from_saved_state(tmp_path: Path) -> None:
    straight, resumed = net(), net()
    backends = []
    for model in (straight, resumed):
        backend = SingleProcess(Place(), torch.device("cpu"), bf16=False)
        backend.setup(model, optimizer_factory(SECTION, model), 1.0)
        backends.append(backend)
    for backend in backends:
        assert isinstance(backend.optimizer, MuonWithAdamW)
    first, second = (backend.optimizer for backend in backends)
    assert first is not None and second is not None
    train(straight, first, 2)
    backends[0].save_training_state(tmp_path)
    backends[1].load_training_state(tmp_path)
    train(straight, first, 3)
    train(resumed, second, 3)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["zero3", "fsdp2"])
def test_muon_is_refused_where_matrices_are_cut_up(
    mode: str, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    config = small_config(small_world, tiny_qwen2_5_vl, tmp_path, "optim.algorithm=muon", f"parallel={mode}")
    with pytest.raises(ConfigError, match=rf"optim\.algorithm: muon .*{mode}"):
        set_up(config)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (8, 0.55), (12, 0.1)], ids=lambda v: f"{v:g}"
)
def test_warm_up_then_half_a_cosine(step: int, expected: float) -> None:
    section = OptimSection(lr=1.0, schedule="cosine", warmup_steps=4, min_lr_ratio=0.1)
    assert learning_rate(section, step, 12) == pytest.approx(expected)
