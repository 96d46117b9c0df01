"""Every public format becomes the samples it says, odd cases included; what cannot is dropped with its reason."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.__main__ import main
from data_tools.io.rows import read_rows
from tests import convert_rows as rows
from visd.data.manifest import load_manifest, sample_from_record, sample_to_record
from visd.types import Answer, Box, Media, Sample


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    return tmp_path


def convert(root: Path, name: str, data: Any, *more: str, suffix: str = ".json") -> list[Sample]:
    source, out = root / f"in{suffix}", root / "out.jsonl"
    if isinstance(data, str):
        source.write_text(data)
    elif suffix == ".jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in data))
    else:
        source.write_text(json.dumps(data))
    assert main(["convert", "--from", name, str(source), str(out), "--root", str(root), "--overwrite", *more]) == 0
    return load_manifest(out, root)


def report(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "out.jsonl.report.json").read_text())
    return found


def test_video_r1(root: Path) -> None:
    choice, regression, fraction, free, brackets = convert(root, "video_r1", rows.VIDEO_R1)
    assert choice.answer == Answer("letter", "B", ("red", "blue")) and choice.rationale == "It is blue."
    assert choice.messages[0].content == "<video>Which?\nA. red\nB. blue"
    assert (choice.id, choice.source, choice.media) == ("7", "Star", (Media("video", "clips/7.mp4"),))
    assert regression.answer == Answer("number", 1250.5) and regression.media[0].kind == "image"
    assert fraction.answer == Answer("text", "\\frac{1}{2}") and report(root)["notes"]["number_as_text"] == 1
    assert free.answer.type == "text" and free.meta["fields"] == {"split": "hard"}
    assert brackets.answer.options == ("x", "y")


@pytest.mark.parametrize("reason", rows.VIDEO_R1_BAD)
def test_a_row_that_cannot_be_used_is_dropped_with_its_reason(root: Path, reason: str, capsys: Any) -> None:
    source, out = root / "in.json", root / "out.jsonl"
    source.write_text(json.dumps([*rows.VIDEO_R1, rows.VIDEO_R1_BAD[reason]]))
    command = ["convert", "--from", "video_r1", str(source), str(out)]
    assert main(command) == 2 and not out.exists()
    assert f"1 dropped (1 {reason})" in capsys.readouterr().err
    assert main([*command, "--max-dropped", "0.2"]) == 0
    [line] = (root / "out.jsonl.dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == reason and json.loads(line)["where"].endswith("in.json:6")
    assert len(load_manifest(out, root)) == 5 and not (root / "out.jsonl.work").exists()


def test_llava_every_answer_is_a_sample(root: Path) -> None:
    first, second, images, text, packed, _ = convert(root, "llava", rows.LLAVA)
    assert (first.id, second.id) == ("c1-1", "c1-2")
    assert [m.role for m in second.messages] == ["user", "assistant", "user"]
    assert second.answer == Answer("letter", "B", ("one", "two")) and first.answer == Answer("text", "A red ball.")
    assert [m.path for m in images.media] == ["shots/a.png", "shots/b.png"] and images.id == "llava-2"
    assert images.messages[0].content == "<image><image>Compare."
    assert text.answer == Answer("number", 4.0) and not text.media and packed.id == "p1"


def test_stgr(root: Path) -> None:
    spatial, window, choice, image, inline, sft = convert(root, "stgr", rows.STGR)
    assert spatial.evidence.boxes == (Box(1.5, "dog", (0.1, 0.2, 0.5, 0.6)),) and spatial.evidence.frames == (1.5,)
    assert spatial.media[0].path == "stgr/plm/videos/d.mp4" and spatial.meta["key_frames"][0]["path"] == "d_3.jpg"
    assert report(root)["notes"]["key_item_without_frame"] == 1
    assert window.answer == Answer("window", (1.0, 4.5)) == window.answer and window.media[0].path == "tvg_r1/e.mp4"
    assert choice.answer == Answer("letter", "B", ("run", "jump")) and choice.evidence.windows == ((2.0, 3.0),)
    assert image.answer == Answer("box", (0.1, 0.1, 0.5, 0.6))  # pixels of 200 x 100
    assert image.meta["boxes"] == {"from": "pixels", "size": [200, 100]}
    assert image.rationale == "<obj>cup</obj><box>[0.1,0.1,0.5,0.6]</box> here"
    assert inline.answer == Answer("letter", "A", ("tea", "milk")) and sft.answer == Answer("window", (1.0, 2.5))


def test_ms_swift(root: Path) -> None:
    box, number, frames, norm = convert(root, "ms_swift", rows.MS_SWIFT, suffix=".jsonl")
    assert box.answer == Answer("box", (0.1, 0.1, 0.5, 0.6)) and box.messages[1].content == "<image>Find the sheep"
    assert box.evidence.boxes == (Box(0.0, "sheep", (0.1, 0.1, 0.5, 0.6)),)
    assert number.answer == Answer("number", 3.0) and number.meta["fields"] == {"level": 2}
    assert [m.path for m in frames.media] == ["f1.png", "f2.png"] and frames.rationale == "look"
    assert frames.messages[0].content == "<image><image>Say."
    assert norm.evidence.boxes[0].xyxy == (0.1, 0.2, 0.3, 0.4)


def test_trl_verl_easyr1_vlm_r1_tinyllava(root: Path) -> None:
    image, completed, video = convert(root, "trl", rows.TRL)
    assert image.messages[0].content == "<image>Colour?" and image.meta["fields"] == {
        "privileged_context": "It is red."
    }
    assert completed.answer == Answer("number", 2.0) and completed.rationale == "add"
    assert video.answer.value == "a slow dance" and video.media == (Media("video", "v.mp4"),)
    [verl] = convert(root, "verl", rows.VERL)
    assert verl.id == "train-12" and verl.media == (Media("video", "v.mp4", fps=2.0),) and verl.family == "count"
    assert report(root)["notes"]["left_out_video_max_frames"] == 1
    area, choice = convert(root, "easyr1", rows.EASYR1)
    assert area.answer == Answer("number", 12.5)
    assert choice.answer == Answer("letter", "B", ("red", "blue")) and choice.rationale == "sky"
    box, count = convert(root, "vlm_r1", rows.VLM_R1, suffix=".jsonl")
    assert box.answer == Answer("box", (0.1, 0.1, 0.5, 0.6)) and report(root)["boxes"]["convention"] == "pixels"
    assert count.answer == Answer("number", 3.0)
    listed, apart = convert(root, "tinyllava", rows.TINYLLAVA)
    assert listed.answer == Answer("letter", "B", ("rain", "sun")) and apart.id == "5"
    assert listed.messages[0].content.count("A. rain") == 1


def test_nextgqa(root: Path) -> None:
    (root / "spans.json").write_text(json.dumps(rows.NEXTGQA_SPANS))
    (root / "paths.json").write_text(json.dumps(rows.NEXTGQA_PATHS))
    more = ["--spans", str(root / "spans.json"), "--paths", str(root / "paths.json"), "--max-dropped", "0.4"]
    first, numbered = convert(root, "nextgqa", rows.NEXTGQA_CSV, *more, suffix=".csv")
    assert first.id == "111_2" and first.media[0].path == "1164/111.mp4" and first.answer.value == "B"
    assert first.meta["duration"] == 21.455 and first.evidence.windows == ((0.0, 6.1), (9.2, 21.455))
    assert numbered.answer.value == "D" and report(root)["dropped"] == {"letter": 1}


def test_a_table_with_tabs_holds_what_one_with_commas_does(root: Path) -> None:
    table = list(csv.reader(io.StringIO(rows.NEXTGQA_CSV)))
    (root / "t.tsv").write_text("".join("\t".join(row) + "\n" for row in table))
    (root / "t.csv").write_text(rows.NEXTGQA_CSV)
    assert any("," in cell for row in table for cell in row)  # what a comma would divide
    assert [row for _, row in read_rows(root / "t.tsv")] == [row for _, row in read_rows(root / "t.csv")]


def test_charades_sta(root: Path) -> None:
    (root / "d.csv").write_text(rows.CHARADES_DURATIONS)
    more = ["--durations", str(root / "d.csv"), "--max-dropped", "0.4"]
    first, cut = convert(root, "charades_sta", rows.CHARADES, *more, suffix=".txt")
    assert first.answer == Answer("window", (0.0, 6.9)) and first.media[0].path == "AO8RW.mp4"
    assert cut.answer == Answer("window", (2.0, 30.0)) and report(root)["dropped"] == {"window": 1}


def test_columns_of_a_table_and_of_a_dataset(root: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = [f"--column={ours}={theirs}" for ours, theirs in rows.COLUMN_NAMES.items()]
    table = convert(root, "columns", rows.COLUMNS, *names)
    assert table[0].answer == Answer("letter", "B", ("red", "blue")) and table[0].meta["fields"] == {"note": "n"}
    assert table[0].media == (Media("video", "v.mp4", 1.0, 4.0),) and table[1].answer == Answer("word", "here")
    datasets.Dataset.from_list(rows.COLUMNS[:1]).save_to_disk(str(root / "folder"))
    out = root / "folder.jsonl"
    assert main(["convert", "--from", "columns", str(root / "folder"), str(out), *names]) == 0
    assert load_manifest(out, root) == table[:1]  # a column of Arrow has one type, so one row


@pytest.mark.parametrize(("name", "data"), [("ms_swift", rows.MS_SWIFT), ("trl", rows.TRL), ("stgr", rows.STGR)])
@pytest.mark.parametrize("target", ["ms_swift", "trl"])
def test_round_trip_of_samples(root: Path, name: str, data: Any, target: str) -> None:
    samples = convert(root, name, data)
    there, back = root / "there.jsonl", root / "back.jsonl"
    assert main(["convert", "--from", "manifest", "--to", target, str(root / "out.jsonl"), str(there)]) == 0
    assert main(["convert", "--from", target, str(there), str(back)]) == 0
    assert load_manifest(back, root) == samples


def test_round_trip_of_a_world(root: Path, small_world: Path) -> None:
    for target in ("ms_swift", "trl"):
        there, back = root / f"{target}.jsonl", root / f"{target}_back.jsonl"
        source = small_world / "train.jsonl"
        assert main(["convert", "--from", "manifest", "--to", target, str(source), str(there)]) == 0
        assert main(["convert", "--from", target, str(there), str(back)]) == 0
        assert load_manifest(back, small_world) == load_manifest(source, small_world)


def test_round_trip_of_video_r1_rows(root: Path) -> None:
    convert(root, "video_r1", rows.VIDEO_R1)
    there = root / "there.json"
    assert main(["convert", "--from", "manifest", "--to", "video_r1", str(root / "out.jsonl"), str(there)]) == 0
    given = [{**row, "options": row["options"] or []} for row in rows.VIDEO_R1]
    given[2] |= {"path": "./a.png"}
    assert json.loads(there.read_text()) == given


def test_parquet_holds_the_same_records(root: Path) -> None:
    pytest.importorskip("pyarrow")
    samples = convert(root, "stgr", rows.STGR)
    table, back = root / "m.parquet", root / "m.jsonl"
    assert main(["convert", "--from", "manifest", str(root / "out.jsonl"), str(table)]) == 0
    assert main(["convert", "--from", "manifest", str(table), str(back)]) == 0
    assert load_manifest(back, root) == samples
    record = sample_to_record(samples[0])
    assert sample_from_record(record, "x") == samples[0]
