"""One file a benchmark: its settings and the reader of its published layout. `load` finds it by its name."""

from __future__ import annotations

import importlib
import pkgutil

from eval.benchmarks.base import Benchmark
from visd.config import ConfigError

HELPERS = ("base", "files", "protocols")


def names() -> list[str]:
    """Every benchmark that there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS)


def load(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in names():
        raise ConfigError(f"benchmark: {name!r} is not one of {', '.join(names())}.")
    benchmark: Benchmark = importlib.import_module(f"{__name__}.{name}").BENCHMARK
    return benchmark
