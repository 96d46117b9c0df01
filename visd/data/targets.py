"""Texts of answers and the targets of supervised training."""

from __future__ import annotations

from typing import cast

from visd.data.fields import Place
from visd.data.manifest import answer_from_value
from visd.types import XYXY, Answer, Sample, VisdError, Window


def answer_text(answer: Answer) -> str:
    """How a response states an answer: `right`, `3`, `B`, `From <t>1.0</t>s to <t>3.0</t>s`, `<box>[0.1,0.2,0.4,0.5]</box>`."""
    if answer.type == "window":
        start, end = cast(Window, answer.value)
        return f"From <t>{time_text(start)}</t>s to <t>{time_text(end)}</t>s"
    if answer.type == "box":
        return box_text(cast(XYXY, answer.value))
    if answer.type == "number":
        return f"{cast(float, answer.value):.10g}"
    return cast(str, answer.value)


def time_text(t: float) -> str:
    """Seconds with one decimal at least and two at most."""
    return str(round(float(t), 2))


def box_text(xyxy: XYXY) -> str:
    """A box with its tags, one to three decimals."""
    return f"<box>[{','.join(str(round(float(v), 3)) for v in xyxy)}]</box>"


def sft_target(sample: Sample, *, verified: bool = False) -> str:
    """The response that supervised training teaches: the trace, then what the trace concludes.

    Traces of an imperfect annotator may conclude something wrong, or be poor. Such a sample says in `meta.trace_answer`
    what its trace concludes, if that is wrong, and in `meta.verified_rationale` what a right trace would have been. With
    `verified` the right one is returned, which is what a prompt that reveals the truth should teach.

    Raises:
        VisdError: the sample has no such trace.
        ManifestError: `meta.trace_answer` does not fit the answer's type.
    """
    answer, rationale, name = sample.answer, sample.rationale, "rationale"
    if verified and ("trace_answer" in sample.meta or "verified_rationale" in sample.meta):
        rationale, name = sample.meta.get("verified_rationale"), "meta.verified_rationale"
    elif "trace_answer" in sample.meta:
        place = Place("manifest", sample.id, "meta.trace_answer")
        answer = answer_from_value(answer, sample.meta["trace_answer"], place)
    if not isinstance(rationale, str):
        raise VisdError(f"sample {sample.id!r}: field {name!r} is missing; supervised training needs a reasoning trace")
    return f"<think>{rationale}</think><answer>{answer_text(answer)}</answer>"
