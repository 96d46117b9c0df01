"""Running out of memory names the phase, the samples and what to change, wherever it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import groups_with_advantages, small_run
from visd.policy import policy as policy_module
from visd.policy.oom import HELP, OutOfMemory, memory_of
from visd.train.loop import train
from visd.train.run import Run
from visd.train.sft import train_sft
from visd.train.teach import teacher_scores
from visd.train.update import update_policy

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB")
CPU = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def fails(error: Exception) -> Callable[..., Any]:
    def forward(*arguments: Any, **options: Any) -> Any:
        raise error

    return forward


def update(run: Run) -> None:
    update_policy(run, groups_with_advantages(run), {}, {}, 0)


def teach(run: Run) -> None:
    teacher_scores(run, groups_with_advantages(run), 0)


PHASES: dict[str, tuple[Callable[[Run], None], Callable[[Run, pytest.MonkeyPatch, Exception], None]]] = {
    "encode": (train, lambda run, patch, error: patch.setattr(policy_module, "encode_media", fails(error))),
    "rollout": (train, lambda run, patch, error: patch.setattr(run.policy.model, "language_output", fails(error))),
    "teacher": (teach, lambda run, patch, error: patch.setattr(run.policy.model, "forward", fails(error))),
    "update": (update, lambda run, patch, error: patch.setattr(run.policy.model, "forward", fails(error))),
    "optimizer": (update, lambda run, patch, error: patch.setattr(run.backend, "step", fails(error))),
}


@pytest.mark.parametrize("error", [GPU, CPU, MemoryError()], ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize("phase", PHASES)
def test_each_phase_says_what_to_change(
    phase: str,
    error: Exception,
    small_world: Path,
    tiny_qwen2_5_vl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=visd")
    work, break_it = PHASES[phase]
    break_it(run, monkeypatch, error)
    with pytest.raises(OutOfMemory) as caught:
        work(run)
    said = str(caught.value)
    assert said.startswith(f"out of memory in the {phase}") and HELP[phase] in said
    assert caught.value.__cause__ is error
    if phase != "optimizer":
        assert any(sample.id in said for sample in run.sampler.batch(0))
    if error is GPU:
        assert "(CUDA out of memory. Tried to allocate 2.00 GiB)" in said


def test_supervised_training_says_so_too(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "stage=sft", "data.train=[sft_train.jsonl]")
    monkeypatch.setattr(run.policy.model, "forward", fails(GPU))
    with pytest.raises(OutOfMemory, match="in the update of sample") as caught:
        train_sft(run)
    assert any(sample.id in str(caught.value) for sample in run.sampler.batch(0))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_of("update", ["a"]):
        raise RuntimeError("shapes differ")
