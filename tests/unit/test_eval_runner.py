from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from eval.results import question_from, question_means, read_result, summarise, to_line
from eval.run import EvalConfig, fingerprint, finished, parse
from eval.runner import Asking, ask, evaluate
from eval.table import result_table
from visd.config import ConfigError, RewardSection
from visd.observe.console import plain_console
from visd.rollout.base import RolloutEngine, Sampling
from visd.types import Answer, DroppedSample, Message, Prompt, Question, Rollout, Sample, VisdError, VisionInputs


def sample(name: str, answer: Answer | None = None, family: str = "which") -> Sample:
    return Sample(name, "test", family, (), (Message("user", "what?"),), answer or Answer("word", "red"))


def response(answer: str) -> str:
    return f"<think>I see.</think><answer>{answer}</answer>"


@dataclass
class Builder:
    """Builds a prompt of three tokens; refuses the samples named bad."""

    def build(self, question: Question) -> Prompt:
        if question.id.startswith("bad"):
            raise DroppedSample(question.id, "decode", "video a.mp4 is truncated")
        zeros = torch.zeros(3, dtype=torch.long)
        return Prompt(question.id, "p", zeros, zeros, torch.zeros(4, 3, dtype=torch.long), VisionInputs(), (), 2)

    def prefetch(self, questions: Iterable[Question]) -> None:
        pass


@dataclass
class Parrot(RolloutEngine):
    """Says what `answers` holds for the sample: the first greedily, then one after the other."""

    answers: dict[str, list[str]]
    calls: list[tuple[list[str], Sampling]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        self.calls.append(([prompt.sample_id for prompt in prompts], sampling))
        self.seeds += [seed for row in seeds for seed in row]
        return [
            tuple(
                Rollout((1, 2), (0.0, 0.0), text, (text, ""), "eos" if "</answer>" in text else "length", seed, 0)
                for text, seed in zip(self.answers[prompt.sample_id], row)
            )
            for prompt, row in zip(prompts, seeds, strict=True)
        ]


def test_scores_are_those_of_the_answers() -> None:
    engine = Parrot({"a": [response("red"), response("blue")], "b": [response("blue"), "<think>cut"]})
    result = evaluate(engine, Builder(), [sample("a"), sample("b", family="when")], Asking(samples=2), RewardSection())
    sampled, greedy = result.modes["sampled"], result.modes["greedy"]
    assert sampled.accuracy.mean == 0.25 and greedy.accuracy.mean == 0.5
    assert sampled.by_family["which"].mean == 0.5 and sampled.by_family["when"].mean == 0.0
    assert sampled.truncation_rate.mean == 0.25
    assert sampled.format_rate.mean == 0.75
    assert sampled.temporal_iou is None  # no question asks for a window
    assert result.questions == 2 and result.dropped == {}


def test_a_dropped_question_counts_as_wrong_and_is_reported() -> None:
    engine = Parrot({"a": [response("red")] * 2})
    window = Answer("window", (1.0, 2.0))
    result = evaluate(engine, Builder(), [sample("bad", window), sample("a")], Asking(samples=2), RewardSection())
    assert result.modes["sampled"].accuracy.mean == 0.5 and result.modes["sampled"].accuracy.n == 2
    assert result.modes["sampled"].temporal_iou is not None and result.modes["sampled"].temporal_iou.mean == 0.0
    assert result.dropped == {"decode": 1}
    lines = list(ask(engine, Builder(), [sample("bad")], Asking(), RewardSection()))
    assert "a.mp4 is truncated" in lines[0].message


def test_iou_is_read_from_windows() -> None:
    engine = Parrot({"w": [response("From <t>1.0</t>s to <t>3.0</t>s")] * 4})
    result = evaluate(engine, Builder(), [sample("w", Answer("window", (2.0, 4.0)))], Asking(), RewardSection())
    tiou = result.modes["sampled"].temporal_iou
    assert tiou is not None and tiou.mean == pytest.approx(1 / 3) and tiou.n == 1


def test_batches_modes_and_seeds() -> None:
    names = [f"q{i}" for i in range(5)]
    engine = Parrot({name: [response("red")] * 3 for name in names})
    forgotten: list[int] = []
    asking = Asking(samples=3, temperature=0.7, batch_prompts=2, max_new_tokens=9)
    samples = [sample(name) for name in names]
    evaluate(engine, Builder(), samples, asking, RewardSection(), forget=lambda: forgotten.append(1))
    assert [len(ids) for ids, _ in engine.calls] == [2, 2, 2, 2, 1, 1] and len(forgotten) == 3
    greedy, sampled = engine.calls[0][1], engine.calls[1][1]
    assert greedy.greedy and greedy.n == 1
    assert (sampled.greedy, sampled.n, sampled.temperature, sampled.max_new_tokens) == (False, 3, 0.7, 9)
    assert len(set(engine.seeds)) == 5 * 3  # greedy shares the first sampled seed, which it does not use
    again = Parrot(engine.answers)
    list(ask(again, Builder(), samples[3:], asking, RewardSection()))
    assert set(again.seeds) < set(engine.seeds)  # a question's seeds do not depend on the others


def test_finished_questions_are_not_asked_again() -> None:
    engine = Parrot({"b": [response("red")] * 4})
    results = list(ask(engine, Builder(), [sample("a"), sample("b")], Asking(), RewardSection(), done={"a"}))
    assert [result.sample_id for result in results] == ["b"]
    assert question_means(results, "sampled") == {"b": 1.0}


def test_results_round_trip_through_their_files(tmp_path: Path) -> None:
    engine = Parrot({"a": [response("red"), response("blue")]})
    results = list(ask(engine, Builder(), [sample("a"), sample("bad")], Asking(samples=2), RewardSection()))
    assert [question_from(json.loads(to_line(result)), "x") for result in results] == results
    with pytest.raises(VisdError, match="x: not an evaluation result"):
        question_from({"sample_id": "a"}, "x")
    import dataclasses

    summary = summarise(results)
    (tmp_path / "results.json").write_text(json.dumps({"result": dataclasses.asdict(summary)}))
    assert read_result(tmp_path / "results.json") == summary


def test_the_printed_table_names_families_and_drops(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    engine = Parrot({"a": [response("red")] * 4})
    results = list(ask(engine, Builder(), [sample("a"), sample("bad", family="when")], Asking(), RewardSection()))
    plain_console(sys.stdout).print(result_table(summarise(results), "warm on test"))
    text = capsys.readouterr().out
    assert "warm on test" in text and "when" in text and "dropped: decode" in text and "0.500 [" in text


def test_an_empty_manifest_is_refused() -> None:
    with pytest.raises(VisdError, match="no question"):
        evaluate(Parrot({}), Builder(), [], Asking(), RewardSection())


GIVEN = ["model=m", "data=d.jsonl", "root=r", "out=o"]


def test_arguments_reach_their_fields() -> None:
    config = parse([*GIVEN, "samples=2", "temperature=0.5", "prompt.video.fps=1", "reward.number_tolerance=0.1"])
    assert (config.samples, config.temperature, config.prompt.video.fps, config.reward.number_tolerance) == (
        2,
        0.5,
        1,
        0.1,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GIVEN, "sample=2"], "sample"),
        ([*GIVEN, "prompt.video.fbs=2"], "prompt.video.fbs"),
        ([*GIVEN, "samples=two"], "samples"),
        ([*GIVEN, "greedy"], "not key=value"),
        (GIVEN[:2], "root"),
        ([*GIVEN, "samples=0", "greedy=false"], "asks nothing"),
        ([*GIVEN, "config=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(arguments)


RUN_CONFIG = "prompt: {max_tokens: 99, video: {fps: 4.0}}\nreward: {gate_seconds: 2.0}\nrollout: {max_new_tokens: 33}\n"


@pytest.mark.parametrize("where", ["model", "checkpoints/step_000002/model"])
def test_the_prompts_of_the_run_that_made_the_model_hold(tmp_path: Path, where: str) -> None:
    (tmp_path / "config.yaml").write_text(RUN_CONFIG)
    arguments = [f"model={tmp_path / where}", *GIVEN[1:]]
    config = parse([*arguments, "prompt.video.fps=1"])
    assert (config.prompt.max_tokens, config.max_new_tokens, config.reward.gate_seconds) == (99, 33, 2.0)
    assert config.prompt.video.fps == 1.0  # what is given here wins
    assert parse([*arguments, "config=none"]).max_new_tokens == 768
    assert parse([*GIVEN, f"config={tmp_path / 'config.yaml'}"]).max_new_tokens == 33


def test_answers_of_another_evaluation_are_not_taken_over(tmp_path: Path) -> None:
    def config(**changes: object) -> EvalConfig:
        return EvalConfig(**{"model": str(tmp_path), "data": "d.jsonl", "root": str(tmp_path), "out": "o", **changes})  # type: ignore[arg-type]

    (tmp_path / "d.jsonl").write_text("1")
    mark = fingerprint(config())
    assert mark == fingerprint(config(batch_prompts=1, out="p", threads=1))
    assert mark != fingerprint(config(temperature=0.5))
    assert mark != fingerprint(config(reward=RewardSection(number_tolerance=1.0)))
    (tmp_path / "model.safetensors").write_text("weights")
    assert mark != fingerprint(config())
    out = tmp_path / "out"
    out.mkdir()
    assert finished(out, mark) == []
    engine = Parrot({"a": [response("red")] * 4})
    line = to_line(next(ask(engine, Builder(), [sample("a")], Asking(), RewardSection())))
    (out / "samples.jsonl").write_text(line + "\n" + line[:50])  # killed while writing
    (out / "fingerprint").write_text(mark)
    assert [result.sample_id for result in finished(out, mark)] == ["a"]
    assert (out / "samples.jsonl").read_text() == line + "\n"
    with pytest.raises(VisdError, match="another model, manifest or settings"):
        finished(out, "other")
