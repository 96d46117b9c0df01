"""checkpoint.push_to_hub: the exported model arrives at a hub on the loopback, and a push that fails loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub_server import hub_server
from tests.runs import small_config
from visd.config import ConfigError
from visd.config_train import CheckpointSection
from visd.train.launch import run_stage
from visd.train.publish import publish
from visd.types import VisdError

NAME = "someone/small"


def test_a_finished_run_pushes_its_model(
    small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before it is finished; where the hub refuses, the next start pushes what is there."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its storage is no plain HTTP
    model = tmp_path / "model"

    def start(*overrides: str) -> None:
        settings = ("method=grpo", "data.train=[text_train.jsonl]", f"checkpoint.push_to_hub={NAME}", *overrides)
        run_stage(small_config(small_world, tiny_qwen2_5_vl, tmp_path, *settings))

    with hub_server(monkeypatch) as hub:
        start("train.stop_after=1")
        assert not hub.models
        hub.refusing = "/commit/"
        by_hand = rf"{NAME} could not be pushed \(.*403.*{model} is whole.*hf upload {NAME} {model} \. --private"
        with pytest.raises(VisdError, match=by_hand):
            start()
        assert hub.models == {NAME: {}} and json.loads((tmp_path / "summary.json").read_text())["finished"]
        hub.refusing = ""
        start()
    files = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert hub.models == {NAME: files} and {"config.json", "model.safetensors", "chat_template.jinja"} <= files.keys()
    assert hub.private == {NAME: True} and hub.tokens == {"Bearer hf_secret"}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert not written


def test_a_repository_may_be_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / "config.json").write_text("{}")
    with hub_server(monkeypatch) as hub:
        publish(CheckpointSection(push_to_hub=NAME, hub_private=False), tmp_path)
    assert hub.private == {NAME: False} and hub.models == {NAME: {"config.json": b"{}"}}


@pytest.mark.parametrize(
    ("token", "overrides", "message"),
    [
        ("", [f"checkpoint.push_to_hub={NAME}"], r"checkpoint\.push_to_hub: needs a token.*HF_TOKEN"),
        ("t", ["checkpoint.push_to_hub=a/b/c"], r"checkpoint\.push_to_hub: Repo id must"),
        ("t", [f"checkpoint.push_to_hub={NAME}", "checkpoint.export=never"], r"checkpoint\.export is never"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    token: str, overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match=message):
        run_stage(small_config(tmp_path, tmp_path, tmp_path, *overrides))
