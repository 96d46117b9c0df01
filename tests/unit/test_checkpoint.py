"""A checkpoint is whole or not there: killed writers, full disks, damaged files, other runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tree import ROOT
from visd.parallel.place import Place
from visd.parallel.single import SingleProcess
from visd.parallel.storage import load_tensors, save_tensors
from visd.train.checkpoint import MANIFEST, CheckpointStore, TrainState, Writer
from visd.types import VisdError

IDENTITY: dict[str, Any] = {"model": "abc", "optim.betas": (0.9, 0.95), "teacher.weights": "ema"}


def store_in(folder: Path, keep: int = 0) -> CheckpointStore:
    backend = SingleProcess(Place(), torch.device("cpu"), False)
    backend.setup(nn.Linear(3, 2), lambda p: torch.optim.AdamW(p), 1.0)
    return CheckpointStore(folder, keep, backend)


def state_at(step: int) -> TrainState:
    return TrainState(step, step - 1, IDENTITY, {"dropped": 2}, {"gate": [1.5, None]})


def writers(value: float = 1.0) -> dict[str, Writer]:
    return {
        "backend": lambda folder: save_tensors(folder / "weights.safetensors", {"w": torch.full((100,), value)}),
        "teacher": lambda folder: save_tensors(folder / "rank_00000.safetensors", {"w": torch.full((9,), value)}),
    }


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    path = store.write(state_at(7), writers(3.0))
    assert path == store.latest() == tmp_path / "checkpoints" / "step_000007"
    assert store.load(path, IDENTITY) == TrainState(
        7, 6, {**IDENTITY, "optim.betas": [0.9, 0.95]}, {"dropped": 2}, {"gate": [1.5, None]}
    )
    assert load_tensors(path / "backend" / "weights.safetensors")["w"].tolist() == [3.0] * 100
    manifest = json.loads((path / MANIFEST).read_text())
    assert sorted(manifest["files"]) == ["backend/weights.safetensors", "state.json", "teacher/rank_00000.safetensors"]
    assert manifest["versions"]["torch"].startswith("2.") and manifest["world_size"] == 1 and manifest["step"] == 7


def test_keeps_the_newest(tmp_path: Path) -> None:
    store = store_in(tmp_path, keep=2)
    for step in (1, 2, 10, 9, 1000000):
        store.write(state_at(step), writers())
    assert names(store) == ["step_000010", "step_1000000"]
    assert store.latest() == store.folder / "step_1000000"


def test_keep_zero_keeps_all(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for step in range(1, 6):
        store.write(state_at(step), writers())
    assert len(names(store)) == 5


def test_the_same_step_again_replaces_the_old_one(tmp_path: Path) -> None:
    store = store_in(tmp_path, keep=2)
    store.write(state_at(3), writers(1.0))
    path = store.write(state_at(3), writers(2.0))
    assert load_tensors(path / "backend" / "weights.safetensors")["w"][0] == 2.0
    assert names(store) == ["step_000003"]


def test_an_incomplete_folder_is_ignored_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_in(tmp_path)
    whole = store.write(state_at(1), writers())
    newer = store.write(state_at(2), writers())
    (newer / MANIFEST).unlink()
    (store.folder / "step_notes").mkdir()
    with caplog.at_level(logging.WARNING):
        assert store.latest() == whole
    assert "step_000002" in caplog.text and "ignored" in caplog.text and "notes" not in caplog.text
    with pytest.raises(VisdError, match=r"manifest\.json cannot be read.*no complete checkpoint"):
        store.load(newer, IDENTITY)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert store_in(tmp_path).latest() is None


def test_a_start_removes_leftovers_and_later_steps(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for step in (1, 2, 3):
        store.write(state_at(step), writers())
    (store.folder / ".tmp-step_000004" / "backend").mkdir(parents=True)
    (store.folder / ".tmp-old-step_000001").mkdir()
    store.clean(after=2)
    assert names(store) == ["step_000001", "step_000002"]


def damage_cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damage_cut, "bytes instead of"), (damage_flip, "was modified"), (Path.unlink, "is missing")],
)
@pytest.mark.parametrize("name", ["backend/weights.safetensors", "teacher/rank_00000.safetensors", "state.json"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, message: str, name: str) -> None:
    store = store_in(tmp_path)
    path = store.write(state_at(1), writers())
    damage(path / name)
    with pytest.raises(VisdError, match=rf"{name}.*{message}.*delete .*step_000001 and resume from another"):
        store.load(path, IDENTITY)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "files": {}}', '{"format": 2}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    store = store_in(tmp_path)
    path = store.write(state_at(1), writers())
    (path / MANIFEST).write_text(text)
    with pytest.raises(VisdError, match=r"manifest\.json"):
        store.load(path, IDENTITY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "xyz"}, "written with model = 'abc', this run has 'xyz'"),
        ({"teacher.weights": "live"}, "teacher.weights = 'ema', this run has 'live'"),
        ({"optim.betas": (0.9, 0.99)}, r"optim.betas = \[0.9, 0.95\], this run has \[0.9, 0.99\]"),
        ({"new.field": 1}, "new.field = None, this run has 1"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store = store_in(tmp_path)
    path = store.write(state_at(1), writers())
    with pytest.raises(VisdError, match=message):
        store.load(path, IDENTITY | change)


def full_device(folder: Path) -> None:
    """The kernel's own full disk."""
    with Path("/dev/full").open("w") as file:
        file.write("x")


def no_space(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


@pytest.mark.parametrize("writer", [full_device, no_space])
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, writer: Writer) -> None:
    store = store_in(tmp_path, keep=1)
    whole = store.write(state_at(1), writers())
    with pytest.raises(VisdError, match=r"step_000002 could not be written.*No space left.*whole one is .*step_000001"):
        store.write(state_at(2), {**writers(), "model": writer})
    assert names(store) == ["step_000001"]
    assert store.latest() == whole
    store.load(whole, IDENTITY)
    store.write(state_at(2), writers())  # and the next one works
    assert names(store) == ["step_000002"]


def test_a_disk_that_is_full_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(VisdError, match="there is none yet"):
        store_in(tmp_path).write(state_at(1), {"backend": no_space})


def big_write(command: list[str], folder: Path, limit: int) -> str:
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.unit.big_writer", str(folder), str(limit)],
        cwd=ROOT,
        timeout=100,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_cut_short_by_the_kernel(tmp_path: Path) -> None:
    """A real short write: the kernel takes part of the file and refuses the rest."""
    out = big_write([], tmp_path, 50000)
    assert "step_000002 could not be written" in out and "File too large" in out
    assert "['step_000001']" in out


def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mount, f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"], capture_output=True).returncode:
        pytest.skip("this machine lets no test mount a file system")
    out = big_write([*mount, f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"', "sh"], tmp_path, 0)
    assert "step_000002 could not be written" in out and "No space left on device" in out
    assert "['step_000001']" in out


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """After each SIGKILL the newest checkpoint loads whole and is no older than the last one reported as written."""
    code = "from tests.unit.killed_writer import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "40"], cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rounds"] == 40
    assert report["steps"] > 20  # children got on between kills
    assert report["left_temporary"] > 5  # and many were hit inside a write
