"""vLLM itself, where it is installed: one engine a model for all tests, which begin with the weights of its folder."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from visd.rollout.vllm_engine import VLLMEngine
from visd.rollout.vllm_worker import load_weights

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
        weights = [
            pair for path in sorted(Path(self.policy.source).glob("*.safetensors")) for pair in load_file(path).items()
        ]
        llm.collective_rpc(load_weights, kwargs={"weights": weights, "keep_features": False})
        llm.llm_engine.reset_encoder_cache()
        assert llm.reset_prefix_cache()
        return llm

    monkeypatch.setattr(VLLMEngine, "_load", loaded)
