"""`make demo`: a small world of real videos, a tiny video model, a warm start, visd, and a report, on two cores.

Each part is a command a user could type; each is skipped when its result is there. Running it again after a kill goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from eval.demo_report import conclude

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = {"train": 1200, "validation": 200, "test": 300, "careful": 8160, "sft": 960}
WRONG_SHARE, HASTY_SHARE = 0.5, 0.75
"""Of the imperfect annotator's traces: those that look and conclude something wrong, those that only guess."""
MUON = ("optim=muon", "optim.lr=1.0e-3")
"""One process can have it, and it learns in 38 steps what AdamW does in 70."""
CONSOLE = Console()


@dataclass(frozen=True)
class Part:
    """One command of the demo."""

    title: str
    minutes: float  # on two slow cores (AVX2); two thirds of it have been seen
    command: Sequence[str]
    done: Callable[[], bool]


def parts(out: Path, method: str, steps: int | None) -> list[Part]:
    """The demo's commands, in order."""
    world, tiny, look, warm, rl = (out / name for name in ("world", "tiny", "look", "warm", "rl"))
    counts = [text for name, count in QUESTIONS.items() for text in (f"--{name}", str(count))]
    override = [] if steps is None else [f"train.steps={steps}"]

    def train(experiment: str, folder: Path, *extra: str) -> list[str]:
        return ["scripts/train.py", f"experiment={experiment}", f"run.dir={folder}", f"data.root={world}", *extra]

    def evaluate(model: Path, folder: Path) -> list[str]:
        return [
            "-m",
            "eval.run",
            f"model={model}",
            f"data={world / 'test.jsonl'}",
            f"root={world}",
            f"out={folder}",
            "max_new_tokens=120",
            "batch_prompts=50",
        ]

    return [
        Part(
            "a small world of videos", 1.4,
            ["-m", "data_tools", "synth", "--out", str(world), "--seed", "0", "--kind", "mixed", *counts,
             "--wrong-share", str(WRONG_SHARE), "--hasty-share", str(HASTY_SHARE), "--questions-per-video", "4"],
            lambda: False,  # it checks itself what is there
        ),
        Part("a tiny Qwen2.5-VL", 0.4, ["scripts/make_tiny_model.py", "--family", "qwen2_5_vl", "--out", str(tiny)],
             (tiny / "config.json").exists),
        Part("learning to look, from careful traces", 8.4, train("demo_look", look, f"model.path={tiny}"),
             lambda: finished(look)),
        Part("warm start on an imperfect annotator's traces", 1.4,
             train("demo_sft", warm, f"model.path={look / 'model'}"), lambda: finished(warm)),
        Part("test accuracy before", 1.2, evaluate(warm / "model", out / "eval_before"),
             (out / "eval_before" / "results.json").exists),
        Part(f"training with {method}", 5.8,
             train("demo", rl, f"model.path={warm / 'model'}", f"method={method}", *MUON, *override), lambda: finished(rl)),
        Part("test accuracy after", 1.4, evaluate(rl / "model", out / "eval_after"),
             (out / "eval_after" / "results.json").exists),
    ]  # fmt: skip


def finished(folder: Path) -> bool:
    """A training run that reached its last step."""
    path = folder / "summary.json"
    return path.exists() and bool(json.loads(path.read_text()).get("finished"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "demo")
    parser.add_argument("--method", default="visd")
    parser.add_argument("--steps", type=int, help="RL steps instead of the experiment's own number")
    args = parser.parse_args()
    started = time.monotonic()
    todo = parts(args.out.resolve(), args.method, args.steps)
    for number, part in enumerate(todo, 1):
        head = f"[bold]\\[{number}/{len(todo)}] {part.title}[/bold]"
        if part.done():
            CONSOLE.print(f"{head}: there already")
            continue
        CONSOLE.print(f"{head}: about {part.minutes:g} min on two cores")
        begun = time.monotonic()
        if code := subprocess.run([sys.executable, *part.command], cwd=ROOT).returncode:
            CONSOLE.print(f"[red]{part.title} failed[/red] (exit status {code}); the error stands above.")
            return code
        CONSOLE.print(f"  took {(time.monotonic() - begun) / 60:.1f} min")
    conclude(args.out.resolve(), time.monotonic() - started, CONSOLE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
