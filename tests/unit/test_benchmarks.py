"""Every benchmark reads its published layout, asks by its protocols, and scores as published."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from eval import benchmarks
from eval.answers import read
from eval.bench import prompt_hash, prompt_section
from eval.benchmarks.base import Item, Seen
from tests.bench_files import WRITERS, put
from visd.config import ConfigError
from visd.types import VisdError

SEEN = Seen()


def items_of(name: str, root: Path) -> dict[str, Item]:
    WRITERS[name](root)
    return {item.id: item for item in benchmarks.load(name).read(root)}


def points(name: str, item: Item, text: str, truncated: bool = False, seen: Seen = SEEN) -> dict[str, float]:
    return benchmarks.load(name).score(item, read(text, item.kind, item.options, truncated), seen)


def test_every_benchmark_has_rows_to_read() -> None:
    assert benchmarks.names() == sorted(WRITERS)
    with pytest.raises(ConfigError, match=r"'videome' is not one of .*videomme"):
        benchmarks.load("videome")


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_rows_are_read_and_asked(name: str, tmp_path: Path) -> None:
    benchmark = benchmarks.load(name)
    count = WRITERS[name](tmp_path)
    items = benchmark.read(tmp_path)
    assert len(items) == count == len({item.id for item in items})
    assert benchmark.name == name and benchmark.headline in {*benchmark.means, *benchmark.combine}
    assert set(benchmark.protocols) == {"official", "video_r1_16", "open_o3"}
    for protocol in benchmark.protocols.values():
        for item in items:
            text = protocol.text(item)
            assert item.question in text and "{question}" not in text and "{options}" not in text
            assert all(option in text for option in item.options)
            question = protocol.asked(item)
            assert (
                question.messages[-1].content.count("<video>")
                == len(item.media)
                == (0 if name in ("gsm8k", "math500") else 1)
            )
        if protocol.video:
            section = prompt_section(_config(), protocol)
            assert section.video.max_frames == protocol.video["max_frames"]
    hashes = {prompt_hash(items, protocol) for protocol in benchmark.protocols.values()}
    assert len(hashes) == 3


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_missing_file_says_what_to_download(name: str, tmp_path: Path) -> None:
    benchmark = benchmarks.load(name)
    with pytest.raises(VisdError) as error:
        benchmark.read(tmp_path)
    assert benchmark.hub in str(error.value) and benchmark.needs in str(error.value)


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"math500"}))
def test_the_truth_scores_1_and_nothing_scores_0(name: str, tmp_path: Path) -> None:
    said = {
        "yes_no": lambda v: "yes" if v else "no",
        "window": lambda v: f"{v[0]} - {v[1]}",
        "number": str,
        "letter": str,
    }
    for item in items_of(name, tmp_path).values():
        if name == "vstar":
            continue
        truth = item.truth[0] if item.kind == "window" and isinstance(item.truth[0], tuple) else item.truth
        best = points(name, item, said.get(item.kind, str)(truth))
        assert best and all(value == 1 for value in best.values())
        for text, truncated in (("", False), (said.get(item.kind, str)(truth), True), ("<think>hm", False)):
            assert not any(points(name, item, text, truncated).values())


def test_media_and_clips(tmp_path: Path) -> None:
    media = items_of("mvbench", tmp_path)["action_sequence_0"].media[0]
    assert (media.path, media.start, media.end) == ("video/star/Charades_v1_480/v.mp4", 1.5, 4.0)
    assert items_of("mmvu", tmp_path / "m")["validation_0"].media[0].path == "videos/Art/0.mp4"
    paths = {item.media[0].path for item in items_of("videommmu", tmp_path / "u").values()}
    assert paths == {
        "Engineering/new_Computer_Science_1.mp4",
        "Art/validation_Art_Theory_2.mp4",
        "Science/dev_Math_3.mp4",
    }
    assert items_of("nextgqa", tmp_path / "n")["1_0_when"].media[0].path == "NExTVideo/0000/1.mp4"


def test_options_lose_their_letters_only(tmp_path: Path) -> None:
    item = items_of("videomme", tmp_path)["001-1"]
    assert item.options == ("Red.", "Blue.", "A green one.", "None of them.") and item.truth == "C"
    assert "C. A green one." in benchmarks.load("videomme").protocols["official"].text(item)
    tempcompass = items_of("tempcompass", tmp_path / "t")
    assert {item.truth for item in tempcompass.values()} == {"B", "A", False}


def test_numbers_are_scored_by_relative_accuracy(tmp_path: Path) -> None:
    item = items_of("vsibench", tmp_path)["0"]
    assert points("vsibench", item, "4.4 chairs") == {"score": pytest.approx(0.9)}


def test_open_answers_of_video_mmmu(tmp_path: Path) -> None:
    item = items_of("videommmu", tmp_path)["Adaptation_dev_Math_3"]
    assert points("videommmu", item, "2.5 m")["accuracy"] == 1 and points("videommmu", item, "2.6")["accuracy"] == 0


def test_charades_and_nextgqa(tmp_path: Path) -> None:
    item = items_of("charades_sta", tmp_path)["3MSZA_2"]
    assert points("charades_sta", item, "0 - 2.5") == {"iou": 0.5, "r1@0.3": 1.0, "r1@0.5": 1.0, "r1@0.7": 0.0}
    item = items_of("nextgqa", tmp_path / "n")["1_0_when"]
    found = points("nextgqa", item, "8 to 11 seconds")
    assert found["iop"] == pytest.approx(0.5) and found["iou"] == pytest.approx(0.5) and found["iop@0.5"] == 1


def test_vstar(tmp_path: Path) -> None:
    items = items_of("vstar", tmp_path)
    assert points("vstar", items["0_v_what"], "It is the dog.") == {"what": 1.0, "answered": 1.0}
    assert points("vstar", items["0_v_what"], "", False) == {"what": 0.0, "answered": 0.0}
    assert points("vstar", items["0_v_when_1"], "1.5 - 3.9")["when_1_strict"] == pytest.approx(1.0)
    seen = Seen((100, 50))  # frames half as large as the video
    text = '{"2": [0, 0, 50, 25], "3": [[0, 0, 25, 25], [0, 0, 50, 25]]}'
    assert points("vstar", items["0_v_where_1"], text, seen=seen) == {
        "where_1_compatible": pytest.approx(1.0),
        "where_1_strict": pytest.approx(0.75),
    }
    put(tmp_path / "grades.jsonl", [{"id": "0_v_what", "grade": 1}])
    graded = {item.id: item for item in benchmarks.load("vstar").read(tmp_path)}
    assert points("vstar", graded["0_v_what"], "It is the dog.")["what"] == 0.0


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("videomme", "videomme.json", [{"question_id": "1"}], "1: field 'options' is missing"),
        ("mvbench", "json/other.json", [], "'other' is no task of MVBench"),
        ("gsm8k", "test.jsonl", [{"question": "?", "answer": "4"}], "no `#### number`"),
        ("longvideobench", "lvb_val.json", "[{", "is not JSON"),
        ("longvideobench", "lvb_val.json", {"a": 1}, "must hold a list of objects"),
        ("charades_sta", "charades_sta_test.txt", "3MSZA 24.3##x.", "test.txt:1: is not `ID START END##SENTENCE`"),
        ("videomme", "test-0.parquet", "no parquet", "is no Parquet file"),
        (
            "mlvu",
            "json/1_a.json",
            [{"question": "?", "video": "v", "candidates": ["x"], "answer": "q"}],
            "'q' is none of",
        ),
    ],
)
def test_malformed_files_are_named(name: str, file: str, content: object, message: str, tmp_path: Path) -> None:
    put(tmp_path / file, content)
    with pytest.raises(VisdError, match=message):
        benchmarks.load(name).read(tmp_path)


def test_math_is_compared_by_value(tmp_path: Path) -> None:
    item = items_of("math500", tmp_path)["test/algebra/1.json"]
    if importlib.util.find_spec("math_verify") is None:
        with pytest.raises(VisdError, match=r"install visd\[eval\]"):
            points("math500", item, "\\boxed{0.5}")
        return
    assert points("math500", item, "So \\boxed{0.5}.")["accuracy"] == 1
    assert points("math500", item, "\\boxed{\\frac{2}{4}}")["accuracy"] == 1
    assert points("math500", item, "\\boxed{2}")["accuracy"] == 0


def _config():  # type: ignore[no-untyped-def]
    from eval.bench import BenchConfig

    return BenchConfig(video={})
