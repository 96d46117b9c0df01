"""One rank of the checks of a parallel mode: `python -m tests.dist.backend_worker MODE FOLDER [offload | OTHER FOLDERS]`.

With other folders, what runs left there is resumed here, one after the other, and nothing else is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.dist.world import Tiny, adamw, make_model, train_step
from visd.config import ParallelSection, TeacherSection
from visd.parallel import Backend, launch
from visd.parallel.place import Place
from visd.parallel.storage import load_tensors, save_tensors
from visd.parallel.zero import Zero
from visd.teacher.weights import TeacherWeights

MAX_NORM = 5.0
IDS = torch.tensor([[1, 2, 3, 4]])
TEACHER = TeacherSection(weights="ema", rate=0.3)


def fresh(backend: Backend, *, bf16: bool = False, seed: int = 0) -> Backend:
    """Another backend of the same kind in the same process group, around another model."""
    place = Place(backend.rank, backend.world_size, backend.local_rank, backend.world_size)
    if isinstance(backend, Zero):
        made: Backend = Zero(backend.section, place, backend.device, bf16)
    else:
        made = type(backend)(place, backend.device, bf16)  # type: ignore[call-arg]
    made.setup(make_model(seed), adamw, MAX_NORM)
    return made


def attached(backend: Backend) -> TeacherWeights:
    teacher = TeacherWeights(TEACHER)
    teacher.attach(backend)
    return teacher


def look(backend: Backend, teacher: TeacherWeights) -> list[float]:
    """Run the module alone, differently often on every rank, with the student's and the teacher's weights."""
    seen = []
    for _ in range(2):
        with backend.whole_weights() as module:
            for _ in range(backend.rank + 1):
                seen = module(IDS)["logp"].flatten().tolist()
            if backend.is_main:  # parts alone and out of order, as generation may call them
                module.blocks[1](x=module.blocks[0](x=module.embed(IDS))["x"])  # type: ignore[index, operator]
    with teacher.applied(backend), backend.whole_weights() as module:
        for _ in range(backend.world_size - backend.rank):
            taught = module(IDS)["logp"].flatten().tolist()
    with torch.no_grad():  # the wrapped forward sees each swap too
        with teacher.applied(backend):
            assert backend.forward(IDS)["logp"].flatten().tolist() == pytest.approx(taught, abs=1e-6)
        assert backend.forward(IDS)["logp"].flatten().tolist() == pytest.approx(seen, abs=1e-6)
    return seen + taught


def steps(backend: Backend, teacher: TeacherWeights, numbers: range, *, watch: bool) -> list[dict[str, Any]]:
    """Train; `watch` also runs the module outside training, which must change nothing."""
    records = []
    for step in numbers:
        loss, result = train_step(backend, step)
        assert not result.skipped
        teacher.update(backend, step + 1)
        record: dict[str, Any] = {"loss": loss, "grad_norm": result.grad_norm}
        if watch:
            record |= {"logp": look(backend, teacher), "displacement": teacher.displacement(backend)}
        records.append(record)
    return records


def same(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    assert a.keys() == b.keys(), what
    for name in a:
        # bit patterns: padding may be NaN
        assert torch.equal(a[name].flatten().view(torch.uint8), b[name].flatten().view(torch.uint8)), (what, name)


def saved(backend: Backend, folder: Path) -> dict[str, Tensor]:
    """Everything a rank saves, by file and name."""
    backend.save_training_state(folder)
    backend.barrier()
    own: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.stem.endswith(f"_{backend.rank:05d}"):
            own |= {f"{path.name}/{name}": value for name, value in load_tensors(path).items()}
    return own


def check_resume(backend: Backend, folder: Path) -> list[dict[str, Any]]:
    """2 + restart + 2 steps are 4 steps bit for bit; a skipped step leaves no trace in either."""
    teacher = attached(backend)
    records = steps(backend, teacher, range(2), watch=True)
    backend.save_training_state(folder / "middle")
    (folder / "teacher").mkdir(exist_ok=True)
    teacher.save(backend, folder / "teacher")
    backend.barrier()
    for factor in (float("nan"), float("inf")):
        before = saved(backend, folder / "before")
        _, result = train_step(backend, 2, factor)
        assert result.skipped and not torch.tensor(result.grad_norm).isfinite()
        same(before, saved(backend, folder / "after"), "skipped step")
    records += steps(backend, teacher, range(2, 4), watch=True)

    again, resumed = restored(backend, folder)
    steps(again, resumed, range(2, 4), watch=False)
    same(saved(backend, folder / "straight"), saved(again, folder / "resumed"), "resume")
    same(teacher.state_dict(), resumed.state_dict(), "resumed teacher")
    assert backend.fingerprint() == again.fingerprint() == fresh_fingerprint()
    return records


def restored(backend: Backend, folder: Path) -> tuple[Backend, TeacherWeights]:
    """Another model and teacher, which take up what lies in a folder."""
    again = fresh(backend, seed=1)
    resumed = attached(again)
    again.load_training_state(folder / "middle")
    resumed.load(again, folder / "teacher")
    return again, resumed


def check_elsewhere(backend: Backend, others: list[Path]) -> list[list[dict[str, Any]]]:
    """Two more steps from what other numbers of ranks, in other modes, left after two."""
    return [steps(*restored(backend, folder), range(2, 4), watch=True) for folder in others]


def fresh_fingerprint() -> str:
    """The same model's in one process."""
    from visd.parallel.single import SingleProcess

    single = SingleProcess(Place(), torch.device("cpu"), False)
    single.setup(make_model(), None, 1.0)
    return single.fingerprint()


def check_full_state(backend: Backend) -> dict[str, Tensor]:
    """Whole weights out and in; training goes on from what was put in."""
    state = backend.all_gather_object(backend.full_state())
    assert all(not other for other in state[1:])
    moved = {name: value + 0.25 for name, value in state[0].items()}
    backend.load_full_state(moved)
    if backend.is_main:
        same(backend.full_state(), moved, "full state")
    else:
        assert backend.full_state() == {}
    train_step(backend, 5)
    return backend.full_state()


def check_bf16(backend: Backend) -> None:
    """Computing in bfloat16 under a float32 teacher; swapping the teacher in and out leaves training as it was."""
    plain, swapped = fresh(backend, bf16=True), fresh(backend, bf16=True)
    module: Tiny = swapped.module  # type: ignore[attr-defined]
    stored = torch.float32 if backend.mode == "fsdp2" else torch.bfloat16  # DeepSpeed keeps masters of its own
    assert {p.dtype for p in swapped.local_shards().values()} == {stored}
    with swapped.whole_weights():
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.frequencies.dtype == torch.float32
    teacher = attached(swapped)
    for step in range(3):
        train_step(plain, step)
        train_step(swapped, step)
        teacher.update(swapped, step + 1)
        before = {name: value.clone() for name, value in swapped.local_shards().items()}
        look(swapped, teacher)
        same(before, swapped.local_shards(), "student after the swap")
        same(plain.local_shards(), swapped.local_shards(), "training with and without swaps")
    assert {value.dtype for name, value in teacher.state_dict().items() if name[:8] == "teacher/"} == {torch.float32}
    moved, student = teacher.displacement(swapped)
    assert 0.3 < moved / student < 1


def check_collectives(backend: Backend) -> None:
    value = torch.tensor([1.0 + backend.rank, -float(backend.rank)])
    n = backend.world_size
    assert backend.all_reduce(value).tolist() == [n * (n + 1) / 2, -n * (n - 1) / 2]
    assert backend.all_reduce(value, "max").tolist() == [n, 0]
    assert backend.all_reduce(value, "min").tolist() == [1, 1 - n]
    assert value.tolist() == [1.0 + backend.rank, -float(backend.rank)]
    assert backend.all_gather_object(backend.rank) == list(range(n))


def check_unused(backend: Backend) -> None:
    """DDP: a parameter used on one rank counts once, one used nowhere gets no gradient."""
    module = torch.nn.ParameterDict({name: torch.ones(3) for name in ("all", "first", "none")})
    made = fresh(backend)
    made.setup(module, lambda p: torch.optim.SGD(p, lr=0.0), 1e9)
    loss = module["all"].sum() + (module["first"].sum() if backend.is_main else 0)
    made.backward(loss, last=True)
    assert module["all"].grad.tolist() == [backend.world_size] * 3
    assert module["first"].grad.tolist() == [1.0] * 3
    assert module["none"].grad is None


def main(mode: str, folder: Path, more: list[str]) -> None:
    offload = more == ["offload"]
    backend = launch(ParallelSection(mode, offload, timeout_minutes=1.5), bf16=False, threads=1)
    backend.setup(make_model(), adamw, MAX_NORM)
    if more and not offload:
        written = check_elsewhere(backend, [Path(other) for other in more])
    else:
        written = check_everything(backend, folder)
    if backend.is_main:
        (folder / "records.json").write_text(json.dumps(written))
    backend.close()


def check_everything(backend: Backend, folder: Path) -> list[dict[str, Any]]:
    check_collectives(backend)
    records = check_resume(backend, folder)
    final = check_full_state(backend)
    if backend.mode in ("zero2", "zero3", "fsdp2"):
        check_bf16(backend)
    if backend.mode == "ddp":
        check_unused(backend)
    if backend.is_main:
        save_tensors(folder / "final.safetensors", final)
    return records


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
