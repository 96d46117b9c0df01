"""Every broken file is found with its reason, no sound one is, and what hangs or crashes costs one file."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from data_tools import probe
from data_tools.__main__ import main
from data_tools.fingerprints import alike
from data_tools.media import Facts, probe_file
from data_tools.probe import Order
from scripts.bench.frames import write_clip
from scripts.bench.probe import break_copies, sound_copies
from tests.media_files import write_sound, write_video


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def treacherous(order: Order) -> Facts:
    """In place of `open_file`: some names do what a decoder with a bug does."""
    if order.path.name.startswith("hang"):
        time.sleep(600)
    if order.path.name.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if order.path.name.startswith("greedy"):
        return Facts(float(np.ones((600, 1000, 1000), np.uint8).sum()), 0, 0, 0, 0, "", 0, 0, "")
    return probe_file(order.path, order.kind, order.seconds, order.frames)


def test_all_broken_files_are_found_and_none_of_the_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    sound_copies(root, 60)
    expected = break_copies(root, 12, seed=1)
    write_sound(root / "audio.mp4")
    expected["audio.mp4"] = "no_video_stream"
    for name, reason in (("hang", "timeout"), ("crash", "crashed"), ("greedy", "memory")):
        os.link(root / "00000.mp4", root / f"{name}.mp4")
        expected[f"{name}.mp4"] = reason
    Image.new("RGB", (30, 20), "red").save(root / "picture.png")
    (root / "outside.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    expected["outside.mp4"] = "outside_root"
    monkeypatch.setattr(probe, "open_file", treacherous)
    monkeypatch.setattr(probe, "GRACE", 0.0)
    command = ["probe", "--root", str(root), "--out", str(tmp_path / "p.jsonl"), "--num-workers", "2"]
    assert main([*command, "--timeout", "8", "--memory-mb", "300", "--shard-rows", "16"]) == 1
    quarantine = {line["path"]: line["reason"] for line in lines(tmp_path / "p.jsonl.quarantine.jsonl")}
    assert quarantine == expected
    found = {line["path"]: line for line in lines(tmp_path / "p.jsonl")}
    assert {name for name, line in found.items() if line["status"] == "ok"} == set(found) - set(expected)
    assert len(found) == 60 + 6 and found["picture.png"]["width"] == 30
    assert "66 files, 49 sound, 17 broken" in capsys.readouterr().out
    assert not (tmp_path / "p.jsonl.work").exists()


def test_what_is_said_of_a_sound_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 20, 8, options={"g": "8", "sc_threshold": "0"}, rotation=90)
    facts = probe_file(path, "video", 20.0)
    assert (facts.frames, facts.width, facts.height, facts.codec) == (20, 48, 64, "h264")
    assert facts.duration == pytest.approx(2.5) and facts.fps == 8 and facts.keyframes == 3
    assert facts.keyframe_gap == pytest.approx(1.0)


def test_copies_of_a_video_are_alike_and_others_are_not(tmp_path: Path) -> None:
    prints = []
    for number in range(6):
        write_clip(tmp_path / "one.mp4", number, seconds=2, fps=8, size=(160, 120))
        with av.open(str(tmp_path / "one.mp4")) as source, av.open(str(tmp_path / "copy.mp4"), "w") as target:
            stream = target.add_stream("libx264", rate=8)
            stream.width, stream.height, stream.pix_fmt, stream.options = 96, 72, "yuv420p", {"crf": "28"}
            for frame in source.decode(video=0):
                target.mux(stream.encode(frame.reformat(96, 72)))
            target.mux(stream.encode())
        for name in ("one.mp4", "copy.mp4"):
            text = probe_file(tmp_path / name, "video", 20.0).fingerprint
            prints.append([int(text[i : i + 16], 16) for i in (0, 16, 32)])
    dull = [[0, 0, 0]] * 2
    labels = alike(np.array(prints + dull, np.uint64))
    assert labels.tolist() == [number // 2 * 2 for number in range(12)] + [12, 13]


def test_manifests_name_the_files(small_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    assert main(["probe", str(small_world / "train.jsonl"), "--root", str(small_world), "--out", str(out)]) == 0
    wanted = [json.loads(line)["media"][0]["path"] for line in (small_world / "train.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines(out)] == list(dict.fromkeys(wanted))
    assert main(["probe", "--root", str(small_world), "--out", str(out)]) == 2
