"""What a step saves by encoding each video once, and by keeping its frames.

    python scripts/bench/video_step.py [--group 8] [--repeats 3] [--write]

Both parts run rollouts, teacher and update of the method visd through the code of training, with a tiny model; what its
vision tower costs beside its decoder is printed first. Advantages are made up, since an untrained model earns none.

*Vision tower.* With reuse the tower runs once a prompt and step. Without, it stays inside the model, as in transformers'
own classes, and every forward encodes the media of all its rows. Micro-batches hold one row, as long videos make them, or
one group where its prompt runs once (`train.shared_prefix`, the default). Counted are calls of the tower and videos that go through
it; weights, rollouts and gradients are the same in all ways.

*Frames.* Two 1080p clips a step, decoded at every step, or kept in memory, or read from the store.

Processor time of one thread, so that other processes matter little; medians over repeats, after a first step that warms up
and fills the caches. `--write` puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from data_tools.tiny.model import TinySettings, make_tiny_model
from scripts.bench.frames import write_clip
from scripts.compare import place_between_markers
from visd.cli import compose_config
from visd.config import load
from visd.policy.costs import from_config
from visd.train.loop import sample_rollouts, with_reports, with_rewards
from visd.train.run import Run, set_up
from visd.train.teach import teacher_scores
from visd.train.update import update_policy
from visd.types import Prompt, RolloutGroup, Sample

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/performance.md"
TOWER_MARK, FRAMES_MARK = "bench: vision tower", "bench: step and frames"
"""Name the places of the tables in the page."""
SIZES = TinySettings(text_layers=6, vision_width=64, vision_mlp=192)
SMALL_CLIP: dict[str, Any] = {"seconds": 8, "fps": 24, "size": (640, 360)}
LARGE_CLIP: dict[str, Any] = {"seconds": 10, "fps": 24, "size": (1920, 1080)}
ANSWER = 32
"""Most tokens of an answer."""
ROW, GROUP = 1024, 16384
"""Tokens of a micro-batch that holds one row, or a group whose prompt runs once."""
WAYS = {
    "in every forward": ("false", ROW, False),
    "once a prompt": ("false", ROW, True),
    "in every forward, prompt once a group": ("auto", GROUP, False),
    "once a prompt, prompt once a group": ("auto", GROUP, True),
}
"""How the tower runs: `train.shared_prefix`, `train.micro_batch_tokens`, reuse."""


def write_data(folder: Path, videos: int, clip: dict[str, Any]) -> None:
    """Clips, a manifest with one question about each, and a model."""
    lines = []
    for number in range(videos):
        write_clip(folder / f"{number}.mp4", number, **clip)
        record = {
            "id": f"clip {number}", "source": "bench", "family": "colour",
            "media": [{"kind": "video", "path": f"{number}.mp4"}],
            "messages": [{"role": "user", "content": "<video>\nWhat colour is the square?"}],
            "answer": {"type": "word", "value": "red"}, "evidence": {"windows": [[1.0, 2.0]]},
        }  # fmt: skip
        lines.append(json.dumps(record))
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    make_tiny_model(folder / "model", SIZES)


def make_run(folder: Path, prompts: int, group: int, *settings: str) -> Run:
    """A run whose steps are taken here."""
    options = [
        "experiment=demo", "method=visd", f"data.root={folder}", "data.validation=[]", "data.test=[]",
        f"model.path={folder / 'model'}", f"run.dir={folder / 'run'}", f"train.prompts_per_step={prompts}",
        f"rollout.n={group}", f"rollout.max_new_tokens={ANSWER}", "prompt.max_tokens=4096", "prompt.video.fps=2",
        "prompt.video.max_frames=40", "prompt.video.max_pixels=50176", "train.threads=1", "data.frames.workers=0", *settings,
    ]  # fmt: skip
    return set_up(load(compose_config(options)))


def take_step(run: Run, pairs: Sequence[tuple[Sample, Prompt]], number: int) -> float:
    """Rollouts, teacher and update; returns the norm of the gradient."""
    groups = [with_rewards(run, group, number) for group in sample_rollouts(run, pairs, number)]
    groups = [replace(group, advantages=made_up(group)) for group in with_reports(run.judge, groups)]
    update = update_policy(run, groups, teacher_scores(run, groups, number), {}, number)
    run.policy.forget_features()
    return update.metrics.values()["optim/grad_norm"]


def made_up(group: RolloutGroup) -> tuple[float, ...]:
    return tuple(float((-1) ** i) for i in range(len(group.rollouts)))


class TowerCounter:
    """Counts what goes through a run's vision tower, wherever it stands."""

    def __init__(self, run: Run):
        assert run.policy.tower is not None
        self.calls = self.videos = 0
        run.policy.tower[0].register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.calls += 1
        self.videos += len(kwargs["grid_thw"])


def put_tower_inside(run: Run) -> None:
    """Have every forward call the tower, as a model that is not taken apart does."""
    policy = run.policy
    assert policy.tower is not None
    for path, module in zip(policy.family.vision_modules, policy.tower, strict=True):
        parent, _, child = path.rpartition(".")
        setattr(policy.model.hf.get_submodule(parent), child, module)
    policy.tower, policy.model.tower_inside = None, True


@dataclass(frozen=True)
class TowerResult:
    """Of one way."""

    calls: float  # of the tower, a prompt and step
    videos: float  # through the tower, a prompt and step
    seconds: list[float]  # of each measured step
    grad_norm: float  # of the first step


def measure_tower(folder: Path, group: int, repeats: int) -> dict[str, TowerResult]:
    """All ways by turns, on one prompt."""
    runs: dict[str, tuple[Run, TowerCounter]] = {}
    for name, (sharing, tokens, reuse) in WAYS.items():
        run = make_run(folder, 1, group, f"train.shared_prefix={sharing}", f"train.micro_batch_tokens={tokens}")
        counter = TowerCounter(run)
        if not reuse:
            put_tower_inside(run)
        runs[name] = run, counter
    pairs = next(iter(runs.values()))[0].step_prompts(0)
    norms = {name: take_step(run, pairs, 0) for name, (run, _) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(1, repeats + 1):
        for name, (run, _) in runs.items():
            began = time.process_time()
            take_step(run, pairs, number)
            times[name].append(time.process_time() - began)
    steps = repeats + 1
    return {
        name: TowerResult(counter.calls / steps, counter.videos / steps, times[name], norms[name])
        for name, (_, counter) in runs.items()
    }


def tower_table(results: dict[str, TowerResult]) -> str:
    table = (
        "| tower runs | calls a prompt and step | videos through it | step | share of the first | gradient norm |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
    )
    first = next(iter(results.values()))
    for name, found in results.items():
        share = statistics.median(own / base for own, base in zip(found.seconds, first.seconds, strict=True))
        table += (
            f"| {name} | {found.calls:g} | {found.videos:g} | {statistics.median(found.seconds):.2f} s | {share:.2f} | "
            f"{found.grad_norm:.6g} |\n"
        )
    return table


def tower_share(folder: Path) -> float:
    """Operations of the tower for a visual token over those of the decoder for a token."""
    sizes = from_config(AutoConfig.from_pretrained(folder / "model"), "tiny")
    assert sizes.tower is not None
    return sizes.tower.flops(64, 64) / 64 / sizes.forward_flops(1, 0)


def measure_frames(folder: Path, group: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds of a step and of its prompts, by where frames come from."""
    ways = {
        "decoded at every step": ["data.frames.cache_mb=0"],
        "kept in memory": [],
        "read from the store": ["data.frames.cache_mb=0", f"data.frames.store={folder / 'store'}"],
    }
    found = {}
    for name, settings in ways.items():
        run = make_run(folder, 2, group, "train.shared_prefix=auto", f"train.micro_batch_tokens={GROUP}", *settings)
        steps, prompts = [], []
        for number in range(repeats + 1):
            began = time.process_time()
            pairs = run.step_prompts(number)
            ready = time.process_time()
            take_step(run, pairs, number)
            steps.append(time.process_time() - began)
            prompts.append(ready - began)
        found[name] = statistics.median(steps[1:]), statistics.median(prompts[1:])
    return found


def frames_table(results: dict[str, tuple[float, float]]) -> str:
    table = "| frames | making prompts | step | share of the first |\n| --- | --- | --- | --- |\n"
    base = next(iter(results.values()))[0]
    for name, (step, prompts) in results.items():
        table += f"| {name} | {prompts:.2f} s | {step:.2f} s | {step / base:.2f} |\n"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=8, help="answers a prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    tables = {}
    for mark, videos, clip in ((TOWER_MARK, 1, SMALL_CLIP), (FRAMES_MARK, 2, LARGE_CLIP)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data(folder, videos, clip)
            if mark == TOWER_MARK:
                print(f"tower over decoder, operations a token: {tower_share(folder):.2f}")
                tables[mark] = tower_table(measure_tower(folder, args.group, args.repeats))
            else:
                tables[mark] = frames_table(measure_frames(folder, args.group, args.repeats))
        print(tables[mark], flush=True)
    if args.write:
        for mark, table in tables.items():
            place_between_markers(PAGE, mark, f"\n{table}\n")


if __name__ == "__main__":
    main()
