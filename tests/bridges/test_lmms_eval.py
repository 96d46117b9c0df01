"""lmms-eval itself: our tasks give our scores item by item, and its own kind of task gets final answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import lmms_eval.api.task as lmms_task
import numpy as np
import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager
from PIL import Image

from eval import bench, benchmarks, run
from eval.bench_results import summarise
from eval.bridges import answerer
from eval.bridges.registration import manifest
from eval.bridges.tasks import split_trailer, write_task
from eval.model import Opened
from tests.bench_files import WRITERS, put
from tests.parrot import Builder, Parrot
from tests.tree import ROOT
from visd.config import ConfigError
from visd.observe.files import read_jsonl
from visd.rollout.base import Sampling
from visd.types import Prompt, Rollout, VisdError


@pytest.fixture(autouse=True)
def lmms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model class by its entry point, and files of `datasets` in the test's folder."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))
    lmms_task._resolve_hf_datasets_cache_dir.cache_clear()
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    yield
    lmms_task._resolve_hf_datasets_cache_dir.cache_clear()


def evaluated(task: str, folder: Path, arguments: str, **more: Any) -> dict[str, Any]:
    """lmms-eval's results; its own three hundred tasks are not looked through."""
    tasks = TaskManager(include_path=str(folder), include_defaults=False, model_name="visd")
    found: dict[str, Any] = simple_evaluate(
        model="visd", model_args=arguments, tasks=[task], task_manager=tasks, batch_size=16, bootstrap_iters=0, **more
    )
    return found


def test_the_entry_point_is_the_model_class() -> None:
    import tomllib

    ((name, value),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ].items()
    assert EntryPoint(name, value, "lmms_eval.models").load()() == MODEL_REGISTRY_V2.get_manifest("visd")


def test_fifty_items_of_a_world_have_our_answers_and_scores(
    tiny_qwen2_5_vl: Path, small_world: Path, tmp_path: Path
) -> None:
    names = ("test", "validation", "train", "text_test")
    rows = [row for name in names for row in read_jsonl(small_world / f"{name}.jsonl")]
    assert len(rows) >= 50
    lost = {**rows[0], "id": "lost", "media": [{**rows[0]["media"][0], "path": "videos/none.mp4"}]}
    put(tmp_path / "fifty.jsonl", [lost, *rows[-12:], *rows[:37]])
    own = run.parse(
        [f"model={tiny_qwen2_5_vl}", f"root={small_world}", f"data={tmp_path / 'fifty.jsonl'}", f"out={tmp_path / 'own'}",
         "samples=0", "max_new_tokens=12", "prompt.video.max_pixels=12544", "frames.workers=0", "threads=1"]
    )  # fmt: skip
    run.run(own)
    mine = {line["sample_id"]: line for line in read_jsonl(tmp_path / "own/samples.jsonl")}
    name = write_task(own, tmp_path / "tasks")
    found = evaluated(name, tmp_path / "tasks", f"model={tiny_qwen2_5_vl},frames.workers=0,threads=1")
    theirs = {sample["doc"]["id"]: sample for sample in found["samples"][name]}
    assert len(mine) == len(theirs) == 50 and mine.keys() == theirs.keys()
    for key, sample in theirs.items():
        answer = mine[key]["greedy"][0]
        text, said = split_trailer(sample["resps"][0][0])
        assert (text, said["truncated"]) == (answer["text"], answer["truncated"]), key
        assert sample["accuracy"]["scores"] == {"accuracy": answer["accuracy"], "correct": answer["correct"]}, key
    assert len({mine[key]["greedy"][0]["text"] for key in mine}) > 25 and mine["lost"]["dropped"] == "missing"
    mean = json.loads((tmp_path / "own/results.json").read_text())["result"]["modes"]["greedy"]["accuracy"]["mean"]
    assert found["results"][name]["accuracy,none"] == pytest.approx(mean, abs=1e-12)


def test_what_cannot_be_done_is_refused(tiny_qwen2_5_vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = MODEL_REGISTRY_V2.get_model_class("visd")
    with pytest.raises(ConfigError, match="sampels"):
        kind.create_from_arg_string(f"model={tiny_qwen2_5_vl},sampels=2")
    with pytest.raises(ConfigError, match="device: visd answers on cpu here"):
        kind.create_from_arg_string(f"model={tiny_qwen2_5_vl}", {"device": "cuda:1"})
    with pytest.raises(VisdError, match="answers by generation"):
        kind.create_from_arg_string(f"model={tiny_qwen2_5_vl}").loglikelihood([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="vllm answers in one process"):
        kind.create_from_arg_string(f"model={tiny_qwen2_5_vl},engine=vllm")


def by_script(patch: pytest.MonkeyPatch, engine: Any, builder: Any = None) -> None:
    patch.setattr(answerer, "open_engine", lambda *_: Opened(engine, lambda: None))
    if builder is not None:
        patch.setattr(answerer.Answerer, "_builder", lambda *_: builder)


class PlainBuilder(Builder):
    """With what an answerer asks a builder's processor."""

    class processor:
        tokenizer = None

        class family:
            has_media = False


SAID = {
    "letter": ["<answer>B</answer>", "<think>C", "<answer>C. A green one.</answer>", "The answer is (A).", ""],
    "number": ["<answer>4</answer>", "about 5 </answer>", "<answer>1,200</answer>"],
    "window": ["<answer>0 - 2.5</answer>", "<answer>From <t>1.5</t>s to <t>3.9</t>s</answer>", "2 - 4"],
    "boxes": ['<answer>{"2": [0, 0, 100, 50], "3": [0, 0, 50, 50]}</answer>', "<answer>{}</answer>"],
    "yes_no": ["<answer>No</answer>"],
    "text": ["<answer>It is the dog.</answer>", "<answer>2.5</answer>"],
}
"""Responses by the kind of a question; what has no closed tag was cut off."""


@pytest.mark.parametrize("name", ["videomme", "tempcompass", "vsibench", "nextgqa", "vstar", "gsm8k", "charades_sta"])
def test_a_benchmark_has_our_scores_and_means(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name](tmp_path / "root")
    settings = bench.parse(["model=none", f"benchmark={name}", f"root={tmp_path / 'root'}", "out=none", "box_unit=one"])
    benchmark = benchmarks.load(name)
    items = bench.load_items(benchmark, tmp_path / "root")
    parrot = Parrot({item.id: [SAID[item.kind][i % len(SAID[item.kind])]] for i, item in enumerate(items)})
    protocol = benchmark.protocols["official"]
    records = list(bench.answer_items(parrot, PlainBuilder(), items, benchmark, protocol, settings))
    by_script(monkeypatch, parrot, PlainBuilder())
    task = write_task(settings, tmp_path / "tasks")
    found = evaluated(task, tmp_path / "tasks", "model=none")
    theirs = {sample["doc"]["id"]: sample[benchmark.headline]["scores"] for sample in found["samples"][task]}
    assert theirs == {record.id: record.answers[0].scores for record in records}
    own = summarise(records, benchmark, 0).scores
    assert any(score.mean > 0 for score in own.values())
    for metric, score in own.items():
        assert found["results"][task][f"{metric},none"] == pytest.approx(score.mean, abs=1e-12), metric


FOREIGN = """
task: foreign
dataset_path: json
dataset_kwargs: {data_files: {test: foreign.jsonl}}
test_split: test
output_type: generate_until
doc_to_visual: !function foreign.visual
doc_to_text: question
doc_to_target: answer
process_results: !function foreign.scored
generation_kwargs: {max_new_tokens: 4, temperature: 0, do_sample: false}
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
from PIL import Image
def visual(doc):
    media = doc["media"]
    if media.endswith(".png"):
        return [Image.open(media)]
    return [{"type": "video", "path": media, "video_start": 0.2, "video_end": 0.8}] if doc["clip"] else [media]
def scored(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


@dataclass
class Listening(Parrot):
    """Keeps what it was asked."""

    prompts: list[Prompt] = field(default_factory=list)
    tokens: set[int] = field(default_factory=set)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        self.prompts += prompts
        self.tokens.add(sampling.max_new_tokens)
        return super().generate(prompts, sampling, seeds, policy_version)


def test_a_task_of_lmms_eval_is_given_final_answers(
    tiny_qwen2_5_vl: Path, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own limit of four tokens would cut the reasoning, and its scoring would read the tags."""
    video = str(next(iter(sorted(small_world.rglob("*.mp4")))))
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((56, 84, 3), dtype=np.uint8)).save(picture)
    row = {"question": "Which?\nA. x\nB. y", "answer": "B", "clip": False}
    rows = [{**row, "media": video}, {**row, "media": video, "clip": True}, {**row, "media": str(picture)}]
    put(tmp_path / "tasks/foreign.jsonl", [*rows, {**row, "media": str(tmp_path / "none.mp4")}])
    (tmp_path / "tasks/foreign.yaml").write_text(FOREIGN)
    (tmp_path / "tasks/foreign.py").write_text(FUNCTIONS)
    said = ["<think>A or B</think><answer>B</answer>", "<answer>B</answer>", "<think>B it is"]
    engine = Listening({f"foreign_test_{i}": [text] for i, text in enumerate(said)})
    by_script(monkeypatch, engine)
    found = evaluated("foreign", tmp_path / "tasks", f"model={tiny_qwen2_5_vl},frames.workers=0,video.max_pixels=12544")
    assert [sample["resps"][0][0] for sample in found["samples"]["foreign"]] == ["B", "B", "", ""]
    assert found["results"]["foreign"]["right,none"] == 0.5 and engine.tokens == {1024}
    whole, clip, image = engine.prompts
    assert whole.kinds == clip.kinds == ("video",) and image.kinds == ("image",)
    assert min(clip.frame_times[0]) >= 0.2 and max(clip.frame_times[0]) <= 0.8 < max(whole.frame_times[0])
    assert "Which?\nA. x\nB. y" in whole.text
