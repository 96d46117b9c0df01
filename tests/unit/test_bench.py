"""A benchmark run: records, means and intervals, resuming, shards, reports, comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval import benchmarks
from eval.bench import (
    BenchConfig,
    answer_items,
    decoding,
    fingerprint,
    finished,
    load_items,
    parse,
    prompt_hash,
    prompt_section,
    run,
    write_results,
)  # fmt: skip
from eval.bench_results import Answered, Record, Tables, record_from, summarise, to_line
from eval.benchmarks.base import Benchmark, Item
from eval.compare import compare, show
from eval.shards import shard_file
from tests.bench_files import WRITERS
from tests.parrot import Builder, Parrot
from visd.config import ConfigError
from visd.types import VisdError


def config(**changes: object) -> BenchConfig:
    fields = {"model": "m", "benchmark": "gsm8k", "root": "r", "out": "o", **changes}
    return BenchConfig(**fields)  # type: ignore[arg-type]


def record(name: str, scores: dict[str, float], unit: str = "", **categories: str) -> Record:
    answer = Answered("", False, 1, "plain", None, scores)
    return Record(name, unit or name, categories, None, [answer])


def records_of(
    name: str, root: Path, answers: dict[str, list[str]], **changes: object
) -> tuple[Benchmark, list[Record]]:
    benchmark = benchmarks.load(name)
    items = load_items(benchmark, root)
    engine = Parrot({item.id: answers.get(item.id, [""] * 8) for item in items})
    asked = answer_items(engine, Builder(), items, benchmark, benchmark.protocols["official"], config(**changes))
    return benchmark, list(asked)


def test_answers_are_read_scored_and_counted(tmp_path: Path) -> None:
    WRITERS["videomme"](tmp_path)
    said = {"001-1": ["<answer>C</answer>"], "001-2": ["<think>C, I think"], "001-3": ["<answer>Z</answer>"]}
    benchmark, records = records_of("videomme", tmp_path, said)
    result = summarise(records, benchmark, 0)
    assert result.score.mean == pytest.approx(1 / 3) and result.questions == 3
    assert result.statuses == {"tagged": 1, "truncated": 1, "unreadable": 1}
    assert result.truncated.mean == pytest.approx(1 / 3)
    assert result.by_category["duration"]["short"].mean == 1 and result.by_category["duration"]["long"].mean == 0
    assert [record_from(json.loads(to_line(r)), "x") for r in records] == records


def test_a_dropped_question_stays_in_the_denominator(tmp_path: Path) -> None:
    benchmark = benchmarks.load("gsm8k")
    items = [Item("bad", "?", "number", 1.0), Item("good", "?", "number", 1.0)]
    engine = Parrot({"good": ["<answer>1</answer>"]})
    asked = answer_items(engine, Builder(), items, benchmark, benchmark.protocols["official"], config())
    result = summarise(list(asked), benchmark, 0)
    assert result.score.mean == 0.5 and result.dropped == {"decode": 1} and result.statuses["dropped"] == 1


def test_several_answers_give_pass_at_k_and_a_majority(tmp_path: Path) -> None:
    WRITERS["videomme"](tmp_path)
    said = {"001-1": [f"<answer>{a}</answer>" for a in "CCAB"], "001-2": [f"<answer>{a}</answer>" for a in "ABBC"]}
    said["001-3"] = ["<answer>A</answer>"] * 4
    benchmark, records = records_of("videomme", tmp_path, said, samples=4)
    result = summarise(records, benchmark, 0)
    # right: 2, 1 and 0 of 4; pass@2 = 1 - C(2,2)/6, 1 - C(3,2)/6, 0; the votes are C, B and A
    assert result.score.mean == pytest.approx(3 / 12) == result.several["pass@1"].mean
    assert result.several["pass@2"].mean == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert result.several["pass@4"].mean == pytest.approx(2 / 3)
    assert result.several["majority@4"].mean == pytest.approx(1 / 3)


def test_macro_means_and_merged_tasks() -> None:
    tasks = {"object_counting": [0.5], "object_rel_direction_easy": [1.0, 1.0], "object_rel_direction_hard": [0.0]}
    records = [record(f"{t}{i}", {"score": v}, task=t) for t, values in tasks.items() for i, v in enumerate(values)]
    result = summarise(records, benchmarks.load("vsibench"), 0)
    assert result.score.mean == pytest.approx((0.5 + (1.0 + 0.0) / 2) / 2)  # not the mean of four, nor of three tasks


def test_means_over_units_that_have_several_questions() -> None:
    pairs = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    records = []
    for i, (qa, iop) in enumerate(pairs):
        records.append(record(f"{i}a", {"qa": qa}, unit=str(i)))
        records.append(
            record(f"{i}b", {n: iop for n in ("iop", "iou", "iop@0.3", "iop@0.5", "iou@0.3", "iou@0.5")}, unit=str(i))
        )
    result = summarise(records, benchmarks.load("nextgqa"), 0)
    assert result.scores["acc@gqa"].mean == pytest.approx(1 / 3) and result.scores["acc@qa"].mean == pytest.approx(
        2 / 3
    )
    assert result.scores["acc@gqa"].n == 3


def test_vstar_in_both_ways_of_counting() -> None:
    records = []
    for i, (what, value) in enumerate([(1.0, 0.5), (0.0, 0.0)]):
        answered = float(i == 0)
        parts = [{"what": what, "answered": answered}]
        parts += [
            {f"{c}_{m}": value for m in ("compatible", "strict")} for c in ("when_1", "when_2", "where_1", "where_2")
        ]
        records += [record(f"{i}{j}", scores, unit=str(i)) for j, scores in enumerate(parts)]
    scores = summarise(records, benchmarks.load("vstar"), 0).scores
    assert scores["mAM_strict"].mean == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert scores["mAM_compatible"].mean == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert scores["mLGM_strict"].mean == pytest.approx(-(np.log(0.5) + 2 * np.log(0.75)) / 3)


def test_intervals_resample_units_not_questions() -> None:
    values = np.random.default_rng(0).integers(0, 2, 40)
    alone = [record(f"{i}_{j}", {"accuracy": float(v)}) for i, v in enumerate(values) for j in range(10)]
    together = [replace(r, unit=r.id.split("_")[0]) for r in alone]
    narrow, wide = (summarise(part, benchmarks.load("gsm8k"), 0).score for part in (alone, together))
    assert narrow.mean == wide.mean
    width = [(i.high or 0) - (i.low or 0) for i in (narrow, wide)]
    assert width[1] > 2 * width[0]  # ten copies of a question are no ten questions
    assert width[1] == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(40), rel=0.1)


def test_results_and_reports_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WRITERS["videomme"](tmp_path)
    benchmark, records = records_of("videomme", tmp_path, {"001-1": ["C"]})
    settings = config(benchmark="videomme", video={"max_frames": 8.0})
    protocol = benchmark.protocols["official"]
    write_results(tmp_path, settings, benchmark, protocol, prompt_section(settings, protocol), "hash", records)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["protocol"]["prompt"]["video"]["max_frames"] == 8 and document["protocol"]["changed"] == ["video"]
    assert document["prompt_hash"] == "hash" and "torch" in document["versions"]
    assert document["result"]["score"]["mean"] == 0.0  # "C" without an end was cut off
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Video-MME" in text and "read: truncated" in text and "video changed" in text and "By duration" in text
    assert "By duration" in capsys.readouterr().out


def fake_run(folder: Path, values: list[float], protocol: str = "official") -> Path:
    benchmark = benchmarks.load("gsm8k")
    folder.mkdir()
    records = [record(f"q{i}", {"accuracy": v}) for i, v in enumerate(values)]
    (folder / "samples.jsonl").write_text("".join(to_line(r) + "\n" for r in records))
    settings = config(protocol=protocol)
    chosen = benchmark.protocols[protocol]
    write_results(folder, settings, benchmark, chosen, prompt_section(settings, chosen), protocol, records)
    return folder


def test_two_runs_are_compared_question_by_question(tmp_path: Path) -> None:
    base = [float(i % 2) for i in range(40)]
    better = [1.0 if i < 10 else v for i, v in enumerate(base)]  # 5 more right, none lost
    found = compare(fake_run(tmp_path / "a", base), fake_run(tmp_path / "b", better))
    a, b, difference = found.rows["accuracy"]
    assert (a, b, difference.mean) == (0.5, 0.625, 0.125) and difference.low is not None and difference.low > 0
    assert found.test is not None and (found.test.only_first, found.test.only_second) == (0, 5)
    assert found.test.p == pytest.approx(2 / 32) and found.warnings == ()
    assert "+0.125 [" in show(found) and "p = 0.0625" in show(found)


def test_runs_that_may_not_be_compared(tmp_path: Path) -> None:
    one, short = fake_run(tmp_path / "a", [1.0, 0.0]), fake_run(tmp_path / "b", [1.0])
    with pytest.raises(VisdError, match="1 questions are in one run only, the first is 'q1'"):
        compare(one, short)
    with pytest.raises(VisdError, match=r"holds no results\.json"):
        compare(one, tmp_path)
    other = compare(one, fake_run(tmp_path / "c", [1.0, 0.0], "open_o3"))
    assert any("prompts differ" in text for text in other.warnings) and "Warning: the protocols differ" in show(other)


def test_a_run_goes_on_and_shards_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["videomme"](tmp_path / "root")
    asked: list[str] = []

    def answer(settings, benchmark, protocol, section, items, done):  # type: ignore[no-untyped-def]
        asked.extend(item.id for item in items)
        engine = Parrot({item.id: ["<answer>C</answer>"] for item in items})
        with shard_file(Path(settings.out), settings.shard).open("a") as handle:
            for made in answer_items(engine, Builder(), items, benchmark, protocol, settings):
                handle.write(to_line(made) + "\n")

    monkeypatch.setattr("eval.bench._answer", answer)
    base = config(benchmark="videomme", root=str(tmp_path / "root"), out=str(tmp_path / "out"))
    run(replace(base, shard="0/2"))
    assert asked == ["001-1", "001-3"] and not (tmp_path / "out" / "results.json").exists()
    run(replace(base, shard="1/2"))
    assert asked == ["001-1", "001-3", "001-2"]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["result"]["score"]["mean"] == 1.0
    run(replace(base, shard="1/2"))
    assert len(asked) == 3  # nothing is asked twice
    path = tmp_path / "out" / "samples-00000-of-00002.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:30])  # killed while writing
    run(replace(base, shard="0/2"))
    assert asked[3:] == ["001-3"]
    with pytest.raises(VisdError, match="another model, benchmark or settings"):
        run(replace(base, shard="0/2", protocol="open_o3"))
    for name, value in {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "0"}.items():
        monkeypatch.setenv(name, value)
    run(replace(base, shard="auto", out=str(tmp_path / "launched")))
    assert asked[4:] == ["001-2"]


def test_what_counts_as_another_run(tmp_path: Path) -> None:
    mark = fingerprint(config(), "h")
    assert mark == fingerprint(config(out="p", shard="1/2", batch_prompts=1), "h")
    assert (
        len(
            {
                mark,
                fingerprint(config(), "g"),
                fingerprint(config(samples=2), "h"),
                fingerprint(config(box_unit="one"), "h"),
            }
        )
        == 4
    )
    assert finished(tmp_path, "0/1", mark) == []


GIVEN = ["model=m", "benchmark=videomme", "root=r", "out=o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GIVEN, "benchmark=video"], "benchmark: 'video' is not one of"),
        ([*GIVEN, "protocol=mine"], "protocol: 'mine' is not one of official, video_r1_16, open_o3"),
        ([*GIVEN, "box_unit=cm"], "box_unit"),
        ([*GIVEN, "shard=2/2"], "shard"),
        ([*GIVEN, "shard=a"], "shard"),
        ([*GIVEN, "engine=sglang"], "engine: 'sglang' is not one of transformers, vllm"),
        ([*GIVEN, "samples=0"], "samples"),
        ([*GIVEN, "sample=2"], "sample"),
        (GIVEN[:3], "out"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        filled = parse(arguments)
        assert filled.out  # a missing value


def test_decoding_and_frames_follow_the_protocol() -> None:
    protocols = benchmarks.load("videomme").protocols
    assert decoding(config(), protocols["official"]).greedy
    several = decoding(config(samples=4), protocols["official"])
    assert (several.n, several.greedy, several.temperature) == (4, False, 1.0)
    r1 = decoding(config(), protocols["video_r1_16"])
    assert (r1.temperature, r1.top_p, r1.max_new_tokens, r1.greedy) == (0.1, 0.001, 1024, False)
    assert decoding(config(max_new_tokens=7), protocols["open_o3"]).max_new_tokens == 7
    assert prompt_section(config(), protocols["open_o3"]).video.max_frames == 16
    with pytest.raises(ConfigError, match=r"video\.frames"):
        prompt_section(config(video={"frames": 3}), protocols["official"])


def test_the_hash_is_of_what_is_asked() -> None:
    protocol = benchmarks.load("gsm8k").protocols["official"]
    item = Item("a", "?", "number", 1.0)
    assert prompt_hash([item], protocol) == prompt_hash([replace(item, truth=2.0)], protocol)
    assert (
        len(
            {
                prompt_hash([i], p)
                for i, p in (
                    (item, protocol),
                    (replace(item, question="!"), protocol),
                    (item, replace(protocol, system="s")),
                )
            }
        )
        == 3
    )


def test_no_question_is_an_error() -> None:
    with pytest.raises(VisdError, match="no question"):
        Tables([], benchmarks.load("gsm8k"))
