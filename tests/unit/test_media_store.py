"""Frames on disk: whole or absent, shared, bounded, and never those of another file or setting."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.media_files import write_video
from tests.tree import ROOT
from visd.config import FramesSection, VideoSection
from visd.media import hashes as hashes_module
from visd.media import store as store_module
from visd.media.cache import FrameCache
from visd.media.errors import DecodeError
from visd.media.hashes import FileHashes
from visd.media.store import FrameStore, StoreSettings, entry_key
from visd.types import Frames, Media, VisdError

SETTINGS = VideoSection(fps=2, min_frames=4, max_frames=4, min_pixels=784, max_pixels=784)
CLIP = Media("video", "a.mp4")


def cache(tmp_path: Path, workers: int = 0, settings: VideoSection = SETTINGS) -> FrameCache:
    section = FramesSection(workers=workers, store=str(tmp_path / "store"))
    return FrameCache(tmp_path, settings, 28, section)


def frames(value: int, size: int = 28) -> Frames:
    return Frames(np.full((2, size, size, 3), value, np.uint8), (0.0, 0.1 + 0.2), (0, 7), 30000 / 1001, 1 / 3)


def opened(tmp_path: Path, limit: int = 10**9) -> FrameStore:
    return FrameStore(StoreSettings(tmp_path / "store", limit))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_second_run_decodes_nothing(tmp_path: Path, workers: int) -> None:
    write_video(tmp_path / "a.mp4")
    first, second = cache(tmp_path, workers), cache(tmp_path, workers)
    one, two = first.get(CLIP), second.get(CLIP)
    assert (first.counters.videos_decoded, second.counters.videos_decoded) == (1, 0)
    assert second.counters.videos_seen == 1
    assert np.array_equal(one.pixels, two.pixels)
    assert replace(one, pixels=two.pixels) == two


def test_everything_comes_back_exactly(tmp_path: Path) -> None:
    opened(tmp_path).save("ab12", frames(3))
    loaded = opened(tmp_path).load("ab12")
    assert loaded is not None and np.array_equal(loaded.pixels, frames(3).pixels)
    assert replace(loaded, pixels=None) == replace(frames(3), pixels=None)  # type: ignore[arg-type]
    assert opened(tmp_path).load("ab13") is None


def test_frames_are_mapped_not_read(tmp_path: Path) -> None:
    opened(tmp_path).save("ab12", frames(3, 1400))
    loaded = opened(tmp_path).load("ab12")
    assert loaded is not None
    mapped = Path("/proc/self/maps").read_text()
    assert "ab12.safetensors" in mapped
    next((tmp_path / "store").glob("ab/*")).unlink()
    assert (loaded.pixels == 3).all(), "a reader keeps what it has"


def test_a_key_is_all_that_decides_the_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4")
    copy = Path(shutil.copy(path, tmp_path / "b.mp4"))
    hashes = FileHashes(tmp_path / "hashes")
    key = entry_key(path, CLIP, SETTINGS, 28, hashes)
    assert entry_key(copy, replace(CLIP, path="b.mp4"), SETTINGS, 28, hashes) == key
    others = [
        entry_key(path, replace(CLIP, start=0.5), SETTINGS, 28, hashes),
        entry_key(path, replace(CLIP, end=1.5), SETTINGS, 28, hashes),
        entry_key(path, replace(CLIP, fps=1.0), SETTINGS, 28, hashes),
        entry_key(path, CLIP, replace(SETTINGS, max_frames=6), 28, hashes),
        entry_key(path, CLIP, replace(SETTINGS, total_pixels=10**6), 28, hashes),
        entry_key(path, CLIP, SETTINGS, 32, hashes),
    ]
    write_video(path, 24)
    others.append(entry_key(path, CLIP, SETTINGS, 28, hashes))
    monkeypatch.setattr(store_module, "VERSION", 2)
    others.append(entry_key(copy, CLIP, SETTINGS, 28, hashes))
    assert len({key, *others}) == 1 + len(others)
    assert entry_key(path, CLIP, replace(SETTINGS, timeout=1.0), 28, hashes) == entry_key(
        path, CLIP, SETTINGS, 28, hashes
    )


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    held = cache(tmp_path)
    before = held.get(CLIP)
    write_video(tmp_path / "a.mp4", 24, 4)
    assert held.get(CLIP).times != before.times


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = 2 * 280 * 280 * 3
    store = opened(tmp_path, limit=4 * size)
    for n in range(3):
        store.save(f"0{n}", frames(n, 280))
        os.utime(store._path(f"0{n}"), (n, n))
    assert store.load("00") is not None  # used now
    store.save("03", frames(3, 280))
    assert [n for n in range(4) if store._path(f"0{n}").exists()] == [0, 2, 3]
    held = sum(path.stat().st_size for path in (tmp_path / "store").glob("??/*"))
    assert held <= 4 * size


def test_an_entry_that_the_disk_has_lost_is_made_anew(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    whole = cache(tmp_path).get(CLIP)
    entry = next((tmp_path / "store").glob("??/*.safetensors"))
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    again = cache(tmp_path)
    assert np.array_equal(again.get(CLIP).pixels, whole.pixels) and again.counters.videos_decoded == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_stops_with_what_to_do(tmp_path: Path, workers: int) -> None:
    write_video(tmp_path / "a.mp4")
    key = entry_key(tmp_path / "a.mp4", CLIP, SETTINGS, 28, opened(tmp_path).hashes)
    (tmp_path / "store" / key[:2]).write_text("a file where a folder has to be")
    with pytest.raises(VisdError, match=r"data\.frames\.store: .* cannot be written"):
        cache(tmp_path, workers).get(CLIP)


def test_a_file_that_cannot_be_read_costs_its_sample_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *status: int) -> str:
        raise PermissionError(13, "Permission denied", path)

    write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(hashes_module, "file_digest", refuse)
    with pytest.raises(DecodeError, match="Permission denied") as caught:
        cache(tmp_path).get(CLIP)
    assert caught.value.reason == "unreadable"


def test_processes_that_write_and_make_room_at_once_leave_whole_entries_only(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.unit.test_media_store import *\n"
        "store = opened(Path(sys.argv[1]), 600_000)\n"
        "for n in range(60):\n"
        "    store.save(f'{n % 7}{n}', frames(n, 140))\n"
        "    found = store.load(f'{(n * 3) % 7}{n * 3 % 60}')\n"
        "    assert found is None or (found.pixels == n * 3 % 60).all()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    ran = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in ran:
        assert process.wait(120) == 0, process.stderr and process.stderr.read()
    store = opened(tmp_path)
    entries = list((tmp_path / "store").glob("??/*"))
    assert entries and all(path.suffix == ".safetensors" for path in entries)
    assert all(store.load(path.stem) is not None for path in entries)
    record = json.loads((tmp_path / "store" / "size.json").read_text())
    assert sum(path.stat().st_size for path in entries) <= record["bytes"] <= 600_000


def test_mapped_frames_make_the_same_tensors(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    plain = FrameCache(tmp_path, SETTINGS, 28, FramesSection(workers=0)).get(CLIP)
    cache(tmp_path).get(CLIP)
    mapped = cache(tmp_path).get(CLIP)
    assert torch.equal(torch.from_numpy(plain.pixels), torch.from_numpy(mapped.pixels))


def test_what_killed_processes_left_goes_after_an_hour(tmp_path: Path) -> None:
    script = (
        "import os, signal; from tests.unit.test_media_store import *\n"
        "def killed(*arguments):\n"
        "    Path(arguments[1]).write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store_module.save_file = killed\n"
        "opened(Path(sys.argv[1])).save('ab12', frames(3))\n"
    )
    for age in (3700, 0):
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT).returncode == -9
        left = [path for path in (tmp_path / "store").glob("ab/*.tmp") if path.stat().st_mtime > time.time() - 60]
        assert len(left) == 1
        os.utime(left[0], (time.time() - age,) * 2)
    opened(tmp_path).save("cd34", frames(4))
    assert [path.name for path in (tmp_path / "store").glob("??/*.tmp")] == [left[0].name], "a running writer's stays"


def test_no_process_counts_or_hashes_what_another_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(hashes_module, "SETTLED", -1.0)
    whole = cache(tmp_path).get(CLIP)

    def refuse(*arguments: object) -> None:
        raise AssertionError("this was known")

    monkeypatch.setattr(hashes_module, "file_digest", refuse)
    monkeypatch.setattr(FrameStore, "_entries", refuse)
    store_module.open_store.cache_clear()
    again = cache(tmp_path)
    assert np.array_equal(again.get(CLIP).pixels, whole.pixels) and again.counters.videos_decoded == 0
    opened(tmp_path).save("ab12", frames(3))
    held = sum(path.stat().st_size for path in (tmp_path / "store").glob("??/*"))
    assert json.loads((tmp_path / "store" / "size.json").read_text())["bytes"] == held


@pytest.mark.parametrize("text", ["", "{", '{"bytes": null, "swept": 0}', "[]"])
def test_a_damaged_record_of_the_size_is_made_anew(text: str, tmp_path: Path) -> None:
    opened(tmp_path).save("ab12", frames(3))
    (tmp_path / "store" / "size.json").write_text(text)
    opened(tmp_path).save("cd34", frames(4))
    held = sum(path.stat().st_size for path in (tmp_path / "store").glob("??/*"))
    assert json.loads((tmp_path / "store" / "size.json").read_text())["bytes"] == held


def test_a_hash_is_remembered_only_of_a_file_that_has_settled(tmp_path: Path) -> None:
    path, hashes = tmp_path / "a", FileHashes(tmp_path / "hashes")
    path.write_bytes(b"one")
    fresh = hashes.digest(path)
    assert not list((tmp_path / "hashes").glob("??/*"))
    time.sleep(hashes_module.SETTLED + 0.1)
    assert hashes.digest(path) == fresh and len(list((tmp_path / "hashes").glob("??/*"))) == 1


def test_a_changed_file_is_hashed_again_whatever_its_time_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes_module, "SETTLED", -1.0)
    path, hashes = tmp_path / "a", FileHashes(tmp_path / "hashes")
    found = []
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        found += [hashes.digest(path), hashes.digest(path)]
    assert found[0] == found[1] != found[2] == found[3]
    for record in (tmp_path / "hashes").glob("??/*"):
        os.utime(record, (1, 1))
    hashes.forget_old()
    assert not list((tmp_path / "hashes").glob("??/*"))
