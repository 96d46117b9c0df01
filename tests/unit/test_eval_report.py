from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eval.demo_report import demo_summary
from eval.report import build_report, headline, media_frames, rollout_view, run_curves
from eval.results import Attempt, QuestionResult, summarise, to_line
from tests.unit.observe_data import make_group
from visd.config import RunConfig, VideoSection
from visd.data.manifest import load_manifest
from visd.media.video import decode
from visd.observe.records import RolloutRecord, rollout_records
from visd.observe.records import to_line as record_line
from visd.observe.report import MarkedBox
from visd.reward.rules import box_iou
from visd.types import Answer, Media, Sample, VisdError

TEXT = (
    "<think><obj>red square</obj><box>[0.1,0.1,0.5,0.5]</box>at<t>1.0</t>s and later "
    "<obj>dog</obj><box>[0,0,1,1]</box>at<t>9.0</t>s</think><answer>From <t>1.0</t>s to <t>3.0</t>s</answer>"
)


def question(name: str, accuracy: float, family: str = "when", tiou: float | None = None) -> QuestionResult:
    attempt = Attempt(
        "", 0, accuracy, accuracy == 1, {"format": 1.0, "temporal_iou": tiou, "spatial_iou": None}, False, 3
    )
    return QuestionResult(name, family, "window", [0, 1], (attempt,), (attempt, attempt))


def record_of(sample: Sample, text: str) -> RolloutRecord:
    group = make_group("x", [1.0, 0.0])
    rollout = replace(group.rollouts[0], text=text, pieces=(text, "", ""))
    return rollout_records(1, [replace(group, sample=sample, rollouts=(rollout, group.rollouts[1]))])[0]


def test_the_headline_pairs_questions() -> None:
    before = [question(f"q{i}", i / 10, tiou=0.1) for i in range(8)] + [question("n", 0.0, "count")]
    after = [question(f"q{i}", i / 10 + 0.2, tiou=0.3) for i in range(8)] + [question("n", 0.0, "count")]
    rows = {row.name: row for row in headline(before, after)}
    assert rows["    when"].difference == "+0.200 [+0.200, +0.200]"
    assert rows["    count"].questions == 1 and rows["    count"].difference == "+0.000"
    assert rows["accuracy, sampled"].questions == rows["accuracy, greedy"].questions == 9
    assert rows["temporal IoU"].before.startswith("0.100") and rows["temporal IoU"].questions == 8
    assert "box IoU" not in rows


def test_the_summary_says_what_the_table_says() -> None:
    sides = [[question(f"q{i}", i / 10 + shift, tiou=i / 10 + shift) for i in range(8)] for shift in (0.0, 0.3)]
    run = {"method": "visd", "seed": 0, "steps": 1, "wall_seconds": 2.0, "drops": {}}
    run |= {"videos_decoded": 3, "videos_total": 3}
    summary = demo_summary(run, *(summarise(side) for side in sides))
    rows = {row.name: row for row in headline(*sides)}
    for key, name in (
        ("accuracy", "accuracy, sampled"),
        ("greedy_accuracy", "accuracy, greedy"),
        ("tiou", "temporal IoU"),
    ):
        assert rows[name].before.startswith(f"{summary[f'{key}_before']:.3f}")
        assert rows[name].after.startswith(f"{summary[f'{key}_after']:.3f}")
    assert (summary["right_before"], summary["right_after"]) == (0.0, 1 / 8)


def test_claims_of_an_answer_become_boxes_and_windows() -> None:
    group = make_group("x", [1.0])
    record = record_of(replace(group.sample, answer=Answer("window", (1.0, 2.0))), TEXT)
    gold = [MarkedBox("red square", (0.3, 0.1, 0.7, 0.5), t, gold=True) for t in (1.2, 5.0)]
    view = rollout_view(record, gold)
    assert [(box.name, box.t) for box in view.boxes] == [("red square", 1.0), ("dog", 9.0)]
    assert view.boxes[0].iou == pytest.approx(1 / 3) and view.boxes[1].iou is None
    assert list(view.windows) == [(1.0, 3.0)]


def test_iou_of_boxes() -> None:
    assert box_iou((0, 0, 0.5, 1), (0, 0, 1, 1)) == 0.5
    assert box_iou((0, 0, 0.1, 0.1), (0.5, 0.5, 1, 1)) == 0.0


def test_curves_leave_out_what_a_run_has_not() -> None:
    records = [
        {"step": s, "reward/accuracy": 0.1 * s, **({"gap/right_mean": 0.0} if s > 2 else {})} for s in range(1, 5)
    ]
    curves = run_curves(records)
    assert [len(curve.series) for curve in curves] == [1, 1]
    assert list(curves[1].series[0].x) == [3, 4]


def test_frames_are_those_the_policy_saw(small_world: Path) -> None:
    sample = next(s for s in load_manifest(small_world / "test.jsonl", small_world) if s.media)
    video = VideoSection(max_pixels=12544, min_pixels=784)
    media = sample.media[0]
    seen = decode(small_world / media.path, start=media.start, end=media.end, fps=media.fps, settings=video, factor=28)
    shown = media_frames(record_of(sample, ""), video, small_world, most=100)
    assert [frame.t for frame in shown] == list(seen.times)
    few = media_frames(record_of(sample, ""), video, small_world, most=3)
    assert len(few) == 3 and few[0].t == seen.times[0] and few[-1].t == seen.times[-1]


def test_the_report_of_a_run_is_one_page(small_world: Path, tmp_path: Path) -> None:
    sample = next(s for s in load_manifest(small_world / "test.jsonl", small_world) if s.evidence.boxes)
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    group = make_group("x", [1.0, 0.0])
    records = rollout_records(2, [replace(group, sample=sample)])
    (run / "rollouts" / "step_000002.jsonl").write_text("".join(record_line(r) + "\n" for r in records))
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/accuracy": 0.5}\n')
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(RunConfig)))
    (run / "summary.json").write_text(json.dumps({"method": "visd", "wall_seconds": 61.0, "drops": {"decode": 1}}))
    for name, accuracy in (("before", 0.0), ("after", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.jsonl").write_text(to_line(question("q", accuracy)) + "\n")
    build_report(run, tmp_path / "before", tmp_path / "after", small_world, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Training with visd" in page and "1m01s" in page and "decode: 1" in page and "+1.000" in page
    assert page.count("url(data:image/jpeg") >= 4 and 'class="box gold"' in page and sample.id in page
    with pytest.raises(VisdError, match=r"holds no samples\.jsonl"):
        build_report(run, tmp_path / "nowhere", tmp_path / "after", small_world, tmp_path / "report.html")


def test_records_keep_the_part_of_the_file() -> None:
    sample = replace(make_group("x", [1.0]).sample, media=(Media("video", "a.mp4", 1.0, 2.0, 4.0),))
    record = record_of(sample, "")
    assert record.media == ["a.mp4"] and record.clips == [{"kind": "video", "start": 1.0, "end": 2.0, "fps": 4.0}]
