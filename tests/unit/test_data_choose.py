"""split, mix, sample and filter: whole videos, exact proportions, the same choice for the same seed, a reason for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.__main__ import main
from data_tools.choose import filled, quotas, shares_of, smallest
from eval.results import Attempt, QuestionResult, to_line
from visd.data.manifest import load_manifest
from visd.types import VisdError

Record = dict[str, Any]


def record(number: int, video: str, source: str = "s", **more: Any) -> Record:
    return {
        "id": f"r{number}",
        "source": source,
        "family": f"f{number % 3}",
        "media": [{"kind": "video", "path": path} for path in video.split("+") if path],
        "messages": [{"role": "user", "content": "<video>" * len(video.split("+")) * bool(video) + f"What? {number}"}],
        "answer": {"type": "word", "value": "this"},
        **more,
    }


def write(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    return path


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """240 records of 60 videos; two of them are of two videos each."""
    records = [record(n, f"v{n % 60}.mp4", "ab"[n % 4 == 0], meta={"scene": n % 6}) for n in range(240)]
    records += [record(240, "v1.mp4+v2.mp4"), record(241, "v2.mp4+v3.mp4")]
    return write(tmp_path / "all.jsonl", records)


def test_no_video_is_in_two_splits(manifest: Path, tmp_path: Path) -> None:
    shares = ["--shares", "train=0.8,validation=0.1,test=0.1"]
    found = []
    for name, more in (("a", ["--num-workers", "2", "--shard-rows", "50"]), ("b", []), ("c", ["--seed", "1"])):
        assert main(["split", str(manifest), "--out", str(tmp_path / name), *shares, *more]) == 0
        splits = {split: read(tmp_path / name / f"{split}.jsonl") for split in ("train", "validation", "test")}
        videos = {split: {m["path"] for r in of for m in r["media"]} for split, of in splits.items()}
        assert sum(len(of) for of in splits.values()) == 242
        assert len(set.union(*videos.values())) == sum(len(of) for of in videos.values()) == 60
        assert abs(len(splits["train"]) - 0.8 * 242) <= 12 and abs(len(splits["test"]) - 0.1 * 242) <= 12
        found.append({split: [r["id"] for r in of] for split, of in splits.items()})
    assert found[0] == found[1] != found[2]


def test_a_scene_stays_together(manifest: Path, tmp_path: Path) -> None:
    command = ["split", str(manifest), "--out", str(tmp_path / "s"), "--shares", "one=1,two=1", "--by", "meta.scene"]
    assert main(command) == 2  # two records have no scene
    write(manifest, read(manifest)[:240])
    assert main(command) == 0
    one, two = ({r["meta"]["scene"] for r in read(tmp_path / "s" / f"{name}.jsonl")} for name in ("one", "two"))
    assert not one & two and len(one | two) == 6


def test_copies_of_a_video_stay_together(tmp_path: Path) -> None:
    prints = ["0f0f" * 4 + "1234" * 4 + f"{'5678' * 3}{n:04x}" for n in (0x5678, 0x5679, 0xFFFF, 0x5670)]
    prints[2] = "f0f1" * 12
    facts = {"duration": 1.0, "fps": 8, "frames": 8, "width": 8, "height": 8, "status": "ok"}
    probe = write(
        tmp_path / "p.jsonl", [{"path": f"v{n}.mp4", "fingerprint": t, **facts} for n, t in enumerate(prints)]
    )
    manifest = write(tmp_path / "m.jsonl", [record(n, f"v{n}.mp4") for n in range(4)])
    command = ["split", str(manifest), "--out", str(tmp_path / "s"), "--shares", "a=3,b=1", "--probe", str(probe)]
    assert main(command) == 0
    assert [r["id"] for r in read(tmp_path / "s" / "b.jsonl")] == ["r2"]


def test_mix_keeps_proportions(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mixed.jsonl"
    command = ["mix", str(manifest), "--out", str(out), "--overwrite"]
    assert main([*command, "--weights", "a=1,b=2,s=0", "--records", "60"]) == 0
    sources = [r["source"] for r in read(out)]
    assert (sources.count("a"), sources.count("b"), len(sources)) == (20, 40, 60)
    assert main([*command, "--weights", "a=1,b=1,s=0"]) == 0 and len(read(out)) == 120  # there are 60 of b
    assert main([*command, "--weights", "a=1,b=1"]) == 2 and "'s' has none" in capsys.readouterr().err
    assert main([*command, "--weights", "a=1,b=9,s=0", "--records", "200"]) == 2
    assert "at most 66 can be had" in capsys.readouterr().err


def test_samples_of_a_seed_lie_within_each_other(manifest: Path, tmp_path: Path) -> None:
    drawn = []
    for name, more in (
        ("a", ["--records", "20"]),
        ("b", ["--records", "50"]),
        ("c", ["--records", "20", "--seed", "3"]),
    ):
        assert main(["sample", str(manifest), "--out", str(tmp_path / f"{name}.jsonl"), *more]) == 0
        drawn.append({r["id"] for r in read(tmp_path / f"{name}.jsonl")})
    assert [len(d) for d in drawn] == [20, 50, 20] and drawn[0] < drawn[1] and drawn[2] != drawn[0]
    out = tmp_path / "each.jsonl"
    assert main(["sample", str(manifest), "--out", str(out), "--records", "5", "--each", "family"]) == 0
    assert sorted(r["family"] for r in read(out)) == ["f0"] * 5 + ["f1"] * 5 + ["f2"] * 5


def test_numbers_behind_the_choices() -> None:
    assert quotas(10, [1, 1, 1]) == [4, 3, 3] and quotas(7, [0.5, 0.5]) == [4, 3]
    assert filled(None, [1, 2], [10, 8]) == [4, 8]
    with pytest.raises(VisdError, match="at most 12"):
        filled(20, [1, 2], [10, 8])
    assert smallest(np.array([5, 1, 3], np.uint64), 2).tolist() == [False, True, True]
    labels, lots = np.array([0, 0, 2, 2]), np.array([9, 1, 5, 6], np.uint64)
    assert shares_of(labels, lots, {"a": 1, "b": 1}).tolist() == [0, 0, 1, 1]


def result(name: str, right: list[bool]) -> QuestionResult:
    attempts = tuple(Attempt("t", 0, float(r), r, {}, False, 3) for r in right)
    return QuestionResult(name, "f", "word", "this", (), attempts)


def test_filter_says_of_each_record_why_it_went(manifest: Path, tmp_path: Path) -> None:
    rates = {0: [True] * 4, 1: [False] * 4}
    answers = [result(f"r{n}", rates.get(n, [True, False, False, False])) for n in range(242)]
    (tmp_path / "samples.jsonl").write_text("".join(to_line(a) + "\n" for a in answers))
    bad = {"path": "v5.mp4", "reason": "truncated", "message": "breaks off"}
    write(tmp_path / "q.jsonl", [bad])
    records = read(manifest)
    records[2]["messages"][0]["content"] += "x" * 500
    records[3]["meta"]["difficulty"] = 0.95
    records[4]["media"][0] |= {"start": 1.0, "end": 61.0}
    for item in records:
        item.setdefault("meta", {}).setdefault("difficulty", 0.5)
        item["media"][0].setdefault("end", 5.0)
        if len(item["media"]) > 1:
            item["media"][1]["end"] = 5.0
    write(manifest, records)
    out = tmp_path / "kept.jsonl"
    choices = ["--quarantine", str(tmp_path / "q.jsonl"), "--question-chars", ":200", "--difficulty", "0.1:0.9"]
    command = ["filter", str(manifest), "--out", str(out), "--pass-rate", str(tmp_path / "samples.jsonl"), *choices]
    assert main([*command, "--seconds", ":30", "--num-workers", "2", "--shard-rows", "60"]) == 0
    dropped = {item["id"]: (item["reason"], item["message"]) for item in read(tmp_path / "kept.jsonl.dropped.jsonl")}
    assert {name: reason for name, (reason, _) in dropped.items()} == {
        "r0": "pass_rate", "r1": "pass_rate", "r2": "question_chars", "r3": "difficulty", "r4": "seconds",
        "r5": "quarantine", "r65": "quarantine", "r125": "quarantine", "r185": "quarantine",
    }  # fmt: skip
    assert "all of the sampled" in dropped["r0"][1] and "none of the sampled" in dropped["r1"][1]
    kept = load_manifest(out, tmp_path)
    assert (
        len(kept) == 242 - len(dropped) and json.loads((tmp_path / "kept.jsonl.report.json").read_text())["rows"] == 242
    )
    hard = ["filter", str(manifest), "--out", str(out), "--overwrite", "--pass-rate", str(tmp_path / "samples.jsonl")]
    assert main([*hard, "--keep-rate", "0:0"]) == 0 and [r["id"] for r in read(out)] == ["r1"]


def test_filter_refuses_what_it_cannot_know(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "samples.jsonl").write_text(to_line(result("r0", [True, False])) + "\n")
    out = ["--out", str(tmp_path / "kept.jsonl")]
    for arguments, said in (
        (["--pass-rate", str(tmp_path / "samples.jsonl")], "'r1' is not among the answers"),
        (["--seconds", ":10"], "give --probe"),
        (["--max-tokens", "10"], "give --settings"),
        ([], "nothing to filter by"),
    ):
        assert main(["filter", str(manifest), *out, *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("kept")]


def test_filter_asks_the_policy_and_counts_tokens(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "few.jsonl", read(small_world / "train.jsonl")[:4])
    out, probe = tmp_path / "kept.jsonl", tmp_path / "p.jsonl"
    assert main(["probe", str(train), "--root", str(small_world), "--out", str(probe)]) == 0
    settings = ["experiment=demo", f"model.path={tiny_qwen2_5_vl}", f"data.root={small_world}"]
    counted = ["--probe", str(probe), "--settings", *settings]
    assert main(["filter", str(train), "--out", str(out), "--max-tokens", "100000", *counted]) == 0
    assert len(read(out)) == 4
    lengths = tokens_of(train, small_world, settings)
    limit = sorted(lengths.values())[1]
    assert main(["filter", str(train), "--out", str(out), "--overwrite", "--max-tokens", str(limit), *counted]) == 0
    assert {r["id"] for r in read(out)} == {name for name, length in lengths.items() if length <= limit}
    policy = ["--policy", str(tiny_qwen2_5_vl), "--samples", "2", "--root", str(small_world), "--keep-rate", "0:1"]
    more = ["--eval", "max_new_tokens=4", "threads=1", "frames.workers=0", "prompt.video.min_frames=4"]
    assert main(["filter", str(train), "--out", str(out), "--overwrite", *policy, *more]) == 0
    answers = read(tmp_path / "kept.jsonl.answers" / "few" / "samples.jsonl")
    assert len(read(out)) == len(answers) == 4 and len(answers[0]["sampled"]) == 2


def tokens_of(manifest: Path, root: Path, settings: list[str]) -> dict[str, int]:
    """By the prompts themselves."""
    from visd.cli import compose_config
    from visd.config import FramesSection, load
    from visd.data.prompts import PromptBuilder
    from visd.media.processor import PromptProcessor

    config = load(compose_config(settings))
    processor = PromptProcessor.load(config.model.path, config.prompt, root, FramesSection(workers=0))
    builder = PromptBuilder(processor, config.prompt)
    return {sample.id: len(builder.build(sample.question())) for sample in load_manifest(manifest, root)}
