"""Composing a run's configuration from the command line, and starting it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visd.config import ConfigError, RunConfig, load
from visd.types import VisdError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
USAGE = """usage: train.py [group=option ...] [field=value ...] [--cfg job] [--help]

  train.py experiment=demo                        run an experiment of configs/experiment
  train.py experiment=demo method=grpo run.seed=1  with another method and seed
  train.py experiment=demo --cfg job               print the configuration and stop
  train.py experiment=demo check_only=true         validate files, model and memory and stop

Every field, its default and what it does: docs/configuration.md."""


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The composed configuration, not yet checked.

    Raises:
        ConfigError: an override names no field or group option, in one sentence.
    """
    ConfigStore.instance().store(name="schema", node=RunConfig)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_sentence(error)) from None


def _one_sentence(error: BaseException) -> str:
    """Hydra explains over several lines; the last cause and the field it names are what the user needs."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    field = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    first = lines[0].rstrip(".")
    return f"{field}: {first}." if field and not first.startswith(field) else f"{first}."


def main(argv: Sequence[str] | None = None) -> int:
    """Start a run; returns the exit status. An error made for users is printed in one sentence."""
    arguments = [a for a in (sys.argv[1:] if argv is None else argv) if not a.startswith("--local_rank")]
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if {"--help", "-h"} & set(arguments):
        print(USAGE)
        return 0
    try:
        show = "--cfg" in arguments
        if show:
            at = arguments.index("--cfg")
            del arguments[at : at + 2]
        composed = compose_config(arguments)
        config = load(composed)
        if show:
            print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
            return 0
        return start(config)
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def start(config: RunConfig) -> int:
    """Run the stage that the configuration asks for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The heavy imports come after the configuration has been checked, so that its errors appear at once.
    from visd.train.launch import run_stage

    return run_stage(config)
