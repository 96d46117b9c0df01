from __future__ import annotations

import collections
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data_tools.synth import render
from data_tools.synth.build import WorldSettings, build
from data_tools.synth.questions import drafts
from data_tools.synth.samples import choose_drafts, video_sample
from data_tools.synth.scene import COLOURS, Scene, draw_scene
from data_tools.synth.splits import SHARES, draw, split_of
from data_tools.synth.text import draw_problem
from data_tools.synth.trace import listing
from visd.data.manifest import load_manifest
from visd.data.targets import answer_text, sft_target
from visd.seeding import generator
from visd.types import Sample, VisdError

MANIFESTS = [f"{prefix}{split}.jsonl" for prefix in ("", "text_") for split in SHARES]
ROOT = Path(__file__).resolve().parents[2]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def scenes(count: int) -> list[Scene]:
    return [draw_scene(generator("test", i)) for i in range(count)]


@pytest.fixture(scope="module")
def many() -> list[tuple[Scene, Sample]]:
    found = []
    for number, scene in enumerate(scenes(200)):
        rng = generator("questions", number)
        for draft in choose_drafts(scene, rng, 8):
            options = {"wrong_share": 0.5, "hasty_share": 0.0, "letter_share": 0.3}
            found.append((scene, video_sample(scene, draft, rng, sample_id="x", path="v.mp4", **options)))
    return found


def test_every_manifest_reads_and_every_video_is_h264_of_the_noted_size_and_length(small_world: Path) -> None:
    samples = [s for name in MANIFESTS for s in load_manifest(small_world / name, small_world)]
    videos = {s.media[0].path: s.meta for s in samples if s.media}
    assert len(videos) == 13
    for path, meta in videos.items():
        with av.open(str(small_world / path)) as container:
            stream = container.streams.video[0]
            count = sum(1 for _ in container.decode(stream))
            assert stream.codec_context.name == "h264"
            assert [stream.width, stream.height] == meta["size"]
            assert count / meta["fps"] == meta["duration"] and stream.average_rate == meta["fps"]


def test_the_seed_fixes_every_byte(small_world: Path, tmp_path: Path) -> None:
    settings = WorldSettings(kind="mixed", careful=6, sft=24, train=24, validation=12, test=12)
    build(tmp_path / "same", settings)
    for name in (*MANIFESTS, "videos/train_00000.mp4"):
        assert digest(tmp_path / "same" / name) == digest(small_world / name)
    build(tmp_path / "other", WorldSettings(seed=1, kind="mixed", careful=6, sft=24, train=24, validation=12, test=12))
    assert all(digest(tmp_path / "other" / name) != digest(small_world / name) for name in MANIFESTS)


def test_what_is_complete_is_reused_and_other_settings_are_refused(tmp_path: Path) -> None:
    settings = WorldSettings(sft=6, train=6, validation=0, test=0)
    first = build(tmp_path, settings)
    kept, lost = tmp_path / "videos/train_00000.mp4", tmp_path / "videos/sft_train_00000.mp4"
    stamp, content = kept.stat().st_mtime_ns, digest(lost)
    lost.unlink()
    (tmp_path / "train.jsonl").unlink()
    second = build(tmp_path, settings)
    assert (first.reused, second.reused) == (0, 1)
    assert kept.stat().st_mtime_ns == stamp and digest(lost) == content and (tmp_path / "train.jsonl").exists()
    with pytest.raises(VisdError, match=r"other settings \(seed\)"):
        build(tmp_path, WorldSettings(seed=3, sft=6, train=6, validation=0, test=0))


@pytest.mark.parametrize("make", [draw_scene, draw_problem], ids=["video", "text"])
def test_splits_never_share_a_scene_whatever_the_seed(make) -> None:  # type: ignore[no-untyped-def]
    signatures: dict[str, set[str]] = {}
    for split in SHARES:
        signatures[split] = set()
        for seed in (0, 1):
            for _, (item, _) in zip(range(60), draw(split, seed, "k", make), strict=False):
                signatures[split].add(item.signature())
    together = [s for found in signatures.values() for s in found]
    assert len(together) == len(set(together))
    assert all(split_of(s) == split for split, found in signatures.items() for s in found)


def test_a_scene_is_the_same_whatever_its_picture() -> None:
    import dataclasses

    scene = scenes(1)[0]
    assert dataclasses.replace(scene, fps=99).signature() == scene.signature()
    thing = scene.things[0]
    moved = dataclasses.replace(thing, cells=(None, *thing.cells[1:]))
    assert dataclasses.replace(scene, things=(moved, *scene.things[1:])).signature() != scene.signature()


def test_all_families_and_answer_types_occur(many: list[tuple[Scene, Sample]]) -> None:
    families = collections.Counter(s.family for _, s in many)
    assert set(families) == {"which", "direction", "when_time", "when_window", "where", "count", "order", "two_facts"}
    assert min(families.values()) > 0.03 * len(many)
    assert {s.answer.type for _, s in many} == {"word", "number", "letter", "window", "box"}
    actions = {t.action for scene, _ in many for t in scene.things}
    assert actions == {"still", "move", "wander", "appear", "vanish", "recolour", "move_recolour", "bounce"}


def test_every_sample_has_evidence_that_the_frames_show(many: list[tuple[Scene, Sample]]) -> None:
    for scene, sample in many[:300]:
        evidence = sample.evidence
        assert evidence.windows and evidence.frames and evidence.boxes
        images = render.frames(scene)
        for box in evidence.boxes:
            thing = next(t for t in scene.things if t.name == box.name)
            step = int(box.t)
            changed = thing.recoloured_at is not None and step >= thing.recoloured_at
            colour = COLOURS[thing.new_colour if changed and thing.new_colour else thing.colour]
            x, y = (box.xyxy[0] + box.xyxy[2]) / 2, (box.xyxy[1] + box.xyxy[3]) / 2
            pixel = images[step * scene.fps][int(y * scene.size[1]), int(x * scene.size[0])]
            assert np.abs(pixel.astype(int) - colour).max() <= 1, (sample.messages, box)


def test_wrong_traces_see_right_and_conclude_wrong(many: list[tuple[Scene, Sample]]) -> None:
    wrong = [(scene, s) for scene, s in many if "trace_answer" in s.meta]
    assert 0.4 < len(wrong) / len(many) < 0.6
    for scene, sample in wrong:
        assert sample.rationale and listing(scene) in sample.rationale
        value = sample.answer.value
        assert sample.meta["trace_answer"] != (list(value) if isinstance(value, tuple) else value)
        right = sft_target(sample, verified=True)
        assert sft_target(sample) != right
        right_rationale = sample.meta["verified_rationale"]
        conclusion = sample.rationale.rindex(" so")
        assert sample.rationale[:conclusion] == right_rationale[: right_rationale.rindex(" so")]


def test_hasty_traces_do_not_look_and_guess() -> None:
    right, expected, total = 0, 0.0, 0
    for number, scene in enumerate(scenes(200)):
        rng = generator("hasty", number)
        for draft in choose_drafts(scene, rng, 4):
            options = {"wrong_share": 0.5, "hasty_share": 1.0, "letter_share": 0.3}
            sample = video_sample(scene, draft, rng, sample_id="x", path="v.mp4", **options)
            assert sample.rationale and sample.rationale.startswith(" so")
            assert not any(name in sample.rationale for name in COLOURS) or draft.type == "word"
            right += "trace_answer" not in sample.meta
            expected, total = expected + 1 / (1 + len(draft.wrong)), total + 1
            careful = sft_target(sample, verified=True)
            assert listing(scene) in careful and careful.endswith(f"<answer>{answer_text(sample.answer)}</answer>")
    assert abs(right - expected) / total < 0.05


def test_questions_describe_one_object_only() -> None:
    for scene in scenes(150):
        for draft in drafts(scene):
            if "the object that turns" in draft.text:
                colour = draft.text.split("turns ")[1].split("?")[0].split(" ")[0]
                assert sum(t.new_colour == colour for t in scene.things) == 1


def test_only_the_warm_start_has_wrong_traces(small_world: Path) -> None:
    for name in MANIFESTS:
        wrong = sum("trace_answer" in s.meta for s in load_manifest(small_world / name, small_world))
        assert (wrong > 0) == ("sft" in name)


def test_the_command_makes_a_world_and_says_what_is_in_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_tools", "synth", "--out", str(tmp_path / "w"), "--train", "4", "--sft", "4"]
    command += ["--validation", "0", "--test", "4", "--questions-per-video", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "3 videos (0 reused), 12 questions" in done.stdout
    record = json.loads((tmp_path / "w/train.jsonl").read_text().splitlines()[0])
    assert record["media"][0]["path"] == "videos/train_00000.mp4"
    refused = subprocess.run([*command, "--seed", "5"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and "other settings" in refused.stderr
