"""The message interface of VLMEvalKit, driven as its inference of videos drives a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval.bridges import answerer
from eval.bridges.vlmevalkit import VisdVLM
from eval.model import Opened
from tests.parrot import Parrot
from visd.config import ConfigError
from visd.rollout.base import Sampling
from visd.types import Prompt, Rollout, VisdError


class Listening(Parrot):
    """Says one thing and keeps what it was asked."""

    def generate(
        self, prompts: Any, sampling: Sampling, seeds: Any, policy_version: int
    ) -> list[tuple[Rollout, ...]]:  # fmt: skip
        heard.extend(prompts)
        self.answers = {prompt.sample_id: ["<think>1 or 2</think><answer>B</answer>"] for prompt in prompts}
        return super().generate(prompts, sampling, seeds, policy_version)


heard: list[Prompt] = []


@pytest.fixture
def model(tiny_qwen2_5_vl: Path, monkeypatch: pytest.MonkeyPatch) -> VisdVLM:
    heard.clear()
    monkeypatch.setattr(answerer, "open_engine", lambda *_: Opened(Listening({}), lambda: None))
    return VisdVLM(model=str(tiny_qwen2_5_vl), **{"video.max_pixels": 12544, "frames.workers": 0})


def asked(model: VisdVLM, dataset: str, message: list[dict[str, Any]], nframe: int = 0, fps: float = -1) -> str:
    """As VLMEvalKit does: it sets the one of both that the data set fixes, and the other to None."""
    if nframe > 0:
        model.nframe, model.fps = nframe, None
    elif fps > 0:
        model.nframe, model.fps = None, fps
    assert not model.use_custom_prompt(dataset) and model.VIDEO_LLM and not model.is_api
    return model.generate(message=message, dataset=dataset)


def test_a_question_about_a_video(model: VisdVLM, small_world: Path) -> None:
    video = str(next(iter(sorted(small_world.rglob("*.mp4")))))
    message = [
        {"type": "text", "value": "Watch.", "role": "system"},
        {"type": "video", "value": video},
        {"type": "text", "value": "Which?\nA. x\nB. y"},
    ]
    assert asked(model, "Video-MME_4frame", message, nframe=4) == "B"
    assert asked(model, "Video-MME_1fps", message, fps=4.0) == "B"
    few, many = heard
    assert len(few.frame_times[0]) == 4 < len(many.frame_times[0])
    assert "Watch." in few.text and few.text.index("Watch.") < few.text.index("Which?\nA. x\nB. y")


def test_what_cannot_be_asked_is_unanswered(model: VisdVLM, capsys: pytest.CaptureFixture[str]) -> None:
    message = [{"type": "video", "value": "/nowhere/v.mp4"}, {"type": "text", "value": "Which?"}]
    assert asked(model, "MVBench_8frame", message, nframe=8) == "" and "v.mp4" in capsys.readouterr().out
    with pytest.raises(VisdError, match="holds audio"):
        model.generate([{"type": "audio", "value": "a.wav"}])
    with pytest.raises(ConfigError, match="sample"):
        VisdVLM(model="m", sample=2)


def test_a_plain_text_is_a_message_too(model: VisdVLM) -> None:
    model.answerer.settings.answer_only = False
    assert model.generate("What is 1 + 1?") == "<think>1 or 2</think><answer>B</answer>"
    assert not heard[0].kinds
