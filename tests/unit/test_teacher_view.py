"""The privileged text: what it holds, in which order, and that nothing is added when there is nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.reward_data import IMAGE, RED, proof, sample
from visd.config import ConfigError, FramesSection, PromptSection, TeacherSection
from visd.judge.feedback import TEMPLATES as JUDGE_TEMPLATES
from visd.media.processor import PromptProcessor
from visd.teacher.view import HEADER, LABELS, all_template_texts, render, teacher_prompt, verified
from visd.types import Answer, Evidence, Message, PrivilegedContext

PUBLISHED = TeacherSection().context
FULL = PrivilegedContext(
    answer="right",
    window=(1.0, 3.25),
    key_times=(1.0, 2.5),
    feedback="The answer is wrong.",
    reference="look left",
    peers=("one", "two"),
)


def test_published_order() -> None:
    assert render(FULL, PUBLISHED, 1000) == (
        "\nVerified facts, hidden from the student."
        "\nAnswer: right"
        "\nWindow: From <t>1.0</t>s to <t>3.25</t>s"
        "\nKey times: <t>1.0</t>s <t>2.5</t>s"
        "\nFeedback: The answer is wrong."
    )


def test_blocks_come_in_the_order_given() -> None:
    text = render(FULL, ["peers", "reference", "answer"], 1000)
    assert text == f"\n{HEADER}\nOther answer: one\nOther answer: two\nReference: look left\nAnswer: right"


@pytest.mark.parametrize("block", list(LABELS))
def test_an_empty_block_adds_no_line(block: str) -> None:
    assert render(PrivilegedContext(), [block], 1000) == ""
    assert LABELS[block] in render(FULL, [block], 1000)
    others = [name for name in LABELS if name != block]
    assert LABELS[block] not in render(FULL, others, 1000)


def test_nothing_to_say_is_no_text() -> None:
    assert render(PrivilegedContext(), PUBLISHED, 1000) == ""
    assert render(FULL, [], 1000) == ""
    assert render(PrivilegedContext(feedback=" \n "), ["feedback"], 1000) == ""
    assert render(PrivilegedContext(feedback="x"), ["feedback"], 0) == ""


def test_feedback_is_one_line_and_cut() -> None:
    context = PrivilegedContext(feedback="The  answer\nis wrong. " + "x" * 5000)
    line = render(context, ["feedback"], 20).removeprefix(f"\n{HEADER}\nFeedback: ")
    assert line == "The answer is wrong."


def test_unknown_blocks_are_refused_even_where_nothing_is_written() -> None:
    with pytest.raises(ConfigError, match=r"^teacher\.context: 'answers' is not one of answer, "):
        render(PrivilegedContext(), ["answers"], 1000)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Answer("word", "right"), "right"),
        (Answer("number", 3.0), "3"),
        (Answer("letter", "B", ("up", "down")), "B"),
        (Answer("window", (1.0, 3.0)), "From <t>1.0</t>s to <t>3.0</t>s"),
        (Answer("box", RED), "<box>[0.1,0.2,0.4,0.5]</box>"),
    ],
)
def test_verified_answer(answer: Answer, text: str) -> None:
    assert verified(sample(answer), None).answer == text


def test_verified_window_and_times() -> None:
    context = verified(sample(Answer("word", "right"), proof()), "The answer is wrong.")
    assert (context.window, context.key_times, context.feedback) == ((1.0, 3.0), (1.0, 2.0), "The answer is wrong.")
    assert verified(sample(Answer("window", (2.0, 2.5)), proof()), None).window == (2.0, 2.5)
    two = Evidence(windows=((4.0, 5.0), (1.0, 2.0)))
    assert verified(sample(Answer("word", "right"), two), None).window == (1.0, 5.0)
    assert verified(sample(Answer("word", "right")), "").feedback is None


def test_gold_boxes_are_not_shown() -> None:
    text = render(verified(sample(Answer("word", "right"), proof(), IMAGE), None), list(LABELS), 1000)
    assert "box" not in text and "0.4" not in text and "square" not in text


def test_all_fixed_texts_are_listed() -> None:
    texts = all_template_texts()
    assert {HEADER, *LABELS.values(), *JUDGE_TEMPLATES} == set(texts)
    assert all(text == text.strip() and text for text in texts)


def test_the_text_ends_the_users_turn(tiny_qwen2_5_vl: Path, tmp_path: Path) -> None:
    processor = PromptProcessor.load(str(tiny_qwen2_5_vl), PromptSection(), tmp_path, FramesSection(workers=0))
    prompt = processor.process("s1", [Message("user", "Which way?")], [])
    text = render(verified(sample(Answer("word", "right"), proof()), "The answer is wrong."), PUBLISHED, 1000)
    seen = teacher_prompt(processor, prompt, text)
    assert seen.text == prompt.text.replace("Which way?", f"Which way?{text}")
    assert seen.input_ids[: prompt.suffix_start].tolist() == prompt.input_ids[: prompt.suffix_start].tolist()
    assert processor.tokenizer.decode(seen.input_ids[prompt.suffix_start : seen.suffix_start]) == text
