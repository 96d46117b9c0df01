"""Shared, real inputs of tests: tiny models and a small world, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.synth.build import WorldSettings, build
from data_tools.tiny.model import TinySettings, make_tiny_model


@pytest.fixture(scope="session")
def tiny_qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-VL with random weights; not to be changed."""
    out = tmp_path_factory.mktemp("models") / "tiny_qwen2_5_vl"
    make_tiny_model(out, TinySettings(family="qwen2_5_vl"))
    return out


@pytest.fixture(scope="session")
def tiny_qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen3-VL with random weights; not to be changed."""
    out = tmp_path_factory.mktemp("models") / "tiny_qwen3_vl"
    make_tiny_model(out, TinySettings(family="qwen3_vl"))
    return out


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of another, smaller Qwen2.5-VL with the same vocabulary; not to be changed."""
    out = tmp_path_factory.mktemp("models") / "tiny_teacher"
    make_tiny_model(out, TinySettings(seed=1, text_layers=2, text_width=64, vision_width=64))
    return out


@pytest.fixture(scope="session")
def tiny_other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-VL whose tokenizer splits words and numbers; not to be changed."""
    out = tmp_path_factory.mktemp("models") / "tiny_other_tokenizer"
    make_tiny_model(out, TinySettings(seed=1, text_layers=2, text_width=64, vision_width=64, vocabulary=400))
    return out


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of thirteen videos with text problems beside them; not to be changed."""
    out = tmp_path_factory.mktemp("world")
    build(out, WorldSettings(kind="mixed", careful=6, sft=24, train=24, validation=12, test=12))
    return out
