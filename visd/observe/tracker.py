"""The run folder's bookkeeping: metrics, dumps, tables, progress, summary. Only the main rank writes."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import OmegaConf

from visd.config import RunConfig
from visd.config_train import TrackingSection
from visd.observe.console import Progress, group_table, plain_console, step_notes
from visd.observe.files import JsonlLog, finite_json, write_atomic
from visd.observe.records import RolloutRecord, to_line
from visd.types import RolloutGroup, VisdError


class Tracker:
    """Writes what a run leaves behind.

    Steps are numbered from 1: record `s` describes the s-th optimiser step of the run, and a run that resumes from
    the checkpoint after step `start_step` writes `start_step + 1` next. What an earlier start wrote of later steps is
    cut off, so that each step appears once.
    """

    def __init__(
        self,
        run_dir: Path,
        section: TrackingSection,
        total_steps: int,
        start_step: int,
        enabled: bool,
        title: str = "train",
    ):
        """`enabled` is False on all ranks but the main one: every method then does nothing.

        Raises:
            VisdError: wandb is asked for and not installed.
        """
        self._dir, self._section, self._enabled = run_dir, section, enabled
        self._step = start_step
        self._wandb: Any = None
        if not enabled:
            return
        self._log = JsonlLog(run_dir / "metrics.jsonl", keep_until=start_step)
        self._earlier = float((self._log.last or {}).get("time/run", 0.0))
        self._start = time.monotonic()
        _drop_later_dumps(run_dir / "rollouts", start_step)
        self._progress = Progress(title, total_steps, start_step) if section.progress else None
        if section.wandb != "disabled":
            self._wandb = _start_wandb(run_dir, section, title)

    def wants_dump(self, step: int) -> bool:
        """Whether `step` is to be dumped; the same on all ranks, so that they gather together."""
        return self._section.dump_every > 0 and step % self._section.dump_every == 0

    def wants_table(self, step: int) -> bool:
        return self._section.table_every > 0 and step % self._section.table_every == 0

    @property
    def wall_seconds(self) -> float:
        """Seconds spent on the steps in the record, over all starts."""
        return self._earlier + time.monotonic() - self._start if self._enabled else 0.0

    def config(self, config: RunConfig) -> None:
        """Write `config.yaml`."""
        if self._enabled:
            write_atomic(self._dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
            if self._wandb is not None:
                self._wandb.config.update(OmegaConf.to_container(OmegaConf.structured(config)))

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one record and advance the progress.

        Raises:
            ValueError: `step` is not the next one.
        """
        if step != self._step + 1:
            raise ValueError(f"metrics of step {step} came after those of step {self._step}")
        self._step = step
        if not self._enabled:
            return
        record = {"step": step, **metrics, "time/run": self.wall_seconds}
        self._log.append(record)
        if self._progress is not None:
            self._progress.advance(step_notes(metrics))
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in record.items() if name != "step"}, step=step)

    def dump(self, step: int, records: Sequence[RolloutRecord]) -> None:
        """Write `rollouts/step_NNNNNN.jsonl`; `records` are those of all ranks."""
        if self._enabled:
            path = self._dir / "rollouts" / f"step_{step:06d}.jsonl"
            write_atomic(path, "".join(to_line(record) + "\n" for record in records))

    def table(self, step: int, group: RolloutGroup) -> None:
        """Print one group."""
        if self._enabled:
            console = self._progress.console if self._progress is not None else plain_console(sys.stderr)
            console.print(group_table(step, group))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write `summary.json`."""
        if self._enabled:
            write_atomic(self._dir / "summary.json", finite_json(values, indent=2) + "\n")

    def close(self) -> None:
        if not self._enabled:
            return
        self._log.close()
        if self._progress is not None:
            self._progress.close()
        if self._wandb is not None:
            self._wandb.finish()


def _drop_later_dumps(folder: Path, start_step: int) -> None:
    for path in folder.glob("step_*.jsonl"):
        number = re.fullmatch(r"step_(\d+)\.jsonl", path.name)
        if number and int(number.group(1)) > start_step:
            path.unlink()


def _start_wandb(run_dir: Path, section: TrackingSection, title: str) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise VisdError(
            f"tracking.wandb={section.wandb} needs wandb: install visd[wandb], or set tracking.wandb=disabled."
        ) from error
    os.environ.setdefault("WANDB_SILENT", "true")
    name = run_dir / "wandb_id"
    if not name.exists():
        write_atomic(name, secrets.token_hex(8))
    return wandb.init(
        project=section.project,
        name=f"{title}-{run_dir.name}",
        id=name.read_text(encoding="utf-8"),
        dir=str(run_dir),
        mode=cast("Literal['offline', 'online']", section.wandb),
        resume="allow",
    )
