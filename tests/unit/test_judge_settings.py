"""What is refused of the settings of a language-model judge."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tree import ROOT
from visd.config import ConfigError, build
from visd.judge.base import JudgeServices
from visd.judge.openai import OpenAIJudge
from visd.types import Frames, Media


def no_frames(media: Media) -> Frames:
    raise AssertionError("nothing is judged here")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sees": "all"}, "judge.sees"),
        ({"structured": "xml"}, "judge.structured"),
        ({"on_failure": "zero"}, "judge.on_failure"),
        ({"cache": "maybe"}, "judge.cache"),
        ({"concurrency": 0}, "judge.concurrency"),
        ({"retries": -1}, "judge.retries"),
        ({"max_failure_rate": 1.5}, "judge.max_failure_rate"),
        ({"base_url": "ftp://x"}, "judge.base_url"),
        ({"base_url": "http://me:pw@host/v1"}, "judge.base_url"),
        ({"budget_usd": 1.0}, "judge.budget_usd"),
        ({"api_key": "x"}, "judge.api_key"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        build({"_target_": "visd.judge.openai.OpenAIJudge", **settings}, "judge")


def test_a_key_in_the_configuration_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"judge\.api_key_env") as error:
        OpenAIJudge(api_key_env="sk-very-secret")
    assert "secret" not in str(error.value)


def test_a_missing_model_or_key_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = JudgeServices(tmp_path, no_frames)
    with pytest.raises(ConfigError, match=r"judge\.model"):
        OpenAIJudge().open(services)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        OpenAIJudge(model="m", api_key_env="NO_SUCH_KEY").open(services)


def test_the_configuration_names_every_setting_with_its_default() -> None:
    written = yaml.safe_load((ROOT / "configs/judge/openai.yaml").read_text())
    default = OpenAIJudge()
    assert written == {
        "_target_": "visd.judge.openai.OpenAIJudge",
        **{f.name: getattr(default, f.name) for f in fields(default)},
    }
