"""GKD's steps on the data's own answers: what is trained on, what is not sampled, and that a run mixes both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.runs import small_config
from visd.config import ConfigError, RunConfig
from visd.data.targets import sft_target
from visd.rollout.transformers_engine import TransformersEngine
from visd.train import launch
from visd.train.launch import run_stage
from visd.train.run import Run, set_up
from visd.types import VisdError

TEXT = "data.train=[text_train.jsonl]"


@pytest.fixture
def settings(tiny_teacher: Path) -> tuple[str, ...]:
    return ("method=gkd", f"teacher.path={tiny_teacher}", "method.beta=0.0", "tracking.dump_every=1")


def test_the_loss_is_that_of_the_datas_answers_and_nothing_is_sampled(
    small_world: Path,
    tiny_qwen2_5_vl: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forward KL, mean over all tokens of the answers, against both models as transformers runs them."""
    runs: list[Run] = []

    def kept(config: RunConfig) -> Run:
        runs.append(set_up(config))
        return runs[0]

    monkeypatch.setattr(launch, "set_up", kept)
    monkeypatch.setattr(TransformersEngine, "generate", lambda *_: pytest.fail("asked for rollouts"))
    config = small_config(
        small_world, tiny_qwen2_5_vl, tmp_path, *settings, TEXT, "method.on_policy=0", "train.steps=1"
    )
    assert run_stage(config) == 0
    (step,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    run = runs[0]
    run.step = 0
    models = [AutoModelForImageTextToText.from_pretrained(path) for path in (tiny_qwen2_5_vl, tiny_teacher)]
    divergences = []
    for sample, prompt in run.step_prompts(0):
        ids = [*run.processor.tokenizer.encode(sft_target(sample, verified=True)), run.policy.eos_ids[0]]
        whole = torch.cat([prompt.input_ids, torch.tensor(ids)])[None]
        student, teacher = (
            model(whole).logits[0, len(prompt.input_ids) - 1 : -1].detach().double() for model in models
        )
        for logits in (student, teacher):
            logits[:, run.policy.model.banned] = -torch.inf
        p, q = student.log_softmax(-1), teacher.log_softmax(-1)
        divergences.append(torch.where(q.exp() > 0, q.exp() * (q - p), 0.0).sum(-1))
    expected = torch.cat(divergences)
    assert step["data/answer_tokens"] == len(expected)
    assert step["loss"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert step["term/distillation"] == pytest.approx(step["loss"])
    assert "rollout/tokens" not in step or step["rollout/tokens"] == 0
    written = [json.loads(line) for line in (tmp_path / "rollouts/step_000001.jsonl").read_text().splitlines()]
    assert [line["text"] for line in written] and all("<answer>" in line["text"] for line in written)


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_mixes_both_kinds_and_goes_on_as_it_would_have(
    staleness: int, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    """Videos and text; a run that stops after every other step is the run in one go, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = (*settings, "method.on_policy=0.5", "train.steps=6", "data.train=[train.jsonl,text_train.jsonl]")
    more += (f"rollout.max_staleness={staleness}", "objective.old_logp=engine")
    assert run_stage(small_config(small_world, tiny_qwen2_5_vl, whole, *more)) == 0
    for _ in range(3):
        assert run_stage(small_config(small_world, tiny_qwen2_5_vl, parts, *more, "train.stop_after=2")) == 0
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (whole, parts)
    ]
    kinds = ["data/answer_tokens" in line for line in lines[0]]
    assert len(kinds) == 6 and {True, False} == set(kinds)
    assert all(line["optim/grad_norm"] > 0 for line in lines[0])
    for one, other in zip(*lines, strict=True):
        assert {k: v for k, v in one.items() if k.split("/")[0] not in ("time", "meter", "media")} == {
            k: v for k, v in other.items() if k.split("/")[0] not in ("time", "meter", "media")
        }


def test_what_it_cannot_be_combined_with(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    mixed = (*settings, "method.on_policy=0.5")
    with pytest.raises(ConfigError, match=r"objective\.dynamic_sampling.*method\.on_policy < 1"):
        set_up(small_config(small_world, tiny_qwen2_5_vl, tmp_path, *mixed, "objective.dynamic_sampling=drop"))
    lines = [json.loads(line) for line in (small_world / "text_train.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("rationale", None)
        line.get("meta", {}).pop("verified_rationale", None)
    (tmp_path / "bare.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(VisdError, match=r"rationale.*is missing"):
        set_up(small_config(small_world, tiny_qwen2_5_vl, tmp_path, *mixed, f"data.train=[{tmp_path}/bare.jsonl]"))
