"""A whole step of GRPO here and in TRL: same model, prompts, group, lengths and precision, both sampling by transformers.

    python scripts/bench/trl_step.py [--repeats 3] [--rounds 3] [--write]

A step is sampling, rewards, update. The model is a small Qwen2.5-VL with random weights in float32, its tower frozen; text prompts are long or short, and
in one case frames come as images. Rewards are made up on both sides, since a random model earns none and without differences
within a group nothing is learnt. Answers seldom end before the limit; their mean length is printed. Gradients are not recomputed on either
side, a micro-batch holds a group, and nothing is logged.

Each side runs in a process of its own with one thread, by turns, `--rounds` times; a step that warms up comes first. Time is processor
time, so that other processes matter little. Memory is what the process takes at most during steps beyond what it holds between
them: weights and optimiser are the same on both sides. `--write` puts the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from data_tools.tiny.model import TinySettings, make_tiny_model
from scripts.bench.peak import MIB, Peak, give_blocks_back, peak_inside
from scripts.bench.video_step import made_up
from scripts.compare import place_between_markers
from visd.cli import compose_config
from visd.config import load
from visd.media.chat import conversation
from visd.train.loop import sample_rollouts, with_rewards
from visd.train.run import set_up
from visd.train.update import update_policy
from visd.types import Message

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"
MARK = "bench: trl"
"""Names the place of the table in the page."""
SIZES = TinySettings(text_layers=8, text_width=256, text_heads=8, text_kv_heads=4, text_mlp=768)
FRAME = 112
"""Pixels of a frame's side: a multiple of a patch and within every limit, so that nobody resizes it; 16 tokens."""


@dataclass(frozen=True)
class Case:
    """What a step is made of."""

    name: str
    words: int  # of a question
    frames: int
    answer: int  # most tokens
    group: int = 8
    prompts: int = 1


CASES = {
    "short": Case("short text", 40, 0, 64),
    "long": Case("long text", 1000, 0, 64),
    "frames": Case("64 frames as images", 40, 64, 64),
}


def write_data(folder: Path, case: Case, steps: int) -> None:
    """The prompts of some steps, and the model."""
    write_prompts(folder, case, steps * case.prompts)
    make_tiny_model(folder / "model", SIZES)


def write_prompts(folder: Path, case: Case, count: int) -> None:
    """`train.jsonl` and its frames."""
    numbers = np.random.default_rng(0)
    lines = []
    for number in range(count):
        frames = [f"{number}_{i}.png" for i in range(case.frames)]
        for name in frames:
            pixels = numbers.integers(0, 256, (FRAME, FRAME, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        words = " ".join(numbers.choice(["red", "blue", "square", "left", "moves", "then"], case.words))
        record = {
            "id": f"prompt {number}", "source": "bench", "family": "colour",
            "media": [{"kind": "image", "path": name} for name in frames],
            "messages": [{"role": "user", "content": "<image>" * case.frames + words}],
            "answer": {"type": "word", "value": "red"}, "evidence": {},
        }  # fmt: skip
        lines.append(json.dumps(record))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class Found:
    """What one process measured."""

    seconds: list[float]  # of each step but the first
    peak: float  # bytes
    prompt: int  # tokens
    answer: float  # tokens, mean


class Gauge:
    """Told after every step. The first one warms up; memory is watched from its end on."""

    def __init__(self) -> None:
        self._marks: list[float] = []
        self._watching = ExitStack()
        self._peak = Peak()

    def step_done(self) -> None:
        if not self._marks:
            self._peak = self._watching.enter_context(peak_inside())
        self._marks.append(time.process_time())

    def found(self, prompt: int, answers: Sequence[int]) -> Found:
        self._watching.close()
        seconds = [after - before for before, after in itertools.pairwise(self._marks)]
        return Found(seconds, self._peak.growth, prompt, statistics.mean(answers))


def visd_steps(folder: Path, case: Case, steps: int) -> Found:
    """Steps of `train/loop.py`, with advantages made up."""
    options = [
        "experiment=demo", "method=grpo", f"data.root={folder}", "data.validation=[]", "data.test=[]",
        f"model.path={folder / 'model'}", f"run.dir={folder / 'run'}", f"train.prompts_per_step={case.prompts}",
        f"rollout.n={case.group}", f"rollout.max_new_tokens={case.answer}", "prompt.instruction=false",
        "prompt.max_tokens=8192", "train.micro_batch_tokens=32768", "train.threads=1", "data.frames.workers=0",
        "optim.algorithm=adamw", f"train.steps={steps}",
    ]  # fmt: skip
    run = set_up(load(compose_config(options)))
    gauge, answers, prompt = Gauge(), [], 0
    for step in range(steps):
        groups = [with_rewards(run, group, step) for group in sample_rollouts(run, run.step_prompts(step), step)]
        update_policy(run, [replace(group, advantages=made_up(group)) for group in groups], {}, {}, step)
        run.policy.forget_features()
        answers += [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
        prompt = prompt or len(groups[0].prompt)  # the first
        del groups
        gauge.step_done()
    return gauge.found(prompt, answers)


def trl_steps(folder: Path, case: Case, steps: int) -> Found:
    """Steps of GRPOTrainer."""
    from datasets import Dataset, List
    from datasets import Image as ImageColumn
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    gauge, answers = Gauge(), list[int]()

    class Told(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gauge.step_done()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        answers.extend(len(ids) for ids in completion_ids)
        return [float((-1) ** i) for i in range(len(completion_ids))]

    records = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    talks = [conversation([Message(**message) for message in record["messages"]]) for record in records]
    columns: dict[str, list[Any]] = {"prompt": talks}
    if case.frames:
        columns["images"] = [[str(folder / medium["path"]) for medium in record["media"]] for record in records]
    dataset = Dataset.from_dict(columns)
    if case.frames:
        dataset = dataset.cast_column("images", List(ImageColumn()))
    settings = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", shuffle_dataset=False, gradient_checkpointing=False, per_device_train_batch_size=case.group,
        gradient_accumulation_steps=case.prompts, num_generations=case.group, max_completion_length=case.answer, beta=0.0,
        temperature=1.0, top_k=0, max_steps=steps, learning_rate=1e-4,
    )  # fmt: skip
    processor = AutoProcessor.from_pretrained(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=settings,
        train_dataset=dataset,
        processing_class=processor if case.frames else processor.tokenizer,
        callbacks=[Told()],
    )
    trainer.train()
    shown = processor.apply_chat_template(talks[0], tokenize=False, add_generation_prompt=True)
    pictures = [Image.open(path) for path in columns.get("images", [[]])[0]]
    prompt = processor(text=[shown], images=pictures or None)["input_ids"][0]
    return gauge.found(len(prompt), answers)


SIDES = {"visd": visd_steps, "TRL": trl_steps}


def measure(side: str, case: Case, folder: Path, steps: int) -> Found:
    """In a process of its own."""
    given = {"--side": side, "--case": json.dumps(asdict(case)), "--folder": str(folder), "--repeats": str(steps - 1)}
    command = [sys.executable, __file__, *itertools.chain.from_iterable(given.items())]
    threads = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, env=os.environ | threads, stdout=subprocess.PIPE, check=True, text=True)
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def row(case: Case, found: dict[str, list[Found]]) -> str:
    """A line of the table.

    Raises:
        RuntimeError: the two sides had prompts of different lengths, so that nothing can be compared.
    """
    seconds = {side: statistics.median(s for one in runs for s in one.seconds) for side, runs in found.items()}
    peak = {side: statistics.median(one.peak for one in runs) for side, runs in found.items()}
    prompts = {one.prompt for runs in found.values() for one in runs}
    if len(prompts) > 1:
        raise RuntimeError(f"{case.name}: prompts of {sorted(prompts)} tokens; both sides must be given the same.")
    answers = ", ".join(f"{statistics.mean(one.answer for one in found[side]):.1f}" for side in SIDES)
    return (
        f"| {case.name} | {prompts.pop()}, {case.answer}, {case.group} | {answers} | {seconds['TRL']:.2f} s | "
        f"{seconds['visd']:.2f} s | {seconds['TRL'] / seconds['visd']:.2f} | {peak['TRL'] / MIB:.0f} MiB | "
        f"{peak['visd'] / MIB:.0f} MiB | {peak['visd'] / peak['TRL']:.2f} |\n"
    )


HEAD = """| case | P, R, G | mean answer: visd, TRL | step of TRL | step of visd | TRL / visd | peak of TRL | peak of visd | visd / TRL |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3, help="steps that count, in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # measure here
    parser.add_argument("--case", type=lambda text: Case(**json.loads(text)), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = args.repeats + 1
    if args.side:
        give_blocks_back()
        torch.set_num_threads(1)
        print(json.dumps(asdict(SIDES[args.side](args.folder, args.case, steps))))
        return
    table = HEAD
    print(table, end="", flush=True)
    for name in args.cases:
        found: dict[str, list[Found]] = {side: [] for side in SIDES}
        for _ in range(args.rounds):
            for side, runs in found.items():
                with tempfile.TemporaryDirectory() as folder:
                    write_data(Path(folder), CASES[name], steps)
                    runs.append(measure(side, CASES[name], Path(folder), steps))
        line = row(CASES[name], found)
        print(line, end="", flush=True)
        table += line
    if args.write:
        place_between_markers(PAGE, MARK, f"\n{table}\n")


if __name__ == "__main__":
    main()
