"""vLLM itself, where it is installed: one engine a model for all tests, which begin with the weights of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from visd.rollout.vllm_engine import VLLMEngine

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test` runs them in the environment of `make env-vllm`


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, Any]]:
    """vLLM's engines by the model's folder."""
    yield {}


@pytest.fixture(autouse=True)
def one_engine_a_model(engines: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    load = VLLMEngine._load

    def loaded(self: VLLMEngine) -> Any:
        llm = engines.get(self.policy.source)
        if llm is None:
            llm = engines[self.policy.source] = load(self)
        llm.collective_rpc("reload_weights")
        llm.llm_engine.reset_encoder_cache()
        return llm

    monkeypatch.setattr(VLLMEngine, "_load", loaded)
