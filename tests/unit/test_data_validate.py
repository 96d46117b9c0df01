"""Each thing that can be wrong with a record or between records is found, named and counted; a right set has no finding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main
from data_tools.io.shards import id_hash
from data_tools.likeness import NEAR_SKETCH, shared_words, sketch
from tests.media_files import write_video

Record = dict[str, Any]


def record(**changes: Any) -> Record:
    base: Record = {
        "id": "a",
        "source": "s",
        "family": "f",
        "media": [{"kind": "video", "path": "a.mp4"}],
        "messages": [{"role": "user", "content": "<video>Which of the two dogs runs to the tall man first?"}],
        "answer": {"type": "letter", "value": "A", "options": ["the brown one", "the white one"]},
        "evidence": {
            "windows": [[0.5, 1.5]],
            "frames": [{"t": 1.0}],
            "boxes": [{"t": 1.0, "name": "dog", "xyxy": [0.1, 0.1, 0.5, 0.5]}],
        },
        "rationale": "I see <obj>dog</obj><box>[0.1,0.1,0.5,0.5]</box>at<t>1.0</t>s.",
    }
    return base | changes


def write(path: Path, *records: Record) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in records))
    return path


def findings(out: Path) -> list[Record]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def validate(folder: Path, *arguments: str) -> tuple[int, list[Record]]:
    out = folder / "findings.jsonl"
    status = main(["validate", *arguments, "--out", str(out), "--overwrite"])
    return status, findings(out)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of `probe` for a.mp4 (2 s), its copy under another name, another video and a broken one."""
    root = tmp_path_factory.mktemp("files")
    write_video(root / "a.mp4", 16, 8, noise=True)
    shutil.copy(root / "a.mp4", root / "copy.mp4")
    write_video(root / "b.mp4", 24, 8)
    (root / "bad.mp4").write_bytes(b"nothing")
    out = root / "probe.jsonl"
    assert main(["probe", "--root", str(root), "--out", str(out)]) == 1
    return out


def edited(path: str, value: Any) -> Record:
    changed = json.loads(json.dumps(record()))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = changed
    for part in parents:
        place = place[part]
    place[last] = value
    return dict(changed)


WRONG: list[tuple[str, Record, str]] = [
    ("schema", edited("answer.value", "C"), "answer.value"),
    ("schema", edited("evidence.boxes.0.xyxy", [10, 10, 50, 50]), "evidence.boxes[0].xyxy"),
    ("schema", edited("media.0.path", "../a.mp4"), "media[0].path"),
    ("schema", {key: value for key, value in record().items() if key != "answer"}, "answer"),
    ("time_outside_clip", edited("evidence.windows.0", [0.5, 2.5]), "evidence.windows[0]"),
    ("time_outside_clip", edited("evidence.frames.0.t", 3.0), "evidence.frames[0].t"),
    ("clip_outside_file", edited("media.0.end", 9.0), "media[0].end"),
    ("quarantined", edited("media.0.path", "bad.mp4"), "media[0].path"),
    ("not_probed", edited("media.0.path", "never.mp4"), "media[0].path"),
    ("box_size", edited("evidence.boxes.0.xyxy", [0.1, 0.1, 0.102, 0.102]), "evidence.boxes[0].xyxy"),
    ("box_outside_windows", edited("evidence.boxes.0.t", 0.1), "evidence.boxes[0].t"),
    ("box_twice", edited("evidence.boxes", record()["evidence"]["boxes"] * 2), "evidence.boxes[1]"),
    ("option_twice", edited("answer.options", ["the dog", "The dog."]), "answer.options[1]"),
    ("answer_type", edited("answer", {"type": "word", "value": "3"}), "answer.type"),
    ("answer_type", edited("answer", {"type": "word", "value": "two dogs"}), "answer.type"),
    ("reward", edited("reward", {"name": "beauty"}), "reward"),
    ("reward_does_not_apply", edited("reward", {"name": "rules", "args": {"weights": {"spatial_iou": 1.0}}}),
     "reward.args.weights.spatial_iou"),
    ("tags_unbalanced", edited("rationale", "at <t>1.0 s"), "rationale"),
    ("tag_unreadable", edited("rationale", "at <t>noon</t>s"), "rationale"),
    ("tag_in_rationale", edited("rationale", "<answer>A</answer>"), "rationale"),
    ("tag_in_question", edited("messages.0.content", "<video>Answer in <answer>"), "messages[0].content"),
]  # fmt: skip


def test_each_wrong_record_is_named_with_its_field(tmp_path: Path, probed: Path) -> None:
    places = [
        {**wrong, "id": f"r{number}", "messages": [
            {"role": "user", "content": f"{wrong['messages'][0]['content']} Case {'xi' * number}{number}"}
        ]}
        for number, (_, wrong, _) in enumerate(WRONG)
    ]  # fmt: skip
    path = write(tmp_path / "m.jsonl", *places)
    status, found = validate(tmp_path, str(path), "--probe", str(probed), "--num-workers", "2", "--shard-rows", "8")
    assert status == 1
    by_row = {(int(item["where"].rsplit(":", 1)[1]) - 1, item["check"], item["field"]) for item in found}
    wanted = {(number, check, field) for number, (check, _, field) in enumerate(WRONG)}
    assert {item for item in by_row if item[1] != "near_duplicate"} == wanted
    report = json.loads((tmp_path / "findings.jsonl.report.json").read_text())
    assert report["records"] == len(WRONG) and report["errors"]["schema"] == 4


def test_a_right_set_has_no_finding(small_world: Path, tmp_path: Path) -> None:
    sets = [str(small_world / f"{name}.jsonl") for name in ("train", "sft_train")]
    against = [str(small_world / f"{name}.jsonl") for name in ("validation", "test")]
    out = tmp_path / "p.jsonl"
    assert main(["probe", "--root", str(small_world), "--out", str(out)]) == 0
    status, found = validate(tmp_path, *sets, "--against", *against, "--probe", str(out))
    assert status == 0 and not [item for item in found if item["level"] == "error"]


def test_like_records_are_found(tmp_path: Path, probed: Path) -> None:
    asked = "<video>Which of the two dogs runs up to the tall man first of all here?"
    nearly = "<video>Which of the two dogs runs up to the tall man first of all?"
    other = "<video>How many trees stand behind the house in the end?"
    copy = [{"kind": "video", "path": "copy.mp4"}]

    def said(name: str, text: str, **more: Any) -> Record:
        return record(id=name, messages=[{"role": "user", "content": text}], **more)

    blue = {"type": "letter", "value": "B", "options": ["the brown one", "the white one"]}
    train = write(
        tmp_path / "train.jsonl",
        said("one", asked),
        said("again", asked),
        said("against", asked, answer=blue),
        said("near", nearly, media=copy),
        said("other", other, media=[{"kind": "video", "path": "b.mp4"}]),
        said("other", "<video>And what then?", media=[{"kind": "video", "path": "b.mp4"}]),
    )
    test = write(
        tmp_path / "test.jsonl",
        said("leaked", asked),
        said("leaked-copy", nearly + " Say.", media=copy),
        said("same-video", "<video>What colour has the sky?", media=copy),
        said("clean", asked, media=[{"kind": "video", "path": "c.mp4"}]),
    )
    _, found = validate(tmp_path, str(train), "--against", str(test), "--probe", str(probed))
    checks = {(item["id"], item["check"]) for item in found if item["check"] != "not_probed"}
    assert checks == {
        ("again", "duplicate"),
        ("against", "contradiction"),
        ("near", "near_duplicate"),
        ("other", "id_twice"),
        ("leaked", "leak"),
        ("leaked-copy", "leak"),
        ("leaked-copy", "near_duplicate"),  # of the other leaked one
        ("same-video", "shared_video"),
    }
    leak = next(item for item in found if item["id"] == "leaked")
    assert leak["level"] == "error" and "train.jsonl:1 ('one')" in leak["message"]


def test_sketches_are_close_where_words_are_shared() -> None:
    words = frozenset(["which", "of", "the", "two", "dogs", "runs", "up", "to", "a", "tall", "man", "first"])
    near, far = words - {"first"}, frozenset(["how", "many", "trees", "stand", "behind", "that", "old", "house"])

    def distance(a: frozenset[str], b: frozenset[str]) -> int:
        return (sketch(a) ^ sketch(b)).bit_count()

    assert distance(words, words) == 0 and distance(words, near) <= NEAR_SKETCH < distance(words, far)
    assert shared_words(words, near) == pytest.approx(11 / 12) and id_hash("a") != id_hash("b")
