"""Questions to prompts: the system message and one instruction an answer type around what the sample asks."""

from __future__ import annotations

from collections.abc import Iterable

from visd.config import PromptSection
from visd.media.processor import PromptProcessor
from visd.types import AnswerType, Message, Prompt, Question

INSTRUCTIONS: dict[AnswerType, str] = {
    "word": "Reason in <think></think>, then answer with one word in <answer></answer>.",
    "number": "Reason in <think></think>, then answer with a number in <answer></answer>.",
    "letter": "Reason in <think></think>, then answer with the letter of an option in <answer></answer>.",
    "text": "Reason in <think></think>, then answer briefly in <answer></answer>.",
    "window": "Reason in <think></think>, then answer with From <t>start</t>s to <t>end</t>s in <answer></answer>.",
    "box": "Reason in <think></think>, then answer with <box>[x1,y1,x2,y2]</box>, each in 0-1, in <answer></answer>.",
}
"""Depends on the type of the answer, never on its value."""

CLAIMS = "Say where and when you see a thing as <obj>name</obj><box>[x1,y1,x2,y2]</box>at<t>time</t>s."
"""Added where there are media to point at."""


def instruction(question: Question) -> str:
    """How the answer is to be written, in one or two sentences."""
    text = INSTRUCTIONS[question.answer_type]
    return f"{text} {CLAIMS}" if question.media else text


class PromptBuilder:
    """Builds every student prompt. It is given a `Question`, so nothing privileged can reach it."""

    def __init__(self, processor: PromptProcessor, section: PromptSection):
        self.processor = processor
        self.section = section

    def build(self, question: Question) -> Prompt:
        """The question's prompt.

        Raises:
            DroppedSample: see `PromptProcessor.process`.
        """
        return self.processor.process(question.id, self.messages(question), question.media)

    def prefetch(self, questions: Iterable[Question]) -> None:
        """Have the media of questions decoded that `build` will be given next."""
        self.processor.prefetch(media for question in questions for media in question.media)

    def messages(self, question: Question) -> tuple[Message, ...]:
        """The chat as the model gets it; a sample's own system message stands, the configured one fills its absence."""
        messages = question.messages
        if self.section.instruction and messages:
            last = messages[-1]
            messages = (*messages[:-1], Message(last.role, f"{last.content}\n{instruction(question)}"))
        if self.section.system and not any(message.role == "system" for message in messages):
            messages = (Message("system", self.section.system), *messages)
        return messages
