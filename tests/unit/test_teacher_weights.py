"""The teacher follows the student as its equation says, takes its place and gives it back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from visd.config import TeacherSection
from visd.parallel.place import Place
from visd.parallel.single import SingleProcess
from visd.teacher.weights import TeacherWeights, average
from visd.types import VisdError


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.trained = nn.Parameter((torch.arange(12.0).reshape(3, 4) / 7).to(dtype))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)


def backend_of(module: nn.Module) -> SingleProcess:
    backend = SingleProcess(Place(), torch.device("cpu"), False)
    backend.setup(module, None, 1.0)
    return backend


def attached(module: nn.Module, **section: object) -> tuple[TeacherWeights, SingleProcess]:
    backend = backend_of(module)
    teacher = TeacherWeights(TeacherSection(**section))  # type: ignore[arg-type]
    teacher.attach(backend)
    return teacher, backend


def teacher_of(teacher: TeacherWeights, backend: SingleProcess, module: Model) -> Tensor:
    with teacher.applied(backend):
        return module.trained.detach().clone()


@torch.no_grad()
def move(module: Model, by: float) -> None:
    module.trained.add_(by)


def test_ema_has_its_closed_form_over_600_steps() -> None:
    """theta_T(n) = (1-r)^n start + r sum_k (1-r)^(n-k) theta_S(k), summed in float64."""
    module, rate = Model(), 0.01
    teacher, backend = attached(module, weights="ema", rate=rate)
    expected = module.trained.detach().double()
    for step in range(1, 601):
        move(module, 1e-3 * math.sin(step))
        teacher.update(backend, step)
        expected = (1 - rate) * expected + rate * module.trained.detach().double()
    torch.testing.assert_close(teacher_of(teacher, backend, module).double(), expected, rtol=5e-6, atol=1e-6)


def test_ema_of_a_constant_student_is_exact() -> None:
    """After n steps at distance d from the start: d (1 - (1-r)^n); and a teacher that has arrived stays there."""
    module = Model()
    teacher, backend = attached(module, weights="ema", rate=0.05)
    move(module, 1.0)
    for step in range(1, 101):
        teacher.update(backend, step)
    moved, student = teacher.displacement(backend)
    assert student == pytest.approx(math.sqrt(12))
    assert moved == pytest.approx(math.sqrt(12) * (1 - 0.95**100), rel=1e-6)
    for step in range(101, 1001):
        teacher.update(backend, step)
    arrived = teacher_of(teacher, backend, module)
    teacher.update(backend, 1001)
    assert torch.equal(teacher_of(teacher, backend, module), arrived)


@pytest.mark.parametrize(("noisy", "most"), [(False, 0.15), (True, 0.06)])
def test_a_bfloat16_average_nearly_stands_still(noisy: bool, most: float) -> None:
    """600 steps of 1e-6 on weights of size 0.02 at rate 0.01: float32 covers 5/6 of the student's way, bfloat16 little."""
    torch.manual_seed(0)
    start = (torch.randn(20000) * 0.02).bfloat16().float()
    direction = torch.randn(20000).sign()
    student, full, half = start.clone(), start.clone(), start.bfloat16()
    for _ in range(600):
        student += 1e-6 * (torch.randn(20000).sign() if noisy else direction)
        average(full, student, 0.01)
        average(half, student, 0.01)
    way = student - start

    def share(teacher: Tensor) -> float:
        return float((teacher.float() - start) @ way / (way @ way))

    assert share(full) == pytest.approx(0.84, abs=0.015)
    assert share(half) < most


def test_bfloat16_loses_a_step_that_float32_keeps() -> None:
    student = torch.tensor([1.432])
    full, half = torch.ones(1), torch.ones(1, dtype=torch.bfloat16)
    for _ in range(2000):
        average(full, student, 0.001)
        average(half, student, 0.001)
    assert full.item() == pytest.approx(1 + 0.432 * (1 - 0.999**2000), rel=1e-5)
    assert half.item() == 1.0


def test_the_average_does_not_depend_on_how_it_is_cut() -> None:
    """Vector kernels and their remainders must round alike, or sharding would change the teacher."""
    torch.manual_seed(0)
    teacher, student = torch.randn(1003), torch.randn(1003)
    whole, parts = teacher.clone(), teacher.clone()
    average(whole, student, 0.3)
    for a, b in zip(parts.split(7), student.split(7), strict=True):
        average(a, b, 0.3)
    assert torch.equal(whole, parts)


def test_a_float32_average_of_a_bfloat16_model() -> None:
    module = Model(torch.bfloat16)
    teacher, backend = attached(module, weights="ema", rate=0.001)
    with torch.no_grad():
        module.trained.fill_(1.5)
    teacher.update(backend, 1)
    master = teacher.state_dict()["teacher/trained"]
    start = teacher.state_dict()["start/trained"]
    assert master.dtype == torch.float32 and start.dtype == torch.bfloat16
    torch.testing.assert_close(master, start.float() + 0.001 * (1.5 - start.float()))
    assert torch.equal(teacher_of(teacher, backend, module), master.bfloat16())


def test_frozen_stays_the_start() -> None:
    module = Model()
    start = module.trained.detach().clone()
    teacher, backend = attached(module, weights="frozen")
    move(module, 1.0)
    teacher.update(backend, 1)
    assert torch.equal(teacher_of(teacher, backend, module), start)
    moved, student = teacher.displacement(backend)
    assert moved == 0.0 and student == pytest.approx(math.sqrt(12))


def test_snapshot_copies_every_k_steps() -> None:
    module = Model()
    teacher, backend = attached(module, weights="snapshot", snapshot_every=3)
    seen = []
    for step in range(1, 8):
        move(module, 1.0)
        teacher.update(backend, step)
        seen.append(round(float((teacher_of(teacher, backend, module) - teacher.state_dict()["start/trained"])[0, 0])))
    assert seen == [0, 0, 3, 3, 3, 6, 6]


def test_live_is_the_student() -> None:
    module = Model()
    teacher, backend = attached(module, weights="live")
    move(module, 1.0)
    teacher.update(backend, 1)
    before = module.trained.detach().clone()
    with teacher.applied(backend):
        assert torch.equal(module.trained, before)
    moved, student = teacher.displacement(backend)
    assert moved == student > 0


def test_the_student_comes_back_bit_for_bit_even_after_an_error() -> None:
    module = Model()
    with torch.no_grad():
        module.trained[0, 0] = math.nan
        module.trained[0, 1] = -0.0
    teacher, backend = attached(module, weights="ema", rate=1.0)
    move(module, 0.1)
    before = module.trained.detach().clone().view(torch.int32)
    with pytest.raises(RuntimeError, match="inside"), teacher.applied(backend):
        assert not torch.equal(module.trained.detach().view(torch.int32), before)
        raise RuntimeError("inside")
    assert torch.equal(module.trained.detach().view(torch.int32), before)


def test_frozen_parameters_are_shared_not_copied() -> None:
    teacher, _ = attached(Model(), weights="ema")
    assert sorted(teacher.state_dict()) == ["start/trained", "teacher/trained"]


@pytest.mark.parametrize("weights", ["ema", "snapshot", "frozen", "live"])
def test_a_restored_teacher_goes_on_bit_for_bit(weights: str, tmp_path: Path) -> None:
    module = Model()
    teacher, backend = attached(module, weights=weights, rate=0.3, snapshot_every=2)
    for step in range(1, 4):
        move(module, 0.1)
        teacher.update(backend, step)
    teacher.save(backend, tmp_path)
    other = TeacherWeights(teacher.section)
    other.attach(backend)  # another start: the student has moved
    other.load(backend, tmp_path)
    for step in range(4, 6):
        move(module, 0.1)
        teacher.update(backend, step)
        other.update(backend, step)
    assert torch.equal(teacher_of(teacher, backend, module), teacher_of(other, backend, module))
    assert teacher.displacement(backend) == other.displacement(backend)


def test_a_teacher_of_another_kind_is_refused(tmp_path: Path) -> None:
    teacher, backend = attached(Model(), weights="ema")
    for other in ({"weights": "frozen"}, {"weights": "ema", "ema_dtype": "bfloat16"}):
        saved, saved_backend = attached(Model(), **other)
        folder = tmp_path / str(len(other))
        folder.mkdir()
        saved.save(saved_backend, folder)
    with pytest.raises(VisdError, match=r"lacks 'teacher/trained'.*keep teacher\.weights"):
        teacher.load(backend, tmp_path / "1")
    with pytest.raises(VisdError, match=r"bfloat16, not torch\.float32"):
        teacher.load(backend, tmp_path / "2")


def test_displacement_of_a_bfloat16_average_starts_at_zero() -> None:
    teacher, backend = attached(Model(), weights="ema", ema_dtype="bfloat16")
    assert teacher.displacement(backend) == (0.0, 0.0)
