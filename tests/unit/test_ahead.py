"""One step ahead: what is learnt from older answers, who is compared with whom, and real overlap with a server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from trl.trainer.utils import selective_log_softmax

from tests.runs import (
    assert_same_gradients,
    capture_gradients,
    groups_with_advantages,
    small_config,
    small_run,
    weights,
)
from tests.unit.test_rollout_servers import server
from visd.config import ConfigError, RewardSection
from visd.rollout.transformers_engine import TransformersEngine
from visd.rollout.weight_stream import receive_weights
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.ahead import check_versions, read_answers, write_answers
from visd.train.launch import run_stage
from visd.train.run import Run
from visd.train.update import Update, update_policy
from visd.types import Rewards, Rollout, RolloutGroup, Sample, VisdError

STALE = ("method=grpo", "rollout.max_staleness=1", "data.train=[text_train.jsonl]")
CLIPPED = (*STALE, "objective.old_logp=engine")


def made_up_score(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
    """An untrained model's answers are all wrong, and a run that learns nothing would test nothing."""
    right = derive_seed(text) % 2
    return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))


def moved(run: Run, by: float = 0.02) -> None:
    """The weights after an update that nobody computed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in run.policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=by)
    run.policy_version += 1


@pytest.mark.parametrize(
    ("setting", "cap"), [("objective.old_logp=engine", 0.0), ("objective.importance_cap=1.1", 1.1)]
)
def test_gradients_from_older_answers_equal_an_independent_implementation(
    setting: str, cap: float, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    """The weights move after sampling: plain autograd over transformers' own forward, ratios to the sampling logp."""
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *STALE, setting, "rollout.max_mismatch=1e-3")
    groups = groups_with_advantages(run)
    moved(run)
    grads = capture_gradients(run)
    metrics = update_policy(run, groups, {}, {}, 0).metrics.values()
    assert metrics["rollout/staleness"] == 1 and metrics["stale/logp_diff_mean"] > 0.01
    assert not any(name.startswith("engine/logp") for name in metrics), "older answers say nothing of the engine"

    hf = AutoModelForImageTextToText.from_pretrained(tiny_qwen2_5_vl, dtype=torch.float32)
    mine = {name.removeprefix("hf."): value for name, value in run.policy.model.named_parameters()}
    assert not hf.load_state_dict(mine, strict=False).unexpected_keys
    tokens = sum(len(r.token_ids) for g in groups for r in g.rollouts)
    total, ratios = torch.zeros(()), []
    for group in groups:
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
            response = torch.tensor(rollout.token_ids)
            ids = torch.cat([group.prompt.input_ids, response])[None]
            logits = hf(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].clone()
            logits[:, list(run.policy.family.banned_ids)] = float("-inf")
            logp = selective_log_softmax(logits, response)
            ratio = (logp - torch.tensor(rollout.logp)).exp()
            ratios += ratio.tolist()
            free, bound = ratio * advantage, ratio.clamp(0.8, 1.2) * advantage
            truncated = ratio.detach().clamp(max=cap) * advantage * logp
            total = total - (truncated if cap else torch.minimum(free, bound)).sum() / tokens
    total.backward()
    assert min(ratios) < 0.8 and max(ratios) > 1.2, "no clip acted, so none was tested"
    independent = {f"hf.{n}": p.grad for n, p in hf.named_parameters() if p.grad is not None}
    assert_same_gradients(independent, grads, relative=1e-5)


def test_what_cannot_work_is_refused(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    def refused(match: str, *overrides: str) -> None:
        with pytest.raises(ConfigError, match=match):
            small_config(small_world, tiny_qwen2_5_vl, tmp_path, *overrides)

    refused(r"rollout\.max_staleness: 2 is not one of 0, 1", *CLIPPED, "rollout.max_staleness=2")
    refused(r"max_staleness: 1 learns from answers of older weights.*old_logp=engine", *STALE)
    refused(r"max_staleness: 1 has .* one version.*=refill", *CLIPPED, "objective.dynamic_sampling=refill")
    small_config(small_world, tiny_qwen2_5_vl, tmp_path, *CLIPPED, "objective.dynamic_sampling=drop")


def test_an_engine_that_disagrees_still_stops_the_run(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that the second step's short answers are compared with are those that gave them, not those to come."""
    generate, off = TransformersEngine.generate, [0.0]

    def shifted(self: TransformersEngine, *arguments: Any) -> list[tuple[Rollout, ...]]:
        found = generate(self, *arguments)
        return [tuple(replace(r, logp=tuple(v + off[0] for v in r.logp)) for r in group) for group in found]

    def update(run: Run, *arguments: Any) -> Update:
        before[:] = [weights(run)]
        runs[:] = [run]
        done = update_policy(run, *arguments)
        off[0] = 0.3
        return done

    before: list[dict[str, torch.Tensor]] = []
    runs: list[Run] = []
    monkeypatch.setattr(TransformersEngine, "generate", shifted)
    monkeypatch.setattr(loop, "update_policy", update)
    monkeypatch.setattr(loop, "score", made_up_score)
    large = ("optim.lr=1e-2", "rollout.max_mismatch=0.01", "train.steps=4")
    with pytest.raises(VisdError, match=r"step 2: .* differ by 0\.3 nats on the mean"):
        run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path, *CLIPPED, *large))
    assert all(torch.equal(value, before[0][name]) for name, value in weights(runs[0]).items())


def test_answers_go_to_files_and_back(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *CLIPPED)
    groups = groups_with_advantages(run)
    spoken = replace(groups[0].rollouts[0], own=(True,) * 11 + (False,), calls=("ok",))
    groups[0] = replace(groups[0], rollouts=(spoken, *groups[0].rollouts[1:]))
    for rank, group in enumerate(groups):  # as two ranks would write them
        write_answers([group], rank, tmp_path)
    assert read_answers(tmp_path) == {group.sample.id: group.rollouts for group in groups}


def test_mixed_and_too_old_answers_are_refused(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *CLIPPED)
    groups = groups_with_advantages(run)
    check_versions(run, groups)
    run.policy_version = 1
    check_versions(run, groups)
    newer = replace(groups[0], rollouts=tuple(replace(r, policy_version=1) for r in groups[0].rollouts))
    with pytest.raises(VisdError, match=r"versions \[0, 1\]"):
        check_versions(run, [newer, groups[1]])
    run.policy_version = 2
    with pytest.raises(VisdError, match=r"versions \[0\], rollout\.max_staleness wants one from 1 to 2"):
        check_versions(run, groups)


class Server:
    """A vLLM server for two prompts a step, which gives made-up answers and writes down what happens.

    The answers of every step but the first are held back until the update of the step before has ended, and the last of them
    for a moment more, in which new weights would come if they did not wait.
    """

    def __init__(self, refuse_from: int = 99):
        self.refuse_from = refuse_from  # step whose answers are refused
        self.label = "of the folder"
        self.asked = 0
        self.events: list[tuple[str, int]] = []
        self.changed = threading.Condition()

    def note(self, what: str, number: int) -> None:
        with self.changed:
            self.events.append((what, number))
            self.changed.notify_all()

    def place(self, what: str, number: int, last: bool = False) -> int:
        found = [i for i, event in enumerate(self.events) if event == (what, number)]
        return found[-1 if last else 0]

    def route(self, path: str, body: Any) -> tuple[int, Any]:
        answers: dict[str, Callable[[], tuple[int, Any]]] = {
            "/health": lambda: (200, {}),
            "/weight_info": lambda: (200, {"weight_version": self.label}),
            "/get_world_size": lambda: (200, {"world_size": 1}),
            "/reset_prefix_cache": lambda: (200, {"success": True}),
            "/collective_rpc": lambda: self.fetch(*body["args"]),
            "/update_weight_version": lambda: self.named(body["new_version"]),
            "/inference/v1/generate": lambda: self.generate(body, body["sampling_params"]),
        }
        return answers[path]()

    def fetch(self, host: str, port: str, token: str, keep: str) -> tuple[int, Any]:
        with receive_weights(host, int(port), token) as stream:
            assert len(dict(stream)) > 0
        return 200, {"results": ["kept"]}

    def named(self, label: str) -> tuple[int, Any]:
        self.label = label
        self.note("weights", int(label.rpartition("-")[2]))
        return 200, {}

    def generate(self, body: Any, sampling: Any) -> tuple[int, Any]:
        with self.changed:
            whole = sampling["n"] > 1  # else the short answers by which engine and trainer are compared
            step, second, self.asked = self.asked // 2, self.asked % 2, self.asked + whole
        label = self.label
        if whole:
            self.note("asked", step)
            if step >= self.refuse_from:
                return 400, {"error": "no more"}
            with self.changed:
                self.changed.wait_for(lambda: step == 0 or ("updated", step - 1) in self.events, timeout=30)
                if step and second:
                    self.changed.wait_for(lambda: ("weights", step) in self.events, timeout=0.5)
            self.note("answered", step)
        ids = [[100 + (sampling["seed"] + 7 * i) % 300, 60 + i] for i in range(sampling["n"])]
        spans = [{"version": label, "start": 0, "end": 2}]
        one = [
            {
                "index": i, "token_ids": tokens, "weight_versions": spans,
                "logprobs": {"content": [{"logprob": -1.0}] * len(tokens)},
            }
            for i, tokens in enumerate(ids)
        ]  # fmt: skip
        return 200, {"choices": one, "prompt_token_ids": body["token_ids"]}


def served(world: Path, model: Path, out: Path, url: str) -> Any:
    server = (
        "rollout=vllm_server",
        f"rollout.engine.urls=[{url}]",
        "rollout.max_mismatch=0",
        "rollout.batch_prompts=1",
    )
    validation = ("validation.every=1", "validation.samples=2", "data.validation=[text_test.jsonl]")
    checkpoints = ("train.steps=4", "checkpoint.every=3", "checkpoint.export=never", "validation.keep_best=false")
    return small_config(world, model, out, *CLIPPED, *server, *validation, *checkpoints)


def test_a_server_samples_while_the_trainer_updates(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the order of events: answers are asked for before the update and given after it, new weights come after these.

    A step's prompts are asked one after the other, so that the second is when the policy is of a newer version.
    """
    known = Server()

    def update(run: Run, groups: list[RolloutGroup], *rest: Any) -> Update:
        versions.append({r.policy_version for group in groups for r in group.rollouts})
        with known.changed:  # the server is asked in another thread, which may not have got there yet
            known.changed.wait_for(lambda: run.step == 3 or ("asked", run.step + 1) in known.events, timeout=30)
        done = update_policy(run, groups, *rest)
        known.note("updated", run.step)
        return done

    versions: list[set[int]] = []
    monkeypatch.setattr(loop, "update_policy", update)
    monkeypatch.setattr(loop, "score", made_up_score)
    with server(known.route) as url:
        assert run_stage(served(small_world, tiny_qwen2_5_vl, tmp_path, url)) == 0
    assert versions == [{0}, {0}, {1}, {2}] and known.asked == 8
    for step in range(3):
        assert known.place("asked", step + 1) < known.place("updated", step)
        assert known.place("updated", step) < known.place("answered", step + 1)
        if step:
            assert (
                known.place("answered", step, last=True) < known.place("weights", step) < known.place("asked", step + 1)
            )
    stored = read_answers(tmp_path / "checkpoints" / "step_000003" / "ahead")
    assert len(stored) == 2 and not (tmp_path / "checkpoints" / "step_000004" / "ahead").exists()


def test_a_server_that_refuses_while_the_trainer_updates_stops_the_run(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Server(refuse_from=2)

    def update(run: Run, *rest: Any) -> Update:
        done = update_policy(run, *rest)
        known.note("updated", run.step)
        return done

    monkeypatch.setattr(loop, "update_policy", update)
    with server(known.route) as url, pytest.raises(VisdError, match=r"refused a request \(400\): .*no more"):
        run_stage(served(small_world, tiny_qwen2_5_vl, tmp_path, url))
    steps = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 1, "the second step asks for the answers of the third, and its evaluation waits for these"
