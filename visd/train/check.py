"""`check_only=true`: everything that can be validated before a run, and a forecast of its memory."""

from __future__ import annotations

import sys
from collections import Counter

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from visd.config import RunConfig
from visd.policy.quantize import bytes_of, is_quantized
from visd.train.forecast import GIB, Counts, Forecast, forecast_of
from visd.train.run import Run, load_samples, training_samples
from visd.types import DroppedSample, Sample

AHEAD = 32
"""Samples whose media are decoded together."""


def forecast(run: Run) -> Forecast:
    """Memory of one process from parameter counts and the parallel mode."""
    model = [p for p in run.policy.model.parameters() if not is_quantized(p)]
    packed = sum(bytes_of(p) for p in run.policy.model.parameters() if is_quantized(p))
    numbers = [getattr(p, "ds_numel", p.numel()) for p in model]
    trained = sum(n for n, p in zip(numbers, model, strict=True) if p.requires_grad)
    tower = run.policy.tower
    tower_bytes = sum(p.numel() * p.element_size() for p in tower.parameters()) if tower else 0
    width = 2 if run.policy.model.hf.dtype.itemsize == 2 else 4
    teacher = run.config.teacher.weights if run.teacher else None
    external = run.external.nbytes if run.external else 0
    counts = Counts(sum(numbers), trained, tower_bytes, external, packed)
    return forecast_of(counts, run.config.parallel.mode, run.backend.world_size, width, teacher)


def check_run(run: Run) -> int:
    """Build every prompt of every split; print drops, lengths and the forecast. Returns the exit status."""
    problems = 0
    console = Console(file=sys.stdout)
    for split in ("train", "validation", "test"):
        if not getattr(run.config.data, split):
            continue
        samples = training_samples(run.config)[0] if split == "train" else load_samples(run.config, split)
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
