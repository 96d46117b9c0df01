"""Texts of public formats: tags around answers and reasoning, options, placeholders; and the same way back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from data_tools.convert.base import Context, Unusable
from data_tools.convert.boxes import BadBox, Size
from visd.data.manifest import LETTERS
from visd.data.targets import answer_text
from visd.reward.parse import normalise, parse_letter, parse_number, parse_window
from visd.types import XYXY, Answer, AnswerType, Media, Sample

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_LABEL = re.compile(r"\s*(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[.):])\s*(.*)", re.DOTALL)
_OPTION_LINE = re.compile(r"^[ \t]*(?:\(([A-Z])\)|([A-Z])[.):])[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_INLINE_OPTION = re.compile(r"(?:(?<=\s)|^)\(([A-Z])\)\s*(.+?)(?=\s+\([A-Z]\)\s|\s*$)", re.DOTALL)
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_NUM = r"\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*"
_BOX = re.compile(rf"(?:<box>\s*)?\[{_NUM},{_NUM},{_NUM},{_NUM}\](?:\s*</box>)?")
_BOX_TAG = re.compile(r"<box>[^<]*</box>")
_WORD = re.compile(r"[^\W_][\w'-]{0,39}")


def split_tags(text: str) -> tuple[str | None, str]:
    """Reasoning and answer of a response: `<think>R</think><answer>A</answer>`, or parts of that, or neither.

    Raises:
        Unusable: several answers, or a tag that is opened and not closed.
    """
    for tag in ("think", "answer"):
        if text.count(f"<{tag}>") != text.count(f"</{tag}>") or text.count(f"<{tag}>") > 1:
            raise Unusable("tags", f"<{tag}> must be opened and closed once, in {text[:80]!r}")
    think = _THINK.search(text)
    answer = _ANSWER.search(text)
    rest = answer[1] if answer else _THINK.sub("", text)
    return (think[1].strip() if think else None), rest.strip()


def read_options(values: Sequence[Any]) -> tuple[str, ...]:
    """Texts of options, without the letters that may stand before them.

    Letters are taken off only if all options have them, in order: `A. red`, `(B) green`, `C) A.M.`.

    Raises:
        Unusable: an option is empty or no text.
    """
    texts = [str(value) if isinstance(value, (int, float)) else value for value in values]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise Unusable("options", f"options must be texts that are not empty: {list(values)}")
    matches = [_LABEL.fullmatch(text) for text in texts]
    labels = [match and (match[1] or match[2] or match[3]) for match in matches]
    if labels == list(LETTERS[: len(texts)]):
        texts = [cast(re.Match[str], match)[4] for match in matches]
    if not all(text.strip() for text in texts):
        raise Unusable("options", f"options must be texts that are not empty: {list(values)}")
    return tuple(text.strip() for text in texts)


def options_in(text: str) -> tuple[str, ...]:
    """Options written into a question, one a line or as (A) .. (B) ..; empty where there are none in order."""
    for pattern in (_OPTION_LINE, _INLINE_OPTION):
        found = [(m[m.lastindex - 1] or m[1], m[m.lastindex]) for m in pattern.finditer(text) if m.lastindex]
        letters = [letter for letter, _ in found]
        if len(found) >= 2 and letters == list(LETTERS[: len(found)]):
            return tuple(option.strip() for _, option in found)
    return ()


def listed(options: Sequence[str]) -> str:
    """How options stand under a question."""
    return "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def with_options(text: str, options: Sequence[str]) -> str:
    """The question with its options, unless it lists them already."""
    return text if not options or options_in(text) == tuple(options) else text + listed(options)


def without_options(text: str, options: Sequence[str]) -> str:
    """The question without the list that `with_options` wrote."""
    return text.removesuffix(listed(options)) if options else text


def with_placeholders(texts: Sequence[str], media: Sequence[Media]) -> list[str]:
    """User texts in which each medium has its placeholder; where none has one, all stand before the first text.

    Raises:
        Unusable: some have one and some do not.
    """
    whole = "".join(texts)
    out = list(texts)
    for kind in ("image", "video"):
        wanted, written = sum(m.kind == kind for m in media), whole.count(f"<{kind}>")
        if wanted and not written:
            out[0] = f"<{kind}>" * wanted + out[0].removeprefix("\n")
        elif wanted != written:
            raise Unusable("placeholders", f"{written} <{kind}> in the text for {wanted} {kind}s")
    return out


def without_placeholders(text: str, media: Sequence[Media]) -> str:
    """The text without placeholders that stand before it, if all do."""
    lead = "".join(f"<{m.kind}>" for m in media)
    ordered = "".join(f"<{kind}>" * sum(m.kind == kind for m in media) for kind in ("video", "image"))
    for prefix in (lead, ordered):
        if prefix and text.startswith(prefix):
            return text[len(prefix) :]
    return text


def read_answer(text: str, kind: str, options: Sequence[str], context: Context) -> Answer:
    """An answer of a type, or, for an empty `kind`, of the type that its text and options say.

    Raises:
        Unusable: it cannot be read as that type.
    """
    text = text.strip()
    if not text:
        raise Unusable("no_answer", "the answer is empty")
    kind = kind or ("letter" if options else _guessed(text))
    if kind == "letter":
        return Answer("letter", _letter(text, options), tuple(options))
    if kind == "number":
        number = float(text) if _PLAIN_NUMBER.fullmatch(text) else parse_number(text)
        if number is None:
            # A fraction, a formula: kept as what it is, and counted.
            context.note("number_as_text")
            return Answer("text", text)
        return Answer("number", number)
    if kind == "window":
        window = parse_window(text)
        if window is None:
            raise Unusable("window", f"{text[:80]!r} is no window of start and end in seconds")
        return Answer("window", window)
    if kind == "box":
        raise Unusable("box", f"{text[:80]!r} is no box")
    return Answer(cast(AnswerType, kind), text)


def answer_to(question: str, text: str, context: Context, path: str = "", kind: str = "") -> Answer:
    """The answer to a question that may list options; its type is `--answer-type`, or what its text says.

    Args:
        path: of the image or video, for boxes whose size no row says.
        kind: the type, where the row says it; a box is then in 0-1.

    Raises:
        Unusable: it cannot be read as that type.
    """
    if kind == "box":
        return Answer("box", read_box(text, context, None, path, "unit"))
    kind = kind or context.options.answer_type
    if kind == "box" or (not kind and _BOX.fullmatch(text.strip())):
        return Answer("box", read_box(text, context, None, path))
    options = options_in(question) if kind in ("", "letter") else ()
    if options and not kind:
        try:
            return read_answer(text, "letter", options, context)
        except Unusable:
            context.note("answer_beside_options")
            options = ()
    return read_answer(text, kind, options, context)


def read_box(text: str, context: Context, size: Size | None, path: str = "", convention: str = "") -> XYXY:
    """The one box written in a text, in 0-1.

    Raises:
        Unusable: there is none, or several that differ, or it cannot be read.
    """
    found = {tuple(float(value) for value in match.groups()) for match in _BOX.finditer(text)}
    if len(found) != 1:
        raise Unusable("box", f"{text[:80]!r} holds {len(found)} boxes, one is needed")
    try:
        return context.boxes.read(found.pop(), size, path, convention)
    except BadBox as error:
        raise Unusable(error.reason, str(error)) from None


def boxes_to_unit(text: str, context: Context, size: Size | None, convention: str) -> str:
    """A text whose `<box>` tags are written in 0-1, with four decimals; a tag that cannot be read stays, counted."""

    def change(match: re.Match[str]) -> str:
        try:
            box = read_box(match[0], context, size, "", convention)
        except Unusable as error:
            context.note(f"left_in_text_{error.reason}")
            return match[0]
        return f"<box>[{','.join(f'{value:.4g}' for value in box)}]</box>"

    return _BOX_TAG.sub(change, text)


def _guessed(text: str) -> str:
    if _PLAIN_NUMBER.fullmatch(text):
        return "number"
    if "<t>" in text and parse_window(text):
        return "window"
    return "word" if _WORD.fullmatch(text) else "text"


def _letter(text: str, options: Sequence[str]) -> str:
    if not 2 <= len(options) <= len(LETTERS):
        raise Unusable("options", f"a choice needs 2 to {len(LETTERS)} options, got {len(options)}")
    same = [LETTERS[i] for i, option in enumerate(options) if normalise(option) == normalise(text)]
    if len(same) > 1 and len(text) > 1:
        raise Unusable("ambiguous_option", f"{text!r} is the text of options {', '.join(same)}")
    letter = parse_letter(text, options)
    if letter is None or letter not in LETTERS[: len(options)]:
        raise Unusable("letter", f"{text[:80]!r} is not among the options {', '.join(LETTERS[: len(options)])}")
    return letter


def kept_answer(text: str, answer: Answer) -> str | None:
    """The answer's own text where `answer_text` would write another."""
    return None if answer_text(answer) == text.strip() else text.strip()


def stated_answer(sample: Sample) -> str:
    """The answer as its source wrote it, unless it was changed since."""
    text = answer_text(sample.answer)
    kept = sample.meta.get("answer_text")
    if isinstance(kept, dict) and kept.get("of") == text:
        return str(kept["text"])
    return text


def answer_note(text: str, answer: Answer) -> dict[str, str] | None:
    """What `stated_answer` needs: the source's text, and what it stands for."""
    kept = kept_answer(text, answer)
    return None if kept is None else {"text": kept, "of": answer_text(answer)}


def note_unless_box(text: str, answer: Answer) -> dict[str, str] | None:
    """`answer_note`, but none for a box, which is written in 0-1 whatever its source wrote."""
    return answer_note(text, answer) if answer.type != "box" else None
