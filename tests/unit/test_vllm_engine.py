"""What the engine asks of vLLM, by a vLLM that writes down what it is asked; the real one has a test of its own."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import EOS
from tests.runs import small_run
from visd.config import ConfigError
from visd.policy import lora
from visd.policy.policy import Policy
from visd.rollout import vllm_engine
from visd.rollout.base import Limits, Sampling
from visd.rollout.vllm_engine import VLLMEngine
from visd.rollout.vllm_request import NEVER
from visd.train.loop import sample_rollouts
from visd.train.run import Run
from visd.types import VisdError

SAMPLING = Sampling(2, 1.0, 1.0, 0, 8)


class FakeLLM:
    """Answers with token 5 and the end of the turn, in reverse order."""

    def __init__(self, **settings: Any):
        self.settings = settings
        self.calls: list[Any] = []
        self.loaded: dict[str, torch.Tensor] = {}
        self.prompt_ids: list[list[int]] = []  # what it claims to have seen
        self.model_runner = types.SimpleNamespace(encoder_cache={"clip": 1}, device=torch.device("cuda"))
        self.llm_engine = types.SimpleNamespace(reset_encoder_cache=lambda: self.calls.append("encoder"))

    def collective_rpc(self, method: Any, kwargs: dict[str, Any]) -> list[Any]:
        return [method(self, **kwargs)]  # it is its own worker

    def reload_weights(self, weights_iterator: Any) -> None:
        self.calls.append("reload_weights")
        self.loaded = {name: value.clone() for name, value in weights_iterator}
        self.model_runner.encoder_cache.clear()

    def reset_prefix_cache(self) -> bool:
        self.calls.append("prefix")
        return True

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake", *tags))

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def generate(self, requests: list[Any], settings: list[Any], use_tqdm: bool) -> list[Any]:
        self.calls.append(("generate", requests, settings))
        answer = types.SimpleNamespace

        def output(index: int) -> Any:
            logprobs = [{5: answer(logprob=-1.0 - index)}, {EOS: answer(logprob=-0.5)}]
            return answer(index=index, token_ids=[5, self.end], logprobs=[logprobs[0], {self.end: logprobs[1][EOS]}])

        return [
            answer(prompt_token_ids=ids, outputs=[output(g) for g in reversed(range(own.n))])
            for ids, own in zip(self.prompt_ids, settings, strict=True)
        ]

    end = EOS


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("vllm")
    module.LLM = FakeLLM  # type: ignore[attr-defined]
    module.SamplingParams = lambda **settings: types.SimpleNamespace(**settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_engine, "normalises_on_device", lambda: True)


@pytest.fixture
def run(vllm: None, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> Run:
    return small_run(small_world, tiny_qwen2_5_vl, tmp_path, "rollout=vllm", "rollout.n=2", "prompt.max_tokens=300")


def llm_of(run: Run) -> FakeLLM:
    assert isinstance(run.engine, VLLMEngine)
    llm: FakeLLM = run.engine._llm
    return llm


def test_one_request_a_prompt_with_our_frames_and_masks(run: Run) -> None:
    run.engine.sync(run.backend, 0)
    llm = llm_of(run)
    assert llm.settings["max_model_len"] == 300 + 12 and llm.settings["logprobs_mode"] == "processed_logprobs"
    assert llm.settings["mm_device_do_normalize"] is False
    pairs = run.prompts(run.sampler.batch(0))
    llm.prompt_ids = [prompt.input_ids.tolist() for _, prompt in pairs]
    llm.end = run.policy.eos_ids[0]
    groups = sample_rollouts(run, pairs, 0)
    _, requests, settings = llm.calls[-1]
    assert len(requests) == 2 and all(own.n == 2 for own in settings)
    assert all(own.logit_bias == dict.fromkeys(run.policy.family.banned_ids, NEVER) for own in settings)
    assert settings[0].seed != settings[1].seed
    ((frames, facts),) = requests[0]["multi_modal_data"]["video"]
    assert frames is pairs[0][1].frames[0].pixels and facts["do_sample_frames"] is False
    assert requests[0]["mm_processor_kwargs"] == {"do_resize": False}
    pads = requests[0]["prompt_token_ids"].count(run.policy.family.video_token_id)  # type: ignore[attr-defined]
    assert pads == 1
    first = groups[0].rollouts
    assert [r.logp for r in first] == [(-1.0, -0.5), (-2.0, -0.5)] and first[0].stop_reason == "eos"
    assert first[0].seed != first[1].seed


def test_weights_go_over_when_they_change_and_caches_are_emptied(run: Run) -> None:
    run.engine.sync(run.backend, 0)
    llm = llm_of(run)
    assert llm.calls == ["reload_weights", "prefix"] and llm.model_runner.encoder_cache == {"clip": 1}
    trained = {name.removeprefix("hf.") for name, p in run.policy.model.named_parameters() if p.requires_grad}
    assert llm.loaded.keys() == trained and not any("visual" in name for name in trained)
    run.engine.sync(run.backend, 0)
    assert len(llm.calls) == 2
    with torch.no_grad():
        next(p for p in run.policy.model.parameters() if p.requires_grad).add_(1.0)
    before = llm.loaded
    run.engine.sync(run.backend, 1)
    assert len(llm.calls) == 4
    assert sum(not torch.equal(before[name], value) for name, value in llm.loaded.items()) == 1


def test_a_trained_tower_has_its_features_forgotten(
    vllm: None, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, "rollout=vllm", "model.freeze=[encoder]")
    run.engine.sync(run.backend, 0)
    llm = llm_of(run)
    assert llm.calls == ["reload_weights", "encoder", "prefix"] and not llm.model_runner.encoder_cache
    assert any("merger" in name for name in llm.loaded)


def test_a_joined_layer_arrives_whole(vllm: None, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """An adapter of queries alone: keys, values and biases go along, merged weights in place of the base's."""
    settings = ("rollout=vllm", "model.lora.rank=2", "model.lora.targets=[q_proj]")
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *settings)
    with torch.no_grad():
        for parameter in run.policy.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    run.engine.sync(run.backend, 0)
    loaded = llm_of(run).loaded
    kinds = {name.split("layers.0.")[1] for name in loaded if "layers.0." in name}
    weights = {f"self_attn.{part}_proj.weight" for part in "qkvo"}
    assert kinds == weights | {f"self_attn.{part}_proj.bias" for part in "qkv"}
    whole = lora.merged(run.backend.full_state(), run.policy.adapter_scale or 0.0)
    assert all(torch.equal(value, whole[f"hf.{name}"]) for name, value in loaded.items())


def test_another_prompt_and_a_banned_id_stop(run: Run) -> None:
    run.engine.sync(run.backend, 0)
    llm = llm_of(run)
    pairs = run.prompts(run.sampler.batch(0))
    llm.prompt_ids = [prompt.input_ids.tolist()[1:] for _, prompt in pairs]
    with pytest.raises(VisdError, match="differ from token 0 on"):
        sample_rollouts(run, pairs, 0)
    llm.prompt_ids = [prompt.input_ids.tolist() for _, prompt in pairs]
    llm.end = run.policy.family.banned_ids[0]
    with pytest.raises(VisdError, match="banned id"):
        sample_rollouts(run, pairs, 0)


def test_memory_is_given_back_between_sampling_and_sync(run: Run) -> None:
    assert isinstance(run.engine, VLLMEngine)
    run.engine.sync(run.backend, 0)
    llm, run.engine.sleep = llm_of(run), True
    pairs = run.prompts(run.sampler.batch(0))
    llm.prompt_ids, llm.end = [prompt.input_ids.tolist() for _, prompt in pairs], run.policy.eos_ids[0]
    llm.calls.clear()
    run.config.rollout.batch_prompts = 1
    llm.prompt_ids = llm.prompt_ids[:1]
    sample_rollouts(run, pairs[:1], 0)
    sample_rollouts(run, pairs[:1], 0)
    for _ in range(2):
        run.engine.rest()
    run.engine.sync(run.backend, 1)
    run.engine.rest()
    sample_rollouts(run, pairs[:1], 0)
    names = [call if isinstance(call, str) else call[0] if call[0] == "generate" else call for call in llm.calls]
    assert names == [
        "generate", "generate", ("sleep", 1), ("wake", "weights"), "reload_weights", ("wake", "kv_cache"), "prefix",
        ("sleep", 1), ("wake", "weights", "kv_cache"), "generate",
    ]  # fmt: skip


def test_an_evaluation_takes_the_folders_weights_and_may_cut_the_distribution(run: Run) -> None:
    outline = Policy.outline(run.config.model, torch.device("cpu"))
    whole = run.policy
    assert all(parameter.is_meta for parameter in outline.model.parameters())
    for name in ("source", "eos_ids", "compute_dtype", "device", "max_positions"):
        assert getattr(outline, name) == getattr(whole, name), name
    assert outline.family.banned_ids == whole.family.banned_ids
    engine = VLLMEngine(outline, run.processor.tokenizer)
    engine.serve_folder(64)
    llm: FakeLLM = engine._llm
    assert llm.settings["max_model_len"] == 64 and not llm.calls  # no weights were sent
    pairs = run.prompts(run.sampler.batch(0))
    llm.prompt_ids, llm.end = [prompt.input_ids.tolist() for _, prompt in pairs], run.policy.eos_ids[0]
    engine.generate([prompt for _, prompt in pairs], Sampling(2, 0.1, 0.001, 3, 8), [[1, 2], [3, 4]], 0)
    settings = llm.calls[-1][2]
    assert [(own.temperature, own.top_p, own.top_k) for own in settings] == [(0.1, 0.001, 3)] * 2


@pytest.mark.parametrize(
    ("limits", "options", "expected"),
    [
        (Limits(SAMPLING, 100, 2), {}, r"serves one process, and 2 were started"),
        (Limits(Sampling(2, 1.0, 0.9, 0, 8), 100, 1), {}, r"rollout\.top_p, rollout\.top_k"),
        (Limits(Sampling(2, 1.0, 1.0, 5, 8), 100, 1), {}, r"rollout\.top_p, rollout\.top_k"),
        (Limits(SAMPLING, 100, 1), {"sleep": True}, r"engine\.sleep.*no GPU"),
    ],
)
def test_what_it_cannot_do_is_refused_at_start(
    limits: Limits, options: dict[str, Any], expected: str, run: Run
) -> None:
    with pytest.raises(ConfigError, match=expected):
        VLLMEngine(run.policy, None, **options).open(limits)


def test_vllm_is_asked_for_by_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'visd\[vllm\]'"):
        run.engine.sync(run.backend, 0)
