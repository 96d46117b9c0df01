"""Joining, refusals, and the backend of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from visd.config import ConfigError, ParallelSection
from visd.parallel import launch
from visd.parallel.ddp import buckets
from visd.parallel.place import Place, read_place
from visd.parallel.single import SingleProcess
from visd.parallel.storage import HEADER, model_fingerprint
from visd.parallel.zero import engine_config
from visd.types import VisdError


def made(module: nn.Module, max_grad_norm: float = 1.0, *, bf16: bool = False) -> SingleProcess:
    backend = SingleProcess(Place(), torch.device("cpu"), bf16)
    backend.setup(module, lambda p: torch.optim.AdamW(p), max_grad_norm)
    return backend


def test_places() -> None:
    assert read_place({}) == Place(0, 1, 0, 1)
    assert read_place({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == Place(3, 4, 1, 2)
    assert read_place({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_SIZE": "4"}) == Place(3, 8, 3, 4)
    with pytest.raises(VisdError, match="not RANK"):
        read_place({"WORLD_SIZE": "2"})
    with pytest.raises(VisdError, match="no whole number"):
        read_place({"WORLD_SIZE": "two", "RANK": "0"})


def test_none_refuses_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"parallel\.mode: none is for one process but 2 were started.*zero3"):
        launch(ParallelSection("none"), bf16=False, threads=1)


@pytest.mark.parametrize("mode", ["none", "fsdp2"])
def test_offloading_needs_zero(mode: str) -> None:
    with pytest.raises(ConfigError, match=rf"parallel\.offload_optimizer.*not with {mode}"):
        launch(ParallelSection(mode, offload_optimizer=True), bf16=False, threads=1)


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        launch(ParallelSection("none"), bf16=False, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_gradients_are_summed_and_clipped_to_the_norm() -> None:
    """Two backward passes of 3 and 1 along one axis, then SGD with lr 1: the step is the clipped sum."""
    module = nn.Linear(1, 1, bias=False)
    backend = SingleProcess(Place(), torch.device("cpu"), False)
    backend.setup(module, lambda p: torch.optim.SGD(p, lr=123.0), 2.0)
    start = module.weight.item()
    for factor, last in ((3.0, False), (1.0, True)):
        backend.backward(backend.forward(torch.tensor([[factor]])).sum(), last=last)
    result = backend.step(1.0)
    assert result.grad_norm == pytest.approx(4.0) and not result.skipped
    assert start - module.weight.item() == pytest.approx(2.0, rel=1e-5)
    assert module.weight.grad is None


def test_bf16_keeps_float32_weights() -> None:
    module = nn.Linear(4, 4)
    backend = made(module, bf16=True)
    out = backend.forward(torch.ones(1, 4))
    with backend.whole_weights() as inner:
        assert inner(torch.ones(1, 4)).dtype == torch.bfloat16
    assert out.dtype == torch.bfloat16 and module.weight.dtype == torch.float32


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(VisdError, match=r"model\.freeze leaves no parameter"):
        made(nn.Linear(2, 2).requires_grad_(False))


def test_inference_takes_no_step() -> None:
    backend = SingleProcess(Place(), torch.device("cpu"), False)
    backend.setup(nn.Linear(2, 2).requires_grad_(False), None, 1.0)
    with pytest.raises(VisdError, match="inference only"):
        backend.step(0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0", "mode": "zero3", "world_size": 8}, r"another model.*parallel\.mode=zero3 by 8 processes"),
        ({"model": "0"}, "holds another model"),
        ({"more": 1}, r"backend\.json is no description"),
    ],
)
def test_training_state_of_another_kind_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    backend = made(nn.Linear(2, 2))
    backend.save_training_state(tmp_path)
    backend.load_training_state(tmp_path)
    header = json.loads((tmp_path / HEADER).read_text())
    (tmp_path / HEADER).write_text(json.dumps(header | change))
    with pytest.raises(VisdError, match=message):
        backend.load_training_state(tmp_path)


def test_training_state_of_another_model_is_refused(tmp_path: Path) -> None:
    made(nn.Linear(2, 2)).save_training_state(tmp_path)
    with pytest.raises(VisdError, match="holds another model"):
        made(nn.Linear(2, 3)).load_training_state(tmp_path)
    with pytest.raises(VisdError, match="is no description"):
        made(nn.Linear(2, 2)).load_training_state(tmp_path / "nowhere")


def test_whole_weights_of_another_model_are_refused() -> None:
    backend = made(nn.Linear(2, 2))
    state = backend.full_state()
    with pytest.raises(VisdError, match="lacks 'bias'"):
        backend.load_full_state({"weight": state["weight"]})
    with pytest.raises(VisdError, match="holds 'extra'"):
        backend.load_full_state(state | {"extra": torch.zeros(1)})


def test_fingerprints_see_names_shapes_and_dtypes() -> None:
    entries = [("a", (2, 3), torch.float32), ("b", (4,), torch.float32)]
    variants = [
        entries,
        [("a", (3, 2), torch.float32), entries[1]],
        [("c", (2, 3), torch.float32), entries[1]],
        [("a", (2, 3), torch.bfloat16), entries[1]],
        entries[:1],
    ]
    assert len({model_fingerprint(variant) for variant in variants}) == 5
    assert model_fingerprint(reversed(entries)) == model_fingerprint(entries)


def test_buckets_keep_order_size_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visd.parallel.ddp.BUCKET_BYTES", 40)
    tensors = [torch.zeros(n) for n in (4, 6, 1, 30, 2)] + [torch.zeros(2, dtype=torch.bfloat16)]
    groups = list(buckets(tensors))
    assert [[t.numel() for t in group] for group in groups] == [[4, 6], [1], [30], [2], [2]]
    assert [id(t) for group in groups for t in group] == [id(t) for t in tensors]
    assert not list(buckets([]))


def test_engine_configuration() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    plain = engine_config(ParallelSection("zero2"), False, 0.7, cpu)
    assert plain["zero_optimization"]["stage"] == 2 and not plain["bf16"]["enabled"]
    assert plain["gradient_clipping"] == 0.7 and "offload_optimizer" not in plain["zero_optimization"]
    full = engine_config(ParallelSection("zero3", offload_optimizer=True), True, 1.0, cuda)
    assert full["zero_optimization"]["stage"] == 3 and full["bf16"]["enabled"]
    assert full["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
