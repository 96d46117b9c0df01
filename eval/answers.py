"""What a response answers, for evaluation: in `<answer>` tags or plain.

Training reads `<answer>` tags alone (`visd.reward.parse`). An evaluation also meets models that were never taught them,
so here a response without tags is its own answer. What stays the same is that nothing is guessed:

* a response that was cut off before its answer was complete has none, however clear its reasoning is;
* reasoning is never searched for an answer;
* an answer that can be read in two different ways is not read.

Every reading says how it was found (`status`), so that an evaluation can count the responses it could not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from eval.grounding import read_boxes, read_timed_boxes, read_window
from visd.reward.parse import find_numbers, normalise, parse_letter, parse_number, parse_response

Kind = Literal["letter", "number", "window", "box", "boxes", "yes_no", "math", "text"]
Status = Literal["tagged", "plain", "empty", "unclosed", "truncated", "unreadable"]

_TAG_NAMES = re.compile(r"<(/?)(think|thinking|answer)\s{0,3}>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"</?answer>")
_EMPHASIS = re.compile(r"\*\*|__|`")
_TEXT_MACRO = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]{0,200})\}")
_STATEMENT = re.compile(
    r"\b(?:answers?|option|choice)\b\s{0,3}(?:(?:is|are|would\s{1,3}be|should\s{1,3}be|must\s{1,3}be)\b\s{0,3}:?|[:=])\s{0,3}"
    r"|(?:答案|选项)\s{0,3}(?:是|为|：|:)\s{0,3}"
    r"|^\s{0,3}####\s{0,3}",
    re.IGNORECASE | re.MULTILINE,
)
_MARKED_LETTER = re.compile(r"(?:option\s{1,3})?(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])(?=[).,:;\]]|\s|$|。))")
_ANOTHER = re.compile(r"[)\].,:]?\s{0,3}(?:/|,|or\b|and\b|&)\s{0,3}(?:option\s{1,3})?[(\[]?[A-Z]\b(?!['’])")
_LEADING = re.compile(r"(?:\(([A-Z])\)|\[([A-Z])\]|([A-Z])[).:])\s{0,9}(.*)", re.DOTALL)
_LONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_YES_NO = re.compile(r"\W{0,9}(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Final:
    """The final answer of a response, before it is read as a type."""

    text: str | None  # stripped; None where there is none
    status: Status


@dataclass(frozen=True)
class Reading:
    """An answer as a value."""

    value: Any  # letter, float, (start, end), box, {time: boxes}, bool for yes/no or text; None where not readable
    status: Status
    text: str | None  # what was read


def final_answer(response: str, truncated: bool = False) -> Final:
    """The answer of a response.

    Args:
        truncated: the response ended at the limit of new tokens. An answer whose tag was closed before that is whole
            and counts; everything else is cut off and is no answer.
    """
    text = _TAG_NAMES.sub(_lower_tag, response)
    parsed = parse_response(text)
    if parsed.answer is not None and not (truncated and parsed.unclosed):
        return Final(parsed.answer, "tagged")
    if truncated:
        return Final(None, "truncated")
    if parsed.unclosed:
        return Final(None, "unclosed")
    rest = text[parsed.think_span[1] + len("</think>") :] if parsed.think is not None else text
    if tags := _ANSWER_TAG.findall(rest):
        return Final(None, "empty" if len(set(tags)) == 2 else "unclosed")
    return Final(rest.strip(), "plain") if rest.strip() else Final(None, "empty")


def _lower_tag(match: re.Match[str]) -> str:
    name = match[2].lower()
    return f"<{match[1]}{'think' if name == 'thinking' else name}>"


def read(response: str, kind: Kind, options: Sequence[str] = (), truncated: bool = False) -> Reading:
    """The final answer of a response as a value of its kind.

    Args:
        options: texts of A, B, ...; for letters.
        truncated: see `final_answer`.
    """
    final = final_answer(response, truncated)
    if final.text is None:
        return Reading(None, final.status, None)
    if kind == "letter":
        value: Any = read_letter(final.text, options, tagged=final.status == "tagged")
    else:
        value = _READERS[kind](final.text)
    return Reading(value, final.status if value is not None else "unreadable", final.text)


# --------------------------------------------------------------------------------------------------- letters


def read_letter(text: str, options: Sequence[str] = (), tagged: bool = False) -> str | None:
    """The chosen letter, in upper case.

    In this order: the whole text (a letter in any dress, or an option's own text), what a final statement says
    ("the answer is (B)"), a letter that leads the text ("B. the red square"), a first or last line that is a letter
    alone. Inside an answer tag also whatever `parse_letter` finds: there is no prose there that merely mentions an
    option.
    """
    text = _plain_marks(text)
    whole = _whole_letter(text, options)
    if whole is not None:
        return _within(whole, options)
    if statements := _statements(text):
        return _stated_letter(statements[-1], options)
    if match := _LEADING.fullmatch(text):
        return _led_letter(match, options)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ends = {m[1].upper() for line in (lines[0], lines[-1]) if len(lines) > 1 and (m := _LONE.fullmatch(line))}
    if ends:
        return _within(ends.pop(), options) if len(ends) == 1 else None
    return parse_letter(text, options) if tagged else None


def _whole_letter(text: str, options: Sequence[str]) -> str | None:
    if match := _LONE.fullmatch(text):
        return match[1].upper()
    return _option_of(text, options)


def _option_of(text: str, options: Sequence[str]) -> str | None:
    """The one option that a text is, word for word."""
    words = normalise(text)
    named = [chr(ord("A") + i) for i, option in enumerate(options) if words and normalise(option) == words]
    return named[0] if len(named) == 1 else None


def _led_letter(match: re.Match[str], options: Sequence[str]) -> str | None:
    """A leading letter, unless the text after it is another option's: then the two contradict each other."""
    letter = match[1] or match[2] or match[3]
    if _ANOTHER.match(match.string, len(match.string) - len(match[4]) - 1):
        return None
    named = _option_of(match[4], options)
    return _within(letter, options) if named in (None, letter) else None


def _stated_letter(statement: str, options: Sequence[str]) -> str | None:
    match = _MARKED_LETTER.match(statement)
    if match is None:
        first = re.split(r"[\n.;]|,\s", statement, maxsplit=1)[0]
        return _option_of(statement, options) or _option_of(first, options)
    letter = match[1] or match[2] or match[3]
    # "The answer is A red square": an article, unless A is an option by itself.
    if letter in "AI" and match[3] and (named := _option_of(statement.rstrip("."), options)):
        return named
    if letter in "AI" and match[3] and re.match(r"\s{1,3}\w", statement[match.end() :]):
        return None
    return None if _ANOTHER.match(statement, match.end()) else _within(letter, options)


def _within(letter: str, options: Sequence[str]) -> str | None:
    return letter if not options or ord(letter) - ord("A") < len(options) else None


# --------------------------------------------------------------------------------------- numbers, yes and no, math


def read_number(text: str) -> float | None:
    """The one number of the answer; of its final statement where the whole holds several."""
    text = _plain_marks(text)
    number = parse_number(text)
    if number is None and (statements := _statements(text)):
        found = set(find_numbers(statements[-1]))
        number = found.pop() if len(found) == 1 else None
    return number


def read_yes_no(text: str) -> bool | None:
    """True for yes: the first word of the answer, or of its final statement."""
    text = _plain_marks(text)
    match = _YES_NO.match(text)
    if match is None and (statements := _statements(text)):
        match = _YES_NO.match(statements[-1])
    return match[1].lower() == "yes" if match else None


def read_math(text: str) -> str | None:
    """The last `\\boxed{...}`, else the final statement, else the whole text."""
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip() or None
    statements = _statements(text)
    return (statements[-1].strip().rstrip(".") if statements else text.strip()) or None


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{...}` holds, braces balanced; None without one or where it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed{")
    for position in range(begin - 1, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def _plain_marks(text: str) -> str:
    """Without emphasis; a box of LaTeX stands for the whole."""
    boxed = last_boxed(text)
    text = _TEXT_MACRO.sub(r"\1", text if boxed is None else boxed)
    return _EMPHASIS.sub("", text).replace("$", "").strip()


def _statements(text: str) -> list[str]:
    """What follows each "the answer is", to the end of its paragraph, in order; the empty ones left out."""
    found = [text[m.end() :].split("\n", 1)[0].strip() for m in _STATEMENT.finditer(text)]
    return [statement for statement in found if statement]


_READERS: dict[str, Callable[[str], Any]] = {
    "number": read_number,
    "window": read_window,
    "box": lambda text: boxes[0] if len(boxes := read_boxes(text)) == 1 else None,
    "boxes": read_timed_boxes,
    "yes_no": read_yes_no,
    "math": read_math,
    "text": lambda text: text,
}
