"""`check_only=true`: everything that can be validated before a run, and a forecast of its memory."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from visd.config import RunConfig
from visd.train.run import Run, load_samples
from visd.types import DroppedSample, Sample

GIB = 2**30
AHEAD = 32
"""Samples whose media are decoded together."""


@dataclass(frozen=True)
class Forecast:
    """Bytes a process needs before activations."""

    weights: float
    gradients: float
    optimizer: float  # AdamW's two moments, and the fp32 master copy where weights are bfloat16
    teacher: float  # average or copy, whose start lies in CPU memory; or an external model, whole on every process
    tower: float  # frozen vision tower, replicated

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.teacher + self.tower


def forecast(run: Run) -> Forecast:
    """Memory of one process from parameter counts and the parallel mode."""
    config = run.config
    model = list(run.policy.model.parameters())
    width = 2 if run.policy.model.hf.dtype.itemsize == 2 else 4
    numbers = [getattr(p, "ds_numel", p.numel()) for p in model]
    every, trained = sum(numbers), sum(n for n, p in zip(numbers, model, strict=True) if p.requires_grad)
    ranks = run.backend.world_size
    mode = config.parallel.mode
    weight_share = ranks if mode in ("zero3", "fsdp2") else 1
    gradient_share = ranks if mode in ("zero2", "zero3") else 1  # fsdp2 divides a step's sum, not each micro-batch's
    state_share = ranks if mode in ("zero2", "zero3", "fsdp2") else 1
    kept = {"live": 0, "frozen": 0, "trust_region": 0, "snapshot": 1, "ema": 1}
    copies = kept[config.teacher.weights] if run.teacher else 0
    external = run.external.nbytes if run.external else 0
    tower = sum(p.numel() * p.element_size() for p in run.policy.tower.parameters()) if run.policy.tower else 0
    return Forecast(
        weights=every * width / weight_share,
        gradients=trained * width / gradient_share,
        optimizer=trained * (8 + (4 if width == 2 else 0)) / state_share,
        teacher=trained * 4 * copies / weight_share + external,
        tower=tower,
    )


def check_run(run: Run) -> int:
    """Build every prompt of every split; print drops, lengths and the forecast. Returns the exit status."""
    problems = 0
    console = Console(file=sys.stdout)
    for split in ("train", "validation", "test"):
        if not getattr(run.config.data, split):
            continue
        samples = load_samples(run.config, split)
        lengths, drops = check_samples(run, samples, split)
        problems += len(drops)
        console.print(f"{split}: {len(samples)} samples, prompts of {_range(lengths)} tokens, {len(drops)} unusable")
        for error in drops[:20]:
            console.print(f"  {error.reason}: {error}", markup=False)
        reasons = Counter(error.reason for error in drops)
        if len(drops) > 20:
            console.print(f"  ... and more; by reason: {dict(reasons)}")
    print_forecast(forecast(run), run.config, console)
    allowed = run.config.data.max_dropped * len(run.sampler.samples)
    verdict = "ok" if problems <= allowed else f"{problems} unusable samples, data.max_dropped allows {allowed:g}"
    console.print(f"check: {verdict}")
    return 0 if problems <= allowed else 1


def check_samples(run: Run, samples: list[Sample], split: str) -> tuple[list[int], list[DroppedSample]]:
    """Prompt lengths of the usable samples, and the errors of the others."""
    lengths, drops = [], []
    for number, sample in enumerate(tqdm(samples, desc=f"checking {split}", disable=not run.config.tracking.progress)):
        if number % AHEAD == 0:
            run.builder.prefetch(s.question() for s in samples[number : number + 2 * AHEAD])
        try:
            lengths.append(len(run.builder.build(sample.question())))
        except DroppedSample as error:
            drops.append(error)
    return lengths, drops


def print_forecast(memory: Forecast, config: RunConfig, console: Console) -> None:
    table = Table(title=f"memory of one process before activations ({config.parallel.mode})")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for name in ("weights", "gradients", "optimizer", "teacher", "tower", "total"):
        table.add_row(name, f"{getattr(memory, name) / GIB:.3f}")
    console.print(table)


def _range(lengths: list[int]) -> str:
    return f"{min(lengths)} to {max(lengths)}" if lengths else "no"
