"""vLLM itself, in process: our prompt ids and log-probabilities, new weights after every update, and evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eval import bench
from eval import run as evaluation
from tests.bench_files import put
from tests.engines.agree import BOUND, largest_difference
from tests.runs import groups_with_advantages, small_config, small_run
from visd.config import RewardSection
from visd.observe.files import read_jsonl
from visd.rollout import vllm_engine
from visd.rollout.vllm_engine import VLLMEngine
from visd.rollout.vllm_worker import load_weights
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.launch import run_stage
from visd.train.run import Run
from visd.types import Rewards, RolloutGroup, Sample, VisdError

ENGINE = ("rollout=vllm", "+rollout.engine.cache_gb=0.25")
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def vllm_run(family: str, world: Path, out: Path, request: pytest.FixtureRequest, *settings: str) -> Run:
    run = small_run(world, request.getfixturevalue(f"tiny_{family}"), out, *ENGINE, *settings)
    run.engine.sync(run.backend, 0)
    return run


def llm_of(run: Run) -> Any:
    assert isinstance(run.engine, VLLMEngine)
    return run.engine._llm


def tokens(groups: list[RolloutGroup]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for group in groups for rollout in group.rollouts]


def change(run: Run, name: str, by: float) -> None:
    """Add noise of standard deviation `by` to one weight of the policy."""
    numbers = torch.Generator().manual_seed(0)
    parameter = dict(run.policy.model.named_parameters())[name]
    with torch.no_grad():
        parameter.add_(by * torch.randn(parameter.shape, generator=numbers))


@contextmanager
def tower_calls(run: Run) -> Iterator[list[int]]:
    """Grows by one whenever vLLM's own vision tower runs."""
    calls: list[int] = []

    def tower(worker: Any) -> nn.Module:
        module: nn.Module = worker.model_runner.get_model().visual
        return module

    (module,) = llm_of(run).collective_rpc(tower)
    handle = module.register_forward_hook(lambda *seen: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("layout", ["native", "timestamped_frames"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_ids_and_log_probabilities_are_the_trainers(
    family: str, layout: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Ids are compared for every sample; one that differs is shown."""
    settings = (f"prompt.layout={layout}", "data.train=[train.jsonl,text_train.jsonl]", "train.prompts_per_step=6")
    run = vllm_run(family, small_world, tmp_path, request, *settings)
    groups = groups_with_advantages(run)
    kinds = [kind for group in groups for kind in group.prompt.kinds]
    assert set(kinds) == {"video" if layout == "native" else "image"} and any(not g.prompt.kinds for g in groups)
    assert 0 < largest_difference(run, groups) < BOUND

    pairs = [(group.sample, group.prompt) for group in groups if group.prompt.kinds][:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_engine, "short_ids", lambda prompt, tokenizer: tokenizer(prompt.text[8:])["input_ids"])
        with pytest.raises(VisdError, match=r"differ from token \d+ on.*trainer: .* \| engine: "):
            loop.sample_rollouts(run, pairs, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_ids_are_never_sampled(
    family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained model samples nearly evenly: without the mask, it does sample them."""
    run = vllm_run(family, small_world, tmp_path, request, "rollout.n=32", "rollout.max_new_tokens=24")
    pairs = run.prompts(run.sampler.batch(0))
    sampled = [token for ids in tokens(loop.sample_rollouts(run, pairs, 0)) for token in ids]
    assert len(sampled) > 500 and not set(sampled) & set(run.policy.family.banned_ids)
    fields = vllm_engine.sampling_fields
    monkeypatch.setattr(vllm_engine, "sampling_fields", lambda *said: fields(*said) | {"logit_bias": None})
    with pytest.raises(VisdError, match="banned id"):
        loop.sample_rollouts(run, pairs, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_weight_changes_answers_and_no_video_is_encoded_again(
    family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = vllm_run(family, small_world, tmp_path, request)
    with tower_calls(run) as calls:
        before = groups_with_advantages(run)
        encoded = len(calls)
        assert encoded and largest_difference(run, before) < BOUND
        name = next(n for n, _ in run.policy.model.named_parameters() if n.endswith("layers.1.mlp.down_proj.weight"))
        change(run, name, 0.5)
        run.engine.sync(run.backend, 1)
        after = groups_with_advantages(run)
        assert len(calls) == encoded
    assert tokens(after) != tokens(before) and largest_difference(run, after) < BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_weight_changes_answers(
    family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = vllm_run(family, small_world, tmp_path, request, "model.freeze=[]")
    with tower_calls(run) as calls:
        before = groups_with_advantages(run)
        encoded = len(calls)
        assert encoded and largest_difference(run, before) < BOUND
        name = next(
            n
            for n, _ in run.policy.model.named_parameters()
            if n.endswith("visual.blocks.1.mlp.down_proj.weight") or n.endswith("visual.blocks.1.mlp.linear_fc2.weight")
        )
        change(run, name, 1.0)
        run.engine.sync(run.backend, 1)
        after = groups_with_advantages(run)
        assert len(calls) == 2 * encoded
    logp = [[rollout.logp for group in groups for rollout in group.rollouts] for groups in (before, after)]
    assert logp[0] != logp[1] and largest_difference(run, after) < BOUND


def test_adapters_are_merged_and_a_stream_that_breaks_off_does_no_harm_to_the_next(
    small_world: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = vllm_run(
        "qwen2_5_vl", small_world, tmp_path, request, "model.lora.rank=4", "model.lora.targets=[q_proj,up_proj]"
    )
    for name, parameter in run.policy.model.named_parameters():
        if parameter.requires_grad:
            change(run, name, 0.2)
    assert isinstance(run.engine, VLLMEngine)

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        for number, pair in enumerate(vllm_engine.plain_weights(run.policy, run.backend)):
            if number == 4:
                raise VisdError("broken off")
            yield pair

    with pytest.raises(VisdError, match="broken off"):
        llm_of(run).collective_rpc(load_weights, kwargs={"weights": broken(), "keep_features": True})
    run.engine.sync(run.backend, 1)
    assert largest_difference(run, groups_with_advantages(run)) < BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_and_trainer_agree_while_training(
    family: str, small_world: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps so large that an engine with the weights of the step before would be far off.

    Half of the answers, by their text, count as right.
    """

    def score(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
        right = derive_seed(text) % 2
        return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))

    monkeypatch.setattr(loop, "score", score)
    model: Path = request.getfixturevalue(f"tiny_{family}")
    config = small_config(
        small_world, model, tmp_path, *ENGINE, "method=grpo", "data.train=[train.jsonl,text_train.jsonl]",
        "optim.lr=1e-2", "train.steps=5", "train.prompts_per_step=4", f"rollout.max_mismatch={BOUND}",
    )  # fmt: skip
    assert run_stage(config) == 0
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 5 and steps[-1]["policy/version"] == 5
    assert all(0 < step["engine/logp_diff_max"] < BOUND for step in steps)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    moved = max(float((after[name] - value).abs().max()) for name, value in before.items())
    assert moved > 1e-2


@pytest.fixture
def charades(small_world: Path, tmp_path: Path) -> Path:
    """Seven queries about three videos, and one about a video that is not there."""
    root = tmp_path / "charades"
    (root / "Charades_v1_480").mkdir(parents=True)
    for name, video in zip("ABC", sorted(small_world.rglob("*.mp4"))):
        shutil.copy(video, root / f"Charades_v1_480/{name}.mp4")
    rows = [f"{name} 0.0 1.0##a square moves {word}." for word in ("left", "right") for name in "ABC"]
    put(root / "charades_sta_test.txt", "\n".join([*rows, "A 0.0 1.0##it stops.", "D 0.0 1.0##it stops."]))
    return root


def answers(out: Path) -> list[list[str]]:
    return [[answer["text"] for answer in line["answers"]] for line in read_jsonl(out / "samples.jsonl")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_benchmark_is_answered_as_by_transformers(
    family: str, charades: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Going on after a stop included."""
    model = request.getfixturevalue(f"tiny_{family}")

    def arguments(engine: str, *more: str) -> list[str]:
        fixed = ["benchmark=charades_sta", "max_new_tokens=8", "video.max_pixels=12544", "frames.workers=0"]
        room = ["cache_gb=0.25", "max_prompt_tokens=1000", "batch_prompts=3"]
        return [f"model={model}", f"root={charades}", f"out={tmp_path / engine}", f"engine={engine}", *fixed, *room, *more]  # fmt: skip

    for engine in ("transformers", "vllm"):
        bench.run(bench.parse(arguments(engine)))
    whole = answers(tmp_path / "vllm")
    assert whole == answers(tmp_path / "transformers") and len({text for row in whole for text in row}) > 3
    assert whole[-1] == [""]  # of the missing video
    document = json.loads((tmp_path / "vllm/results.json").read_text())
    assert document["settings"]["engine"] == "vllm" and document["result"]["dropped"] == {"missing": 1}

    path = tmp_path / "vllm/samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:20])
    bench.run(bench.parse(arguments("vllm")))
    assert answers(tmp_path / "vllm") == whole

    several = [*arguments("vllm", "samples=4", "protocol=video_r1_16"), f"out={tmp_path / 'several'}"]
    bench.run(bench.parse(several))  # nearly greedy: top-p 0.001
    drawn = answers(tmp_path / "several")
    assert all(len(row) == 4 and len(set(row)) == 1 for row in drawn)


def test_a_manifest_is_answered_as_by_transformers(tiny_qwen2_5_vl: Path, small_world: Path, tmp_path: Path) -> None:
    def greedy(engine: str) -> list[str]:
        out = tmp_path / engine
        evaluation.run(
            evaluation.parse(
                [f"model={tiny_qwen2_5_vl}", "data=test.jsonl", f"root={small_world}", f"out={out}", f"engine={engine}",
                 "samples=0", "max_new_tokens=8", "prompt.video.max_pixels=12544", "frames.workers=0", "cache_gb=0.25",
                 "prompt.max_tokens=1000"]
            )
        )  # fmt: skip
        return [line["greedy"][0]["text"] for line in read_jsonl(out / "samples.jsonl")]

    assert greedy("vllm") == greedy("transformers")
