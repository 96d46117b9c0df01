"""A comparison: the same experiment with several methods and seeds."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visd import strict_json
from visd.config import ConfigError
from visd.observe.files import read_json, read_jsonl, write_atomic
from visd.types import VisdError


@dataclass
class SuiteEval:
    """How checkpoints are tested."""

    root: str = "???"  # folder below which every media path lies
    data: str = "???"  # manifest, relative to root
    split: str = "test"  # its name in the tables
    settings: list[str] = field(default_factory=list)  # further arguments of eval.run, e.g. samples=4
    every: int = 0  # also test the kept checkpoints of these steps; 0 tests the last one


@dataclass
class Suite:
    """One file of configs/suite."""

    title: str = "???"  # heading of the results
    experiment: str = "???"  # configs/experiment
    steps: int = 0  # train.steps; required
    seeds: list[int] = field(default_factory=list)
    methods: dict[str, list[str]] = field(default_factory=dict)  # name in the tables to overrides
    baseline: str = "grpo"  # the method whose final accuracy the others are to reach
    overrides: list[str] = field(default_factory=list)  # for every run
    window: int = 5  # steps over which the training accuracy is smoothed
    every_method: bool = False  # also every config of configs/method, under its own name
    leave_out: list[str] = field(default_factory=list)  # configs that every_method does not take
    learning_rates: list[float] = field(
        default_factory=list
    )  # tried by one short run each on validation; empty takes the experiment's own
    tune_steps: int = 0  # steps of these short runs
    tune_seed: int = 100  # their seed, none of `seeds`
    validation: str = ""  # manifest that decides between the rates, relative to eval.root
    rates_from: str = ""  # take the rates that this other suite chose
    costs: bool = False  # also show tokens and time to the baseline's accuracy, lengths, entropy, leaks and collapses
    eval: SuiteEval = field(default_factory=SuiteEval)


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a suite."""

    suite: Suite
    method: str
    seed: int
    dir: Path
    lr: float | None = None  # learning rate; None is the experiment's own

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @property
    def train_arguments(self) -> list[str]:
        suite = self.suite
        return [
            f"experiment={suite.experiment}",
            *suite.overrides,
            *suite.methods[self.method],
            *([] if self.lr is None else [f"optim.lr={self.lr:g}"]),
            f"run.seed={self.seed}",
            f"run.dir={self.dir}",
            f"train.steps={suite.steps}",
            "train.threads=1",
            "tracking.progress=false",
        ]

    def model(self, step: int) -> Path:
        """The Hugging Face folder of a step: the run's own after the last one, else the checkpoint's."""
        final = self.dir / "model"
        if step == self.suite.steps and (final / "config.json").exists():
            return final
        return self.dir / "checkpoints" / f"step_{step:06d}" / "model"

    def trained(self) -> bool:
        """Whether the run took all its steps and wrote its last weights."""
        metrics = self.dir / "metrics.jsonl"
        if not (metrics.exists() and (self.model(self.suite.steps) / "config.json").exists()):
            return False
        records = read_jsonl(metrics)
        return bool(records) and records[-1]["step"] == self.suite.steps

    def tested_steps(self) -> list[int]:
        """The steps whose checkpoint is to be tested: the last one and the kept ones between."""
        every, steps = self.suite.eval.every, self.suite.steps
        between = range(every, steps, every) if every else ()
        return [step for step in between if self.model(step).exists()] + [steps]

    def eval_dir(self, step: int) -> Path:
        return self.dir / "eval" / f"step_{step:06d}"

    def eval_arguments(self, model: Path | str, out: Path) -> list[str]:
        """Arguments of eval.run, with the prompts and rewards of this run."""
        test = self.suite.eval
        return [
            f"model={model}",
            f"data={test.data}",
            f"root={test.root}",
            f"split={test.split}",
            f"config={self.dir / 'config.yaml'}",
            f"out={out}",
            "threads=1",
            *test.settings,
        ]

    def claim(self) -> None:
        """Write down what the folder is for.

        Raises:
            VisdError: it was made with other settings.
        """
        path = self.dir / "compare.json"
        arguments = strict_json.dumps(self.train_arguments, indent=1)
        if path.exists() and path.read_text(encoding="utf-8") != arguments:
            raise VisdError(
                f"{self.dir} was trained with other settings than the suite has now; delete it to train anew."
            )
        write_atomic(path, arguments)

    def check_inputs(self) -> None:
        """Remember the weights and manifests that the run began with, or compare them with what was remembered.

        Raises:
            VisdError: they have changed since, so that runs of different warm starts or data would be compared.
        """
        config = OmegaConf.load(self.dir / "config.yaml")
        files = sorted(Path(config.model.path).glob("*.safetensors"))
        files += [Path(config.data.root) / name for name in config.data.train]
        stats = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.exists()}
        path = self.dir / "inputs.json"
        if not path.exists():
            write_atomic(path, strict_json.dumps(stats))
        elif read_json(path) != stats:
            raise VisdError(
                f"{self.dir} was trained from other weights or data than are there now; delete it to train anew."
            )


def load_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        ConfigError: no such file, an unknown or missing field, a wrong type.
    """
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ConfigError(f"suite: no file {path}; there are {known or 'none'}.")
    try:
        suite: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Suite), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None)
        raise ConfigError(f"{path}: {name or ''}: {str(error).splitlines()[0].rstrip('.')}.") from None
    if suite.every_method:
        configs = sorted(path.parent.parent.glob("method/*.yaml"))
        suite.methods = {
            config.stem: [f"method={config.stem}"] for config in configs if config.stem not in suite.leave_out
        } | suite.methods
    if suite.steps < 1 or suite.window < 1 or not suite.seeds or not suite.methods:
        raise ConfigError(f"{path}: steps, window, seeds and methods must not be empty or 0.")
    if suite.baseline not in suite.methods:
        raise ConfigError(f"{path}: baseline: {suite.baseline!r} is not among the methods.")
    if len(suite.learning_rates) > 1 and not (suite.tune_steps > 0 and suite.validation):
        raise ConfigError(f"{path}: tune_steps and validation are needed to choose between learning_rates.")
    if suite.tune_seed in suite.seeds and len(suite.learning_rates) > 1:
        raise ConfigError(f"{path}: tune_seed: {suite.tune_seed} is one of the seeds; take another.")
    if len({folder_name(method) for method in suite.methods}) < len(suite.methods):
        raise ConfigError(f"{path}: methods: two names differ in spaces or signs only and would share a folder.")
    return suite


def folder_name(method: str) -> str:
    """A method's name in the tables, without what a shell or Hydra would read as more than a name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", method)


def planned_runs(suite: Suite, folder: Path, rates: Mapping[str, float | None] | None = None) -> list[PlannedRun]:
    """All runs, seed by seed, so that an unfinished comparison has every method equally often.

    Args:
        rates: learning rates by method; a method that is not there has no runs yet. None: the experiment's own for all.
    """
    known = dict.fromkeys(suite.methods) if rates is None else rates
    return [
        PlannedRun(suite, method, seed, folder / folder_name(method) / f"seed_{seed}", known[method])
        for seed in suite.seeds
        for method in suite.methods
        if method in known
    ]


def train_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "scripts/train.py", *arguments]


def eval_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "eval.run", *arguments]
