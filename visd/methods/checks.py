"""Checks of settings that several methods share."""

from __future__ import annotations

from collections.abc import Sequence

from visd.config import ConfigError, RunConfig


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value outside its choices, naming the field."""
    if value not in choices:
        raise ConfigError(f"method.{name}: {value!r} is not one of {', '.join(choices)}.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], naming the field."""
    if not low <= value <= high:
        raise ConfigError(f"method.{name}: {value} must lie between {low:g} and {high:g}.")


def check_context(config: RunConfig, block: str, why: str) -> None:
    """Refuse a teacher that would not be shown the block the method fills."""
    if block not in config.teacher.context:
        raise ConfigError(f"teacher.context: must name {block!r}, {why}; it is [{', '.join(config.teacher.context)}].")


def check_external(config: RunConfig, method: str) -> None:
    """Refuse a teacher that is a version of the student, for a method whose teacher is shown nothing more than it."""
    if config.teacher.weights != "external":
        raise ConfigError(
            f"teacher.weights: {method} learns from another model, so it must be external, with teacher.path; "
            f"it is {config.teacher.weights}."
        )
