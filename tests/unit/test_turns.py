"""Answers in turns: calls are run, their results appended, and nothing else about sampling changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import small_config, small_run
from visd.config import ConfigError
from visd.policy.batch import Row, build_inputs
from visd.policy.policy import Policy
from visd.rollout.base import RolloutEngine, Sampling
from visd.rollout.sampling import token_pieces
from visd.rollout.transformers_engine import TransformersEngine
from visd.rollout.turns import TurnsEngine, after
from visd.train.launch import run_stage
from visd.types import Message, Prompt, Rollout, StopReason

CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "2*3"}}</tool_call>'
RESULT = "<tool_response>6</tool_response>"
SAMPLING = Sampling(n=2, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=200)


@dataclass
class Scripted(RolloutEngine):
    """Says what `said` gives for a turn's number and the rollout's place; the model is asked when that is empty."""

    policy: Policy
    tokenizer: Any
    said: list[str] = field(default_factory=lambda: [CALL])
    seen: list[tuple[list[int], Sampling]] = field(default_factory=list, init=False)  # lengths of prompts, a call

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        turn = prompts[0].text.count("<tool_response>")
        self.seen.append(([len(p) for p in prompts], sampling))
        text = self.said[turn] if turn < len(self.said) else ""
        if not text:
            return TransformersEngine(self.policy, self.tokenizer).generate(prompts, sampling, seeds, policy_version)
        whole = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = whole[: sampling.max_new_tokens]
        stop: StopReason = "eos" if len(ids) == len(whole) else "length"
        pieces = token_pieces(ids, lambda part: self.tokenizer.decode(part, skip_special_tokens=True))
        logp = tuple(-0.1 * (i + 1) for i in range(len(ids)))
        return [
            tuple(Rollout(tuple(ids), logp, "".join(pieces), pieces, stop, seed, policy_version) for seed in row)
            for row in seeds
        ]


@pytest.fixture(scope="module")
def made(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run whose first prompts hold a video and text."""
    run = small_run(
        small_world, tiny_qwen2_5_vl, tmp_path_factory.mktemp("run"), "method=grpo", "data.train=[train.jsonl]"
    )
    video = run.prompts(run.sampler.batch(0))[0][1]
    return run.policy, run.processor, [video, replace(video, sample_id="v2"), chat(run.processor)]


def chat(processor: Any) -> Prompt:
    return processor.process("note", (Message("user", "Say left."),), ())


def turns(made: Any, *said: str, **settings: Any) -> tuple[TurnsEngine, Scripted]:
    policy, processor, _ = made
    engine = TurnsEngine(policy, processor.tokenizer, **settings)
    inner = Scripted(policy, processor.tokenizer, list(said))
    engine._inner = inner
    return engine, inner


def test_without_a_call_an_answer_is_the_inner_engines(made: Any) -> None:
    policy, processor, prompts = made
    seeds, sampling = [[1, 2], [3, 4], [5, 6]], replace(SAMPLING, max_new_tokens=8)
    plain = TransformersEngine(policy, processor.tokenizer).generate(prompts, sampling, seeds, 7)
    assert TurnsEngine(policy, processor.tokenizer).generate(prompts, sampling, seeds, 7) == plain


def test_a_call_is_answered_and_the_answer_goes_on(made: Any) -> None:
    engine, inner = turns(made, f"so {CALL} and more", "it is 6")
    (first, second), _ = engine.generate(made[2][:2], SAMPLING, [[1, 2], [3, 4]], 0)
    assert first.text == f"so {CALL}{RESULT}it is 6" and first.own_text == f"so {CALL}it is 6"
    assert first.calls == ("ok",) and first.stop_reason == "eos" and second.token_ids == first.token_ids
    tool = [i for i, own in enumerate(first.own) if not own]
    assert tool == list(range(tool[0], tool[0] + len(tool))), "one run of a tool's tokens"
    assert "".join(first.pieces[i] for i in tool) == RESULT and all(first.logp[i] == 0 for i in tool)
    assert all(first.logp[i] < 0 for i in range(len(first.own)) if first.own[i])
    assert len(first.token_ids) == len(first.logp) == len(first.pieces) == len(first.own)
    assert first.length == sum(first.own) < len(first.token_ids)
    (_, asked), (lengths, then) = inner.seen
    assert asked.stop == ("</tool_call>",) and then.n == 1 and len(lengths) == 4, "all that wait go on together"
    spent = tool[0]
    assert then.max_new_tokens == SAMPLING.max_new_tokens - spent, "what a tool says costs nothing"


def test_the_turn_after_a_call_sees_what_the_trainer_sees(made: Any) -> None:
    """Positions of the continued prompt are those of the row that is trained on."""
    for prompt in made[2]:
        ids = [5, 6, 7, 8]
        continued = after(prompt, ids, "x")
        whole = build_inputs([Row(prompt, [*ids, 9, 10])])
        again = build_inputs([Row(continued, [9, 10])])
        assert torch.equal(whole.input_ids, again.input_ids) and torch.equal(whole.position_ids, again.position_ids)
        assert torch.equal(whole.mm_token_type_ids, again.mm_token_type_ids)


def test_a_model_goes_on_as_if_it_had_not_been_stopped(made: Any) -> None:
    policy, processor, prompts = made
    engine = TransformersEngine(policy, processor.tokenizer)
    greedy = Sampling(1, 1.0, 1.0, 0, 10, greedy=True)
    for (whole,), prompt in zip(engine.generate(prompts, greedy, [[1], [2], [3]], 0), prompts, strict=True):
        cut = min(4, len(whole.token_ids) - 1)
        rest = replace(greedy, max_new_tokens=10 - cut)
        ((again,),) = engine.generate([after(prompt, whole.token_ids[:cut], "")], rest, [[1]], 0)
        assert again.token_ids == whole.token_ids[cut:]
        assert again.logp == pytest.approx(whole.logp[cut:], abs=1e-4)


def test_an_engine_that_stops_gives_the_same_tokens_up_to_there(made: Any) -> None:
    policy, processor, prompts = made
    engine = TransformersEngine(policy, processor.tokenizer)
    sampling = replace(SAMPLING, max_new_tokens=12)
    seeds = [[1, 2], [3, 4], [5, 6]]
    plain = [r for row in engine.generate(prompts, sampling, seeds, 0) for r in row]
    text = next(piece for piece in plain[0].pieces[3:] if piece)
    stopped = [r for row in engine.generate(prompts, replace(sampling, stop=(text,)), seeds, 0) for r in row]
    for a, b in zip(plain, stopped, strict=True):
        end = next((i + 1 for i in range(len(a.pieces)) if text in "".join(a.pieces[: i + 1])), len(a.pieces))
        assert b.token_ids[:end] == a.token_ids[:end]
        assert len(b.token_ids) <= max(end + 1, 1) or end == len(a.pieces), "what follows is one id of padding"


@pytest.mark.parametrize(
    ("said", "settings", "budget", "text", "calls", "stop"),
    [
        ((CALL, CALL, "done"), {"max_turns": 2}, 200, f"{CALL}{RESULT}{CALL}", ("ok",), "length"),
        ((CALL, CALL, "done"), {"max_turns": 3}, 300, f"{CALL}{RESULT}{CALL}{RESULT}done", ("ok", "ok"), "eos"),
        ((CALL,), {"max_turns": 1}, 200, CALL, (), "length"),
        (("<tool_call>3</tool_call>", "no"), {}, 200, "<tool_call>3</tool_call><tool_response>error: not a call</tool_response>no", ("not a call",), "eos"),
        ((CALL, "no"), {"tools": []}, 200, f"{CALL}<tool_response>error: unknown tool</tool_response>no", ("unknown tool",), "eos"),
    ],
)  # fmt: skip
def test_how_an_answer_with_calls_ends(
    made: Any,
    said: tuple[str, ...],
    settings: dict[str, Any],
    budget: int,
    text: str,
    calls: tuple[str, ...],
    stop: str,
) -> None:
    engine, _ = turns(made, *said, **settings)
    ((answer, _),) = engine.generate(made[2][2:], replace(SAMPLING, max_new_tokens=budget), [[1, 2]], 0)
    assert (answer.text, answer.calls, answer.stop_reason) == (text, calls, stop)


def test_the_budget_counts_the_policys_own_tokens(made: Any) -> None:
    tokens = len(made[1].tokenizer(CALL, add_special_tokens=False)["input_ids"])
    for budget in (tokens - 1, tokens, tokens + 2):
        engine, _ = turns(made, CALL, "one two three four five")
        ((answer, _),) = engine.generate(made[2][2:], replace(SAMPLING, max_new_tokens=budget), [[1, 2]], 0)
        assert answer.length == budget and answer.stop_reason == "length"
        assert bool(answer.calls) is (budget > tokens)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"tools": ["lens"]}, r"rollout\.engine\.tools: 'lens'"), ({"max_turns": 0}, r"rollout\.engine\.max_turns")],
)
def test_what_an_engine_cannot_do_is_refused(made: Any, settings: dict[str, Any], said: str) -> None:
    policy, processor, _ = made
    with pytest.raises(ConfigError, match=said):
        TurnsEngine(policy, processor.tokenizer, **settings)


def test_a_run_trains_on_answers_with_calls(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    """Video and text; the calls are scripted, what follows them is the model's own."""
    config = small_config(
        small_world, tiny_qwen2_5_vl, tmp_path, "method=sod_self", "data.train=[train.jsonl,text_train.jsonl]",
        "+rollout.engine.inner={_target_: tests.unit.test_turns.Scripted}", "rollout.max_new_tokens=100", "rollout.n=2",
        "rollout.max_mismatch=0",  # a script has no log-probabilities
    )  # fmt: skip
    assert run_stage(config) == 0
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for found in metrics:
        assert found["rollout/calls"] >= 1 and found["rollout/failed_call_share"] == 0 and found["method/steps"] >= 2
        assert found["rollout/length_max"] <= 100 and found["optim/grad_norm"] > 0
    (dump, *_) = sorted(tmp_path.glob("rollouts/*.jsonl"))
    for record in map(json.loads, dump.read_text().splitlines()):
        advantages, own = record["tokens"]["advantage"], record["text"].split(RESULT)
        assert len(own) >= 2 and len(advantages) == len(record["pieces"]), "every token has its reasons"


def test_an_engine_that_reads_prompts_as_text_is_refused(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersEngine, "uses_module", False)
    with pytest.raises(ConfigError, match=r"rollout\.engine\.inner"):
        TurnsEngine(made[0], made[1].tokenizer)
