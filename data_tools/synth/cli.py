"""`python -m data_tools synth`: make a world."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.synth.build import WorldSettings, build
from visd.types import VisdError


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_tools synth", description=__doc__)
    default = WorldSettings()
    parser.add_argument("--out", type=Path, required=True, help="folder of the world; what is complete there is reused")
    parser.add_argument("--seed", type=int, default=default.seed, help="decides every byte of the manifests")
    parser.add_argument("--train", type=int, default=default.train, help="questions for reinforcement learning")
    parser.add_argument("--validation", type=int, default=default.validation, help="questions for validation")
    parser.add_argument("--test", type=int, default=default.test, help="questions for the final number")
    parser.add_argument(
        "--careful", type=int, default=default.careful, help="questions with right reasoning traces, to learn to look"
    )
    parser.add_argument(
        "--sft",
        type=int,
        default=default.sft,
        help="questions with an imperfect annotator's traces, for the warm start",
    )
    parser.add_argument("--kind", choices=("video", "text", "mixed"), default=default.kind, help="mixed makes both")
    parser.add_argument("--questions-per-video", type=int, default=default.questions_per_video)
    parser.add_argument(
        "--wrong-share", type=float, default=default.wrong_share, help="share of wrong conclusions in traces that look"
    )
    parser.add_argument(
        "--hasty-share", type=float, default=default.hasty_share, help="share of traces that do not look but guess"
    )
    parser.add_argument(
        "--letter-share", type=float, default=default.letter_share, help="share of multiple choice where possible"
    )
    parser.add_argument(
        "--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="processes that write videos"
    )
    chosen = vars(parser.parse_args(arguments))
    out: Path = chosen.pop("out")
    workers: int = chosen.pop("num_workers")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as bar:
            task = bar.add_task("world", total=None)
            built = build(
                out,
                WorldSettings(**chosen),
                lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
                workers,
            )
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {built.videos} videos ({built.reused} reused), {sum(built.questions.values())} questions")
    for name, count in built.questions.items():
        print(f"  {name}: {count}")
    return 0
