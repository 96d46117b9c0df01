"""Traces and boxes from a model behind a real server on loopback: only what several right answers agree on is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main
from data_tools.annotation import agreed
from tests.judge_server import JudgeServer, Reply, completion
from tests.media_files import write_video
from tests.unit.test_data_choose import record, write
from visd.data.manifest import load_manifest, sample_from_record
from visd.types import Box

DOG = "<obj>dog</obj><box>[0.1,0.1,0.5,0.5]</box>at<t>1.0</t>s"
DOG_TOO = "<obj>brown dog</obj><box>[0.12,0.1,0.5,0.52]</box>at<t>1.5</t>s"
CAT = "<obj>cat</obj><box>[0.6,0.6,0.9,0.9]</box>at<t>0.5</t>s"


def response(trace: str, answer: str = "this") -> str:
    return f"<think>{trace}</think><answer>{answer}</answer>"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", 16, 8)
    write(tmp_path / "m.jsonl", [record(n, "a.mp4") for n in range(4)] + [record(4, "a.mp4", rationale="seen")])
    return tmp_path


def command(world: Path, server: JudgeServer, *more: str) -> list[str]:
    place = ["--root", str(world), "--out", str(world / "out.jsonl"), "--base-url", server.url, "--model", "big"]
    pace = [
        "--samples",
        "3",
        "--agree",
        "2",
        "--backoff",
        "0.01",
        "--retries",
        "1",
        "--num-workers",
        "1",
        "--shard-rows",
        "2",
    ]
    return ["annotate", str(world / "m.jsonl"), *place, *pace, *more]


def asked(body: dict[str, Any]) -> int:
    """Which record a request is about."""
    return int(body["messages"][1]["content"][-1]["text"].split("?")[1].split()[0])


def script(number: int, body: dict[str, Any]) -> Reply:
    which, place = asked(body), seen(body)
    if which == 1:  # right once only
        return Reply(completion(response("I see.", "this" if place == 0 else "that")))
    if which == 2:  # never well formed
        return Reply(completion("this"))
    if which == 3 and place == 1:
        return Reply(status=500)
    claims = [f"First {DOG}, then {CAT}.", f"There is {DOG_TOO} to see.", "Nothing."][place]
    return Reply(completion(response(claims)))


ORDER: dict[int, list[int]] = {}


def seen(body: dict[str, Any]) -> int:
    """Which of a record's requests this is, by its seed, so that a retry is known."""
    seeds = ORDER.setdefault(asked(body), [])
    if body["seed"] not in seeds:
        seeds.append(body["seed"])
    return seeds.index(body["seed"])


def test_what_answers_agree_on_is_kept(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ORDER.clear()
    with JudgeServer(script) as server:
        assert main(command(world, server)) == 0
        assert "5 rows, 3 written, 2 dropped (2 no_agreement)" in capsys.readouterr().out
        body, count = server.requests[0], len(server.requests)
        assert main(command(world, server, "--agree", "1", "--overwrite")) == 0  # answers are on disk
        again = len(server.requests) - count
    assert again <= 2  # what failed before, and its retry
    text = body["messages"][1]["content"]
    assert text[0]["text"].startswith("Frame at 0.0 s") and text[1]["image_url"]["url"].startswith("data:image/jpeg")
    assert "What? " in text[-1]["text"] and "<video>" not in text[-1]["text"] and "this" not in text[-1]["text"]
    made = {sample.id: sample for sample in load_manifest(world / "out.jsonl", world)}
    assert made.keys() == {"r0", "r1", "r3", "r4"} and made["r4"].rationale == "seen"
    first = made["r0"]
    assert first.evidence.boxes == (Box(1.0, "dog", (0.1, 0.1, 0.5, 0.5)),) and first.evidence.frames == (1.0,)
    assert first.rationale == f"First {DOG}, then cat."
    assert first.meta["annotation"] == {"model": "big", "asked": 3, "right": 3, "claims": 2, "confirmed": 1}
    dropped = [json.loads(line) for line in (world / "out.jsonl.dropped.jsonl").read_text().splitlines()]
    assert [item["id"] for item in dropped] == ["r2"]


def test_a_server_that_gives_nothing_ends_it(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with JudgeServer(lambda number, body: Reply(b"no such model", status=404)) as server:
        assert main(command(world, server)) == 2
    told = capsys.readouterr().err
    assert "gave no answer to 6 requests" in told and "404" in told and not (world / "out.jsonl").exists()
    assert not (world / "out.jsonl.work").exists()


def test_a_broken_file_costs_its_record(world: Path) -> None:
    (world / "b.mp4").write_bytes(b"no video")
    write(world / "m.jsonl", [record(0, "a.mp4"), record(1, "b.mp4")])
    with JudgeServer(lambda number, body: Reply(completion(response("I see.")))) as server:
        assert main(command(world, server)) == 0
    [line] = (world / "out.jsonl.dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "r1" and json.loads(line)["reason"] == "unreadable"


def test_boxes_that_nobody_confirms_or_that_cannot_be_are_left_out() -> None:
    sample = sample_from_record(record(0, "a.mp4", meta={"duration": 2.0}), "m:1")
    late = DOG.replace("1.0", "9.0")
    everything = "<obj>scene</obj><box>[0,0,1,1]</box>at<t>1.0</t>s"
    for claims in ([DOG, ""], [late, late], [everything, everything], [DOG, DOG.replace("0.1,0.1", "0.4,0.4")]):
        found = agreed(sample, [response(f"I see {claim}.") for claim in claims], 2)
        assert found is not None and not found.boxes and "<box>" not in found.rationale
    assert agreed(sample, [response("x"), response("x", "other")], 2) is None
    kept = agreed(sample, [response(f"I see {DOG}."), response(f"I see {DOG_TOO}.")], 2)
    assert kept is not None and len(kept.boxes) == 1 and kept.right == 2
