"""Student prompts: the instruction of each answer type, the system message, and nothing privileged in any tensor."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.media_files import write_video
from visd.config import FramesSection, PromptSection, VideoSection
from visd.data.prompts import INSTRUCTIONS, PromptBuilder
from visd.media.processor import PromptProcessor
from visd.types import ANSWER_TYPES, Answer, Box, Evidence, Media, Message, Prompt, Question, Sample

SECTION = PromptSection(video=VideoSection(fps=2, min_frames=4, max_frames=8, min_pixels=784, max_pixels=64 * 64))
SAMPLE = Sample(
    id="s-1",
    source="synthetic",
    family="which way",
    media=(Media("video", "clip.mp4"),),
    messages=(Message("user", "<video>\nWhich way does the red square move?\nA. left\nB. right"),),
    answer=Answer("letter", "B", ("left", "right"), 0.0),
    evidence=Evidence(((1.0, 3.0),), (1.0, 2.0), (Box(1.0, "red square", (0.1, 0.2, 0.3, 0.4)),)),
    rationale="The red square moves right.",
    reward={"name": "rules", "args": {}},
    meta={"scene": 7},
)
PRIVILEGED: dict[str, Any] = {
    "source": "elsewhere",
    "family": "when",
    "answer": Answer("letter", "A", ("up", "down", "left"), 5.0),
    "evidence": Evidence(((0.0, 9.0),), (8.0,), (Box(2.0, "blue circle", (0.5, 0.5, 0.9, 0.9)),)),
    "rationale": None,
    "reward": {"name": "other", "args": {"weight": 3}},
    "meta": {},
}
VISIBLE = {"id", "media", "messages"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", 24, 8)
    write_video(folder / "other.mp4", 24, 6)
    return folder


@pytest.fixture(scope="module")
def processor(tiny_qwen2_5_vl: Path, root: Path) -> PromptProcessor:
    return PromptProcessor.load(str(tiny_qwen2_5_vl), SECTION, root, FramesSection(workers=0))


def tensors(prompt: Prompt) -> dict[str, torch.Tensor]:
    found = {**vars(prompt), **vars(prompt.vision)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def equal(one: Prompt, two: Prompt) -> bool:
    first, second = tensors(one), tensors(two)
    rest = (one.text == two.text, one.frame_times == two.frame_times, one.suffix_start == two.suffix_start)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first) and all(rest)


def test_every_field_is_either_visible_or_perturbed() -> None:
    assert {field.name for field in fields(Sample)} == VISIBLE | PRIVILEGED.keys()
    assert {field.name for field in fields(Question)} == VISIBLE | {"answer_type"}


@pytest.mark.parametrize("name", PRIVILEGED)
def test_privileged_fields_change_nothing(processor: PromptProcessor, name: str) -> None:
    builder = PromptBuilder(processor, SECTION)
    changed = replace(SAMPLE, **{name: PRIVILEGED[name]})
    assert changed != SAMPLE
    assert equal(builder.build(SAMPLE.question()), builder.build(changed.question()))


def test_what_the_student_sees_does_change_it(processor: PromptProcessor) -> None:
    builder = PromptBuilder(processor, SECTION)
    base = builder.build(SAMPLE.question())
    for changed in (
        replace(SAMPLE, media=(Media("video", "other.mp4"),)),
        replace(SAMPLE, messages=(Message("user", "<video>\nWhich way?"),)),
        replace(SAMPLE, answer=Answer("word", "right")),
    ):
        assert not equal(base, builder.build(changed.question()))


@pytest.mark.parametrize("answer_type", ANSWER_TYPES)
def test_instruction_states_the_tags(processor: PromptProcessor, answer_type: Any) -> None:
    question = replace(SAMPLE.question(), answer_type=answer_type)
    (message,) = PromptBuilder(processor, SECTION).messages(question)
    assert message.content.startswith(f"{SAMPLE.messages[0].content}\n")
    assert "<think></think>" in message.content and "<answer></answer>" in message.content
    assert "<obj>" in message.content and "<t>" in message.content
    text = PromptBuilder(processor, SECTION).messages(replace(question, media=()))[0].content
    assert "<obj>" not in text and text.endswith(INSTRUCTIONS[answer_type])


def test_instructions_show_the_form_that_is_parsed() -> None:
    assert "From <t>start</t>s to <t>end</t>s" in INSTRUCTIONS["window"]
    assert "<box>[x1,y1,x2,y2]</box>" in INSTRUCTIONS["box"]
    assert len(set(INSTRUCTIONS.values())) == len(ANSWER_TYPES)


def test_instruction_can_be_left_out(processor: PromptProcessor) -> None:
    builder = PromptBuilder(processor, replace(SECTION, instruction=False))
    assert builder.messages(SAMPLE.question()) == SAMPLE.messages


def test_system_message(processor: PromptProcessor) -> None:
    builder = PromptBuilder(processor, replace(SECTION, system="Look closely."))
    assert builder.messages(SAMPLE.question())[0] == Message("system", "Look closely.")
    assert builder.build(SAMPLE.question()).text.startswith("<|im_start|>system\nLook closely.<|im_end|>")
    own = replace(SAMPLE.question(), messages=(Message("system", "Its own."), *SAMPLE.messages))
    assert [message.role for message in builder.messages(own)] == ["system", "user"]
    assert builder.messages(own)[0].content == "Its own."


def test_instruction_goes_to_the_last_turn(processor: PromptProcessor) -> None:
    turns = (Message("user", "<video>Look."), Message("assistant", "Yes?"), Message("user", "Which way?"))
    built = PromptBuilder(processor, SECTION).messages(replace(SAMPLE.question(), messages=turns))
    assert built[:2] == turns[:2] and built[2].content.startswith("Which way?\nReason")
