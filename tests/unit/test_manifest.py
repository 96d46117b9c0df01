from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from visd.data.manifest import ManifestError, load_manifest, sample_from_record, sample_to_record
from visd.data.targets import answer_text, sft_target
from visd.types import Answer, VisdError

RECORD: dict[str, Any] = {
    "id": "s1",
    "source": "unit",
    "family": "where",
    "media": [{"kind": "video", "path": "videos/a.mp4", "start": 1.0, "end": 4.0, "fps": None}],
    "messages": [{"role": "user", "content": "<video>\nWhich?"}],
    "answer": {"type": "letter", "value": "B", "options": ["red", "blue"], "tolerance": 0.0},
    "evidence": {
        "windows": [[1.0, 2.0]],
        "frames": [{"t": 2.0}],
        "boxes": [{"t": 2.0, "name": "red square", "xyxy": [0.1, 0.2, 0.4, 0.5]}],
    },
    "rationale": "red",
    "reward": {"name": "rules", "args": {}},
    "meta": {"duration": 5.0, "anything": [1, None]},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The record with one member replaced, or removed where `value` is ..."""
    record = copy.deepcopy(RECORD)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place: Any = record
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


def write(folder: Path, *lines: str | dict[str, Any]) -> Path:
    path = folder / "m.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def test_a_record_survives_the_round_trip() -> None:
    assert sample_to_record(sample_from_record(RECORD, "m:1")) == RECORD


def test_optional_fields_have_their_defaults() -> None:
    short = {k: RECORD[k] for k in ("id", "source", "family", "media", "messages")} | {
        "answer": {"type": "word", "value": "red"}
    }
    sample = sample_from_record(short, "m:1")
    assert sample_from_record(sample_to_record(sample), "m:1") == sample
    assert sample.rationale is None and sample.evidence.windows == () and sample.reward["name"] == "rules"


WRONG = [
    ("id", ..., "id", "missing"),
    ("id", 3, "id", "string"),
    ("id", " ", "id", "empty"),
    ("colour", "red", "colour", "known field"),
    ("media", {}, "media", "list"),
    ("media.0.path", ..., "media[0].path", "missing"),
    ("media.0.kind", "audio", "media[0].kind", "video, image"),
    ("media.0.extra", 1, "media[0].extra", "known field"),
    ("media.0.path", "/etc/a.mp4", "media[0].path", "absolute"),
    ("media.0.path", "C:\\a.mp4", "media[0].path", "absolute"),
    ("media.0.path", "videos/../../a.mp4", "media[0].path", "climbs out"),
    ("media.0.start", True, "media[0].start", "number"),
    ("media.0.start", -1, "media[0].start", "negative"),
    ("media.0.end", 0.5, "media[0].end", "greater than the start"),
    ("media.0.end", 6.0, "media[0].end", "meta.duration"),
    ("media.0.fps", 0, "media[0].fps", "greater than 0"),
    ("messages", [], "messages", "end with"),
    ("messages.0.role", "robot", "messages[0].role", "system, user"),
    ("messages.0.content", "no placeholder", "messages", "0 <video> placeholders for 1"),
    ("answer.type", "essay", "answer.type", "word, number"),
    ("answer.value", "C", "answer.value", "among the options A, B"),
    ("answer.value", "b", "answer.value", "capital"),
    ("answer.options", [], "answer.options", "2 to 26"),
    ("answer.tolerance", 0.5, "answer.tolerance", "'number'"),
    (
        "answer",
        {"type": "word", "value": "red", "options": ["red", "blue"]},
        "answer.options",
        "only answers of type 'letter'",
    ),
    ("answer", {"type": "number", "value": "3"}, "answer.value", "number"),
    ("answer", {"type": "number", "value": True}, "answer.value", "number"),
    ("answer", {"type": "window", "value": [3.0, 2.0]}, "answer.value", "no window"),
    ("answer", {"type": "window", "value": [0.0, 2.0]}, "answer.value", "outside the clip"),
    ("answer", {"type": "box", "value": [0.1, 0.2, 1.4, 0.5]}, "answer.value", "no box in 0-1"),
    ("evidence.windows.0", [2.0, 4.5], "evidence.windows[0]", "outside the clip"),
    ("evidence.windows.0", [2.0], "evidence.windows[0]", "start and end"),
    ("evidence.frames.0", {"t": 0.2}, "evidence.frames[0].t", "outside the clip"),
    ("evidence.frames.0", 2.0, "evidence.frames[0]", "object"),
    ("evidence.boxes.0.xyxy", [0.4, 0.2, 0.1, 0.5], "evidence.boxes[0].xyxy", "no box"),
    ("evidence.boxes.0.t", 9.0, "evidence.boxes[0].t", "outside the clip"),
    ("evidence.boxes.0.name", None, "evidence.boxes[0].name", "string"),
    ("rationale", 5, "rationale", "string"),
    ("reward", "rules", "reward", "object"),
    ("meta.duration", 0, "meta.duration", "greater than 0"),
]


@pytest.mark.parametrize(("path", "value", "field", "words"), WRONG, ids=[f"{w[2]}-{w[3][:12]}" for w in WRONG])
def test_a_wrong_field_is_named_with_its_place(tmp_path: Path, path: str, value: Any, field: str, words: str) -> None:
    good = changed("id", "s0")
    with pytest.raises(ManifestError) as error:
        load_manifest(write(tmp_path, good, changed(path, value)), tmp_path)
    message = str(error.value)
    assert "m.jsonl:2" in message and f"field {field!r}" in message and words in message
    if path != "id":
        assert "sample 's1'" in message


def test_without_an_end_only_the_meta_duration_bounds_a_window() -> None:
    record = changed("media.0.end", None)
    record["evidence"]["windows"] = [[1.0, 5.0]]
    sample_from_record(record, "m:1")
    record["evidence"]["windows"] = [[1.0, 5.5]]
    with pytest.raises(ManifestError, match="outside the clip"):
        sample_from_record(record, "m:1")
    del record["meta"]["duration"]
    sample_from_record(record, "m:1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "is not JSON"),
        ("[1]", "must be an object"),
        ('{"id": "a", "id": "b"}', "stands twice"),
        (json.dumps(changed("answer", {"type": "number", "value": float("nan")})), "NaN is no JSON value"),
    ],
)
def test_a_line_that_is_no_record(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ManifestError, match=r"m\.jsonl:2") as error:
        load_manifest(write(tmp_path, changed("id", "s0"), line), tmp_path)
    assert words in str(error.value)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    empty = write(tmp_path, "", "  ")
    with pytest.raises(ManifestError, match="no sample"):
        load_manifest(empty, tmp_path)
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(tmp_path / "none.jsonl", tmp_path)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(RECORD).encode() + b"\n" + '{"id": "é"}'.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"latin\.jsonl:2: is not UTF-8"):
        load_manifest(latin, tmp_path)


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"m\.jsonl:3: sample 's1'.*already used in row 2"):
        load_manifest(write(tmp_path, changed("id", "s0"), RECORD, RECORD), tmp_path)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "inside").mkdir(parents=True)
    outside.mkdir()
    manifest = write(tmp_path, RECORD)
    (root / "videos").symlink_to(outside)
    with pytest.raises(ManifestError, match="outside the data root"):
        load_manifest(manifest, root)
    (root / "videos").unlink()
    (root / "videos").symlink_to(root / "inside")
    assert load_manifest(manifest, root)[0].id == "s1"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer("word", "right"), "right"),
        (Answer("number", 3.0), "3"),
        (Answer("number", 2.5), "2.5"),
        (Answer("letter", "B", ("a", "b")), "B"),
        (Answer("window", (1.0, 3.0)), "From <t>1.0</t>s to <t>3.0</t>s"),
        (Answer("box", (0.1, 0.2, 0.4, 0.5)), "<box>[0.1,0.2,0.4,0.5]</box>"),
    ],
)
def test_answers_are_written_as_responses_state_them(answer: Answer, text: str) -> None:
    assert answer_text(answer) == text


def test_the_target_states_what_the_trace_concludes() -> None:
    plain = sample_from_record(RECORD, "m:1")
    assert sft_target(plain) == "<think>red</think><answer>B</answer>" == sft_target(plain, verified=True)
    wrong = changed("meta", {"trace_answer": "A", "verified_rationale": "blue"})
    sample = sample_from_record(wrong, "m:1")
    assert sft_target(sample) == "<think>red</think><answer>A</answer>"
    assert sft_target(sample, verified=True) == "<think>blue</think><answer>B</answer>"
    poor = sample_from_record(changed("meta", {"verified_rationale": "blue"}), "m:1")
    assert sft_target(poor) == "<think>red</think><answer>B</answer>"
    assert sft_target(poor, verified=True) == "<think>blue</think><answer>B</answer>"


def test_a_target_needs_a_trace() -> None:
    with pytest.raises(VisdError, match=r"'s1'.*'rationale' is missing"):
        sft_target(sample_from_record(changed("rationale", None), "m:1"))
    with pytest.raises(VisdError, match=r"'meta.verified_rationale' is missing"):
        sft_target(sample_from_record(changed("meta", {"trace_answer": "A"}), "m:1"), verified=True)
    with pytest.raises(ManifestError, match=r"meta\.trace_answer.*among the options"):
        sft_target(sample_from_record(changed("meta", {"trace_answer": "Z"}), "m:1"))
