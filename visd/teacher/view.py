"""The privileged view: what the teacher is told besides the student's prompt, and how it is written.

The order published for VISD (arXiv 2605.06094) is header, verified answer, verified window, key-frame times, feedback;
gold boxes are not shown. Blocks are chosen and ordered by `teacher.context`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from visd.config import ConfigError
from visd.data.targets import answer_text, time_text
from visd.judge.feedback import TEMPLATES as JUDGE_TEMPLATES
from visd.types import Answer, PrivilegedContext, Prompt, Sample, Window

if TYPE_CHECKING:
    from visd.media.processor import PromptProcessor

HEADER = "Verified facts, hidden from the student."
LABELS = {
    "answer": "Answer:",
    "window": "Window:",
    "key_times": "Key times:",
    "feedback": "Feedback:",
    "reference": "Reference:",
    "peers": "Other answer:",
}
TEMPLATES = (HEADER, *LABELS.values())
"""Every fixed text of this module."""


def all_template_texts() -> list[str]:
    """Every fixed text that a privileged prompt may hold, feedback of the rule judge included."""
    return [*TEMPLATES, *JUDGE_TEMPLATES]


def verified(sample: Sample, feedback: str | None) -> PrivilegedContext:
    """The verified facts of a sample and a judge's feedback on one rollout.

    The window is the answer's own, or spans all windows of the evidence.
    """
    windows = sample.evidence.windows
    window: Window | None = None
    if sample.answer.type == "window":
        window = cast(Window, sample.answer.value)
    elif windows:
        window = (min(start for start, _ in windows), max(end for _, end in windows))
    return PrivilegedContext(
        answer=answer_text(sample.answer),
        window=window,
        key_times=sample.evidence.frames,
        feedback=feedback or None,
    )


def render(context: PrivilegedContext, blocks: Sequence[str], max_feedback_chars: int) -> str:
    """The header and the named blocks that have content, one a line and in the given order; "" where none has.

    Raises:
        ConfigError: `teacher.context` names a block that does not exist.
    """
    check_blocks(blocks)
    lines = [line for name in blocks for line in _WRITERS[name](context, max_feedback_chars)]
    return "".join(f"\n{line}" for line in (HEADER, *lines)) if lines else ""


def check_blocks(blocks: Sequence[str]) -> None:
    """Refuse block names that do not exist.

    Raises:
        ConfigError: names the block.
    """
    for name in blocks:
        if name not in _WRITERS:
            raise ConfigError(f"teacher.context: {name!r} is not one of {', '.join(_WRITERS)}.")


def teacher_prompt(processor: PromptProcessor, prompt: Prompt, text: str) -> Prompt:
    """The student's prompt with the privileged text at the end of the user's turn; media and pixels stay the same."""
    return processor.insert_text(prompt, text)


def _answer(context: PrivilegedContext, _: int) -> list[str]:
    return _line("answer", context.answer)


def _window(context: PrivilegedContext, _: int) -> list[str]:
    if context.window is None:
        return []
    return _line("window", answer_text(Answer("window", context.window)))


def _key_times(context: PrivilegedContext, _: int) -> list[str]:
    return _line("key_times", " ".join(f"<t>{time_text(t)}</t>s" for t in context.key_times))


def _feedback(context: PrivilegedContext, limit: int) -> list[str]:
    return _line("feedback", " ".join((context.feedback or "").split())[:limit].rstrip())


def _reference(context: PrivilegedContext, _: int) -> list[str]:
    return _line("reference", context.reference)


def _peers(context: PrivilegedContext, _: int) -> list[str]:
    return [line for peer in context.peers for line in _line("peers", peer)]


def _line(block: str, text: str | None) -> list[str]:
    return [f"{LABELS[block]} {text}"] if text else []


_WRITERS: dict[str, Callable[[PrivilegedContext, int], list[str]]] = {
    "answer": _answer,
    "window": _window,
    "key_times": _key_times,
    "feedback": _feedback,
    "reference": _reference,
    "peers": _peers,
}
