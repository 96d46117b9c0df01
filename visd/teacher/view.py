"""The privileged view: what the teacher is told besides the student's prompt, and how it is written.

The order published for VISD (arXiv 2605.06094) is header, verified answer, verified window, key-frame times, feedback;
gold boxes are not shown. Blocks are chosen and ordered by `teacher.context`, and laid out by `teacher.layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from visd.config import ConfigError
from visd.data.targets import answer_text, time_text
from visd.judge.feedback import TEMPLATES as JUDGE_TEMPLATES
from visd.teacher.layout import HEADER, LABELS, LAYOUTS
from visd.types import Answer, PrivilegedContext, Prompt, Sample, Window

if TYPE_CHECKING:
    from visd.media.processor import PromptProcessor

TEMPLATES = (HEADER, *LABELS.values())
"""Every fixed text of the layout `facts`."""


def all_template_texts() -> list[str]:
    """Every fixed text that a privileged prompt in the layout `facts` may hold, feedback of the rule judge included."""
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


def render(context: PrivilegedContext, blocks: Sequence[str], max_feedback_chars: int, layout: str = "facts") -> str:
    """The named blocks that have content, in the given order and layout; "" where none has.

    Raises:
        ConfigError: `teacher.context` names a block that does not exist.
    """
    check_blocks(blocks)
    contents = [(name, text) for name in blocks for text in _CONTENTS[name](context, max_feedback_chars) if text]
    return LAYOUTS[layout].write(contents)


def check_blocks(blocks: Sequence[str]) -> None:
    """Refuse block names that do not exist.

    Raises:
        ConfigError: names the block.
    """
    for name in blocks:
        if name not in _CONTENTS:
            raise ConfigError(f"teacher.context: {name!r} is not one of {', '.join(_CONTENTS)}.")


def teacher_prompt(processor: PromptProcessor, prompt: Prompt, text: str) -> Prompt:
    """The student's prompt with the privileged text at the end of the user's turn; media and pixels stay the same."""
    return processor.insert_text(prompt, text)


def _window(context: PrivilegedContext, _: int) -> list[str]:
    return [] if context.window is None else [answer_text(Answer("window", context.window))]


def _key_times(context: PrivilegedContext, _: int) -> list[str]:
    return [" ".join(f"<t>{time_text(t)}</t>s" for t in context.key_times)]


def _feedback(context: PrivilegedContext, limit: int) -> list[str]:
    return [" ".join((context.feedback or "").split())[:limit].rstrip()]


_CONTENTS: dict[str, Callable[[PrivilegedContext, int], list[str]]] = {
    "answer": lambda context, _: [context.answer or ""],
    "window": _window,
    "key_times": _key_times,
    "feedback": _feedback,
    "reference": lambda context, _: [context.reference or ""],
    "peers": lambda context, _: list(context.peers),
    "playbook": lambda context, _: [context.playbook or ""],
    "trial": lambda context, _: [context.trial or ""],
    "reflection": lambda context, _: [context.reflection or ""],
}
"""The texts of each block; an empty one is left out."""
