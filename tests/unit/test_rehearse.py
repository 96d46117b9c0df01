"""The largest step runs before the first one, leaves no trace in the run, and says what it took."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs import assert_bit_equal, small_config, small_run, weights
from visd.observe.memory import PeakMeter
from visd.policy.oom import OutOfMemory
from visd.train.launch import run_stage
from visd.train.longest import candidates, fitted, longest_bound, prompt_of
from visd.train.rehearse import Script, due, rehearse
from visd.train.run import Run

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB")
BOTH = "data.train=[train.jsonl,text_train.jsonl]"


def state_of(run: Run) -> dict[str, object]:
    assert run.backend.optimizer is not None  # type: ignore[attr-defined]
    return {
        "random": torch.get_rng_state().tolist(),
        "optimizer": dict(run.backend.optimizer.state),  # type: ignore[attr-defined]
        "gradients": [name for name, p in run.policy.model.named_parameters() if p.grad is not None],
        "decoded": run.videos_decoded,
        "calls": run.policy.tower_calls,
        "step": (run.step, run.policy_version),
        "method": copy.deepcopy(run.method.state_dict()),
        "drops": dict(run.drops.by_id),
        "training": run.policy.model.training,
    }


@pytest.mark.parametrize(
    "settings",
    [
        ("method=visd",),
        ("method=opsd",),
        ("method=grpo", "objective.kl_weight=0.1"),
        ("method=sdpo", "teacher.weights=trust_region"),
        ("method=visd", "train.shared_prefix=false", "model.freeze=[]"),
        ("method=grpo", "optim.algorithm=muon"),
        ("stage=sft", "data.train=[sft_train.jsonl]", "sft.privileged_share=1"),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_nothing_is_changed(
    settings: tuple[str, ...], small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, BOTH, *settings)
    before, own = state_of(run), weights(run)
    shards = {} if run.teacher is None else {k: v.clone() for k, v in run.teacher.state_dict().items()}
    done = rehearse(run)
    assert done is not None and done.peaks.keys() == {"encode", "update", "optimizer", "teacher"}
    assert state_of(run) == before
    assert_bit_equal(own, weights(run))
    if run.teacher is not None:
        assert_bit_equal(shards, run.teacher.state_dict())
    assert 0 < done.prompt <= run.config.prompt.max_tokens and done.tokens <= run.config.train.micro_batch_tokens


def test_an_external_teacher_is_rehearsed(
    small_world: Path,
    tiny_qwen2_5_vl: Path,
    tiny_other_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = small_run(
        small_world, tiny_qwen2_5_vl, tmp_path, "method=simct", f"teacher.path={tiny_other_tokenizer}",
    )  # fmt: skip
    assert run.external is not None
    seen, score = [], run.external.policy.score

    def watched(rows: list[object], **options: object) -> object:
        seen.append(len(rows))
        return score(rows, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run.external.policy, "score", watched)
    assert rehearse(run) is not None and seen


def test_a_run_is_the_same_with_a_rehearsal(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """Sampled tokens, losses, weights, optimiser and teacher, also where the run is resumed."""
    found = []
    for when in ("never", "always"):
        out = tmp_path / when
        for stop in ("train.stop_after=1", "train.stop_after=0"):
            settings = ("method=visd", BOTH, f"train.rehearse={when}", "checkpoint.export=never", stop)
            assert run_stage(small_config(small_world, tiny_qwen2_5_vl, out, *settings)) == 0
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        numbers = [{k: v for k, v in line.items() if not k.startswith(("time/", "meter/", "media/"))} for line in lines]
        dumps = [path.read_text() for path in sorted((out / "rollouts").glob("*.jsonl"))]
        last = out / "checkpoints" / "step_000002"
        files = {str(path.relative_to(last)): path.read_bytes() for path in last.rglob("*.safetensors")}
        found.append((numbers, dumps, files))
        summary = json.loads((out / "summary.json").read_text())
        assert ("rehearsal" in summary) == (when == "always")
    assert found[0] == found[1]
    assert {"prompt", "tokens", "forecast", "peaks", "sample_id"} == summary["rehearsal"].keys()


@pytest.mark.parametrize("layout", ["native", "timestamped_frames"])
def test_no_prompt_is_longer_than_the_bound(
    layout: str, small_world: Path, tiny_qwen3_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen3_vl, tmp_path, BOTH, f"prompt.layout={layout}", "prompt.max_tokens=4096")
    samples = run.sampler.samples
    bound = longest_bound(run.builder, candidates(run.builder, samples), 4096)
    assert bound is not None and bound.sample.media
    assert len(prompt_of(run.builder, bound)) == bound.tokens
    real = [len(prompt) for _, prompt in run.prompts(samples)]
    assert len(real) == len(samples) and max(real) <= bound.tokens

    # The limits decide, and a shorter clip by its record is shorter.
    section = run.config.prompt.video
    tight = replace(section, max_frames=4)
    run.processor.section = replace(run.processor.section, video=tight)
    fewer = longest_bound(run.builder, candidates(run.builder, samples), 4096)
    assert fewer is not None and fewer.tokens < bound.tokens
    cut = longest_bound(run.builder, candidates(run.builder, samples), fewer.tokens - 1)
    assert cut is not None and cut.tokens < fewer.tokens
    assert longest_bound(run.builder, candidates(run.builder, samples), 3) is None


def test_a_recorded_length_bounds_the_frames(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path)
    sample = next(s for s in run.sampler.samples if s.media)
    fps, most = run.config.prompt.video.fps, run.config.prompt.video.max_frames
    ((_, (whole,)),) = candidates(run.builder, [replace(sample, meta={})])
    assert len(whole.times) == most
    clip = replace(sample.media[0], start=1.0, end=1.0 + 4 / fps)
    ((_, (part,)),) = candidates(run.builder, [replace(sample, media=(clip,))])
    assert len(part.times) == max(4, run.config.prompt.video.min_frames) < most


def test_frames_are_taken_until_a_prompt_fits(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "prompt.video.max_frames=16")
    ((sample, sizes),) = candidates(run.builder, [replace(next(s for s in run.sampler.samples if s.media), meta={})])

    def count(sizes: object) -> int:
        return run.processor.count_tokens(run.builder.messages(sample.question()), sizes)  # type: ignore[arg-type]

    for limit in (count(sizes), count(sizes) - 1, count(sizes) // 2):
        fitting = fitted(sizes, count, limit)
        assert fitting is not None and count(fitting) <= limit
        more = fitting[0].with_frames(len(fitting[0].times) + 2)
        assert len(more.times) > 16 or count([more]) > limit


def test_shorter_rows_fill_what_long_ones_leave(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """One long row of 60 % of a micro-batch is less than two of 50 %."""
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=grpo", "train.shared_prefix=false")
    row = Script(run).shapes()[0].bound.tokens + run.config.rollout.max_new_tokens
    run.config.train.micro_batch_tokens = int(row * 1.7)
    shapes = Script(run).shapes()
    assert [shape.rows for shape in shapes] == [1, 2]
    assert row == shapes[0].tokens < shapes[1].tokens <= row * 1.7
    run.config.train.micro_batch_tokens = row
    assert [shape.rows for shape in Script(run).shapes()] == [1]
    run.config.train.micro_batch_tokens = 8
    assert Script(run).shapes() == [] and rehearse(run) is None


def test_a_step_that_needs_too_much_ends_the_start(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "method=visd")

    def forward(*arguments: object, **options: object) -> None:
        raise GPU

    monkeypatch.setattr(run.policy.model, "forward", forward)
    with pytest.raises(OutOfMemory) as caught:
        rehearse(run)
    said, known = str(caught.value), {sample.id for sample in run.sampler.samples}
    assert said.startswith("before the first step: out of memory in the update of sample ")
    assert said.split("of sample ")[1].split(":")[0] in known
    for knob in ("train.micro_batch_tokens", "prompt.max_tokens", "train.rehearse=never", "Tried to allocate 2.00 GiB"):
        assert knob in said


def test_what_is_printed_and_when_it_is_due(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("method=visd", "train.rehearse=always", "check_only=true", "data.validation=[]", "data.test=[]")
    config = small_config(small_world, tiny_qwen2_5_vl, tmp_path, *settings)
    assert run_stage(config) == 0
    printed = capsys.readouterr().err
    for word in ("rehearsal of the largest step", "forecast", "peak", "teacher", "4 answers of 12 tokens"):
        assert word in " ".join(printed.split())
    automatic = small_config(small_world, tiny_qwen2_5_vl, tmp_path)
    assert not due(automatic, torch.device("cpu")) and due(automatic, torch.device("cuda"))
    automatic.train.rehearse = "never"
    assert due(config, torch.device("cpu")) and not due(automatic, torch.device("cuda"))


def test_a_peak_is_seen_after_it_has_passed() -> None:
    meter = PeakMeter(torch.device("cpu"))
    meter.start()
    block = np.ones(64 * 2**20, dtype=np.uint8)
    del block
    assert 60 * 2**20 < meter.peak() < 200 * 2**20
    meter.start()
    assert meter.peak() < 60 * 2**20
