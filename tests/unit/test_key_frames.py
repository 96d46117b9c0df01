"""Key frames of the evidence in training prompts: by choice, exact, counted, and never where a model is evaluated."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import main
from data_tools.probed import load_probed
from data_tools.tokens import TokenCounter
from tests.media_files import frame_number, write_video
from tests.runs import small_config, small_run
from visd.config import ConfigError, FramesSection, PromptSection, VideoSection
from visd.data.key_frames import splice, with_key_frames
from visd.media.cache import FrameCache
from visd.media.container import Deadline, index_frames, open_video
from visd.media.errors import DecodeError
from visd.media.families.base import MediumSize
from visd.media.hashes import FileHashes
from visd.media.processor import PromptProcessor
from visd.media.store import entry_key
from visd.media.video import decode, planned
from visd.train.launch import run_stage
from visd.train.longest import candidates, longest_bound
from visd.train.run import load_samples
from visd.types import Answer, DroppedSample, Evidence, Media, Message, Prompt, Sample, VisdError

VIDEO = VideoSection(fps=2, min_frames=4, max_frames=8, min_pixels=1024, max_pixels=96 * 96)
CLIP = Media("video", "clip.mp4")
KEYS = (1.6, 1.62, 3.0, 7.4)  # the first two are one frame; 3.0 is sampled anyway
SHOWN = replace(CLIP, also=KEYS)
CHAT = (Message("user", "<video>\nWhich way does the square move?"),)
SAMPLE = Sample(
    id="s-1",
    source="synthetic",
    family="where",
    media=(CLIP,),
    messages=CHAT,
    answer=Answer("word", "left"),
    evidence=Evidence(frames=(7.4, 1.6, 7.4)),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", 57, 8, (160, 120))  # the last frame is shown at 7 s
    return folder


def processor(model: Path, root: Path, layout: str, **section: Any) -> PromptProcessor:
    video = replace(VIDEO, **section.pop("video", {}))
    made = PromptSection(video=video, layout=layout, key_frames=["where"], **section)
    return PromptProcessor.load(str(model), made, root, FramesSection(workers=0))


def ask(asked: PromptProcessor, media: Media = SHOWN) -> Prompt:
    return asked.process("s-1", CHAT, (media,))


def test_the_nearest_frames_are_added_once_within_the_budget(root: Path) -> None:
    path, whole = root / "clip.mp4", {"start": None, "end": None, "fps": None}
    plain = decode(path, settings=VIDEO, factor=28, **whole)  # type: ignore[arg-type]
    assert plain.indices == (0, 8, 16, 24, 32, 40, 48, 56)
    shown = decode(path, settings=VIDEO, factor=28, also=(1.6, 1.62, 3.0, 7.05), **whole)  # type: ignore[arg-type]
    assert shown.indices == (0, 8, 13, 16, 24, 32, 40, 48, 56)
    assert shown.times == pytest.approx([number / 8 for number in shown.indices])
    assert [round(frame_number(pixels)) for pixels in shown.pixels] == list(shown.indices)
    assert (shown.source_fps, shown.duration) == (plain.source_fps, plain.duration)

    tight = replace(VIDEO, max_pixels=10**6, total_pixels=4 * (84 * 112 + 99))  # for eight such frames, not for more
    sizes = [
        decode(path, settings=tight, factor=28, also=also, **whole).pixels.shape[1:3]  # type: ignore[arg-type]
        for also in ((), (1.6, 2.6, 5.4))
    ]
    assert sizes[0] == (84, 112) and sizes[1][0] * sizes[1][1] < 84 * 112
    with open_video(path, Deadline(path, 60)) as (container, stream):
        index = index_frames(container, stream, Deadline(path, 60))
    numbers, *_ = planned(path, index, 120, 160, settings=VIDEO, factor=28, also=KEYS[:3], **whole)  # type: ignore[arg-type]
    assert numbers == shown.indices, "known before anything is decoded"


def test_fewer_frames_are_counted_with_those_that_stay() -> None:
    times = (0.0, 1.0, 1.6, 2.0, 3.0)
    size = MediumSize("video", times, tuple(round(10 * t) for t in times), 28, 28, also=(16, 20))
    assert size.with_frames(2).indices == (0, 16, 20, 30)
    assert size.with_frames(4).indices == (0, 10, 16, 20, 30), "one of the four is a key frame"
    assert size.with_frames(2).times == pytest.approx((0.0, 1.6, 2.0, 3.0))


@pytest.mark.parametrize(("start", "end", "time"), [(None, None, 7.4), (2.0, 6.0, 1.0), (2.0, 6.0, 6.5)])
def test_a_key_frame_outside_the_clip_is_refused(
    start: float | None, end: float | None, time: float, root: Path
) -> None:
    with pytest.raises(DecodeError, match=rf"the key frame at {time:g} s does not lie in the clip") as caught:
        decode(root / "clip.mp4", start=start, end=end, fps=None, settings=VIDEO, factor=28, also=(time,))
    assert caught.value.reason == "bad_clip"


def test_added_times_are_part_of_what_names_frames(root: Path, tmp_path: Path) -> None:
    hashes, path, near = FileHashes(tmp_path / "hashes"), root / "clip.mp4", replace(CLIP, also=(1.6,))
    keys = [entry_key(path, media, VIDEO, 28, hashes) for media in (CLIP, near, replace(CLIP, also=(1.6, 3.3)))]
    assert len(set(keys)) == 3
    cache = FrameCache(root, VIDEO, 28, FramesSection(workers=0, store=str(tmp_path / "store")))
    assert [len(cache.get(media).times) for media in (CLIP, near, CLIP, near)] == [8, 9, 8, 9]
    assert (cache.counters.videos_decoded, cache.counters.videos_seen) == (2, 2)
    again = FrameCache(root, VIDEO, 28, FramesSection(workers=0, store=str(tmp_path / "store")))
    assert again.get(near).indices == cache.get(near).indices and again.counters.videos_decoded == 0


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("tiny_qwen3_vl", "native"),
        ("tiny_qwen3_vl", "timestamped_frames"),
        ("tiny_qwen2_5_vl", "timestamped_frames"),
    ],
)
def test_every_layout_shows_them_in_order_with_their_times(
    model: str, layout: str, root: Path, request: pytest.FixtureRequest
) -> None:
    asked = processor(request.getfixturevalue(model), root, layout)
    media = replace(CLIP, also=(1.6, 3.0, 6.7))  # the lengths of prompts are compared with their counts in `process`
    plain, shown = ask(asked, CLIP), ask(asked, media)
    assert shown.frame_times[0] == tuple(sorted({*plain.frame_times[0], 1.625, 6.75}))
    if layout == "native":
        times = shown.frame_times[0]
        stamps = [f"<{(a + b) / 2:.1f} seconds>" for a, b in zip(times[::2], times[1::2], strict=True)]
        written = asked.tokenizer.decode(shown.input_ids)
        assert [part for part in stamps if part not in written] == []
        assert shown.vision.video_grid_thw is not None and int(shown.vision.video_grid_thw[0, 0]) == 5
        odd = ask(asked, replace(CLIP, also=(1.6,)))
        assert len(odd.frame_times[0]) == 9 and len(odd) == len(shown), "the last frame fills its pair up"
    else:
        assert "Frame 3 at 1.6s: " in shown.text and "Frame 10 at 7.0s: " in shown.text
        assert shown.vision.image_grid_thw is not None and len(shown.vision.image_grid_thw) == 10

    # Over the limit, sampled frames go and key frames stay.
    section = {"max_tokens": len(shown) - 1, "over_budget": "frames", "video": {"min_frames": 2}}
    fewer = ask(processor(request.getfixturevalue(model), root, layout, **section), media)
    assert fewer.reduced == "frames" and len(fewer) < len(shown)
    assert {1.625, 3.0, 6.75} <= set(fewer.frame_times[0]) and len(fewer.frame_times[0]) >= 7
    section["max_tokens"] = len(ask(processor(request.getfixturevalue(model), root, layout), CLIP)) // 2
    with pytest.raises(DroppedSample, match=r"and still .* with prompt.video.min_frames = 2 frames a video"):
        ask(processor(request.getfixturevalue(model), root, layout, **section), media)


def test_one_rate_for_all_frames_cannot_tell_their_times(tiny_qwen2_5_vl: Path, root: Path) -> None:
    with pytest.raises(VisdError, match=r"would move all others in time; take prompt.layout=timestamped_frames"):
        processor(tiny_qwen2_5_vl, root, "native")


def test_samples_get_their_own_key_frames_or_are_counted() -> None:
    none = replace(SAMPLE, evidence=Evidence())
    two = replace(SAMPLE, media=(CLIP, CLIP))
    beside = replace(SAMPLE, media=(Media("image", "a.png"), CLIP))
    other = replace(SAMPLE, family="when")
    samples = [SAMPLE, none, two, beside, other]
    spliced, found = splice(samples, ["where"])
    assert [[item.also for item in sample.media] for sample in spliced] == [
        [(1.6, 7.4)], [()], [(), ()], [(), (1.6, 7.4)], [()],
    ]  # fmt: skip
    assert (found.samples, found.shown, found.frames, found.without, found.ambiguous) == (5, 2, 4, 1, 1)
    assert "4 key frames stand in the prompts of 2 of 5 training samples (1 of" in found.told
    assert splice(samples, ["all"])[1].shown == 3
    assert [with_key_frames(sample, []) for sample in samples] == samples
    assert replace(spliced[0], media=SAMPLE.media) == SAMPLE, "nothing else of a sample changes"
    with pytest.raises(ConfigError, match="no training sample is of the family 'whose'; there are when, where"):
        splice(samples, ["where", "whose"])
    with pytest.raises(ConfigError, match=r"prompt.key_frames: no training sample of these families has one video and"):
        splice([none, two, other], ["where"])


def test_a_run_shows_them_in_training_only_and_says_so(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ("prompt.layout=timestamped_frames", "prompt.max_tokens=1024", "prompt.video.max_frames=4",
                "data.train=[train.jsonl]", "data.validation=[train.jsonl]", "validation.every=1",
                "validation.samples=2", "train.steps=1", "train.rehearse=always", "method=visd")  # fmt: skip
    lines: list[dict[str, float]] = []
    for name, extra in (("on", ["prompt.key_frames=[all]"]), ("off", [])):
        with caplog.at_level(logging.WARNING, logger="visd.train.launch"):
            caplog.clear()
            assert run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path / name, *settings, *extra)) == 0
        assert ("THE STUDENT SEES WHERE THE EVIDENCE IS" in caplog.text) == (name == "on")
        lines.append(json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]))
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert ("key_frames" in summary) == (name == "on")
    assert lines[0]["prompts/with_key_frames"] == 2 and lines[0]["prompts/key_frames"] >= 2
    assert not any("key_frames" in key for key in lines[1])
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path / "run", *settings, "prompt.key_frames=[all]")
    assert all(item.also for sample in run.sampler.samples for item in sample.media)
    assert not any(item.also for sample in run.questions for item in sample.media)
    trained, asked = (dict_of(run.prompts(samples)) for samples in (run.sampler.samples, run.questions))
    assert {len(prompt.frame_times[0]) for prompt in asked.values()} == {4}
    for sample in run.sampler.samples:  # a key frame that is sampled anyway comes once
        times, found = sample.media[0].also, trained[sample.id].frame_times[0]
        assert all(min(abs(time - shown) for shown in found) < 0.1 for time in times)
        assert 4 <= len(found) <= 4 + len(times)
    assert max(len(prompt.frame_times[0]) for prompt in trained.values()) > 4
    bound = longest_bound(run.builder, candidates(run.builder, run.sampler.samples), 1024)
    assert bound is not None and bound.tokens >= max(map(len, trained.values()))
    plain = longest_bound(run.builder, candidates(run.builder, run.questions), 1024)
    assert plain is not None and plain.tokens < bound.tokens


def test_tools_count_and_keep_what_training_shows(small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path) -> None:
    settings = [
        "experiment=demo", f"data.root={small_world}", f"model.path={tiny_qwen3_vl}", "data.train=[train.jsonl]",
        "data.validation=[validation.jsonl]", "data.test=[]", "prompt.max_tokens=1024", "prompt.video.max_frames=4",
        "prompt.key_frames=[all]", f"data.frames.store={tmp_path / 'store'}",
    ]  # fmt: skip
    assert main(["probe", "--root", str(small_world), "--out", str(tmp_path / "probe.jsonl")]) == 0
    assert main(["cache", *settings, "data.frames.workers=0", "tracking.progress=false"]) == 0
    run = small_run(small_world, tiny_qwen3_vl, tmp_path / "run", *settings[3:])
    prompts = dict_of(run.prompts(run.sampler.samples))
    assert any(len(prompt.frame_times[0]) > 4 for prompt in prompts.values()) and run.videos_decoded == 0
    counter, probed = TokenCounter(settings), load_probed((tmp_path / "probe.jsonl",))
    for sample in load_samples(run.config, "train"):
        assert counter.count(sample, probed).tokens == len(prompts[sample.id])


def dict_of(pairs: list[tuple[Sample, Prompt]]) -> dict[str, Prompt]:
    return {sample.id: prompt for sample, prompt in pairs}
