"""Every sentence the rule judge can say. Short, few words, no slot: feedback can quote neither rollout nor answer."""

from __future__ import annotations

from collections.abc import Sequence

RIGHT = "The answer is right."
PARTLY = "The answer is partly right."
WRONG = "The answer is wrong."
MISSING = "The answer is missing."
CUT = "The output is cut."
UNREADABLE = "The answer has the wrong type."
FORM = "The form is wrong."

NUMBER_HIGH = "The number is too high."
NUMBER_LOW = "The number is too low."
TEXT_LITTLE = "The answer says too little."
TEXT_MUCH = "The answer says too much."
WINDOW_MISSES = "The window misses the event."
STARTS_EARLY = "The window starts too early."
STARTS_LATE = "The window starts too late."
ENDS_EARLY = "The window ends too early."
ENDS_LATE = "The window ends too late."
BOX_MISSES = "The box misses the object."
BOX_LARGE = "The box is too large."
BOX_SMALL = "The box is too small."
BOX_OFF = "The box is off."

SUPPORTED = "The reasoning supports it."
NO_REASONING = "The reasoning is missing."
UNSUPPORTED = "The reasoning does not support the answer."
DRIFTED = "The reasoning is right but the answer is not."
CONCLUSION = "The reasoning ends wrong."

NO_TIME = "No time is given."
SOME_TIMES = "Some times are wrong."
ALL_TIMES = "All times are wrong."

NO_BOX = "No box is given."
WRONG_OBJECT = "The reasoning shows the wrong object."
SOME_BOXES = "Some boxes are wrong."
ALL_BOXES = "All boxes are wrong."

TEMPLATES = (
    *(RIGHT, PARTLY, WRONG, MISSING, CUT, UNREADABLE, FORM),
    *(NUMBER_HIGH, NUMBER_LOW, TEXT_LITTLE, TEXT_MUCH),
    *(WINDOW_MISSES, STARTS_EARLY, STARTS_LATE, ENDS_EARLY, ENDS_LATE),
    *(BOX_MISSES, BOX_LARGE, BOX_SMALL, BOX_OFF),
    *(SUPPORTED, NO_REASONING, UNSUPPORTED, DRIFTED, CONCLUSION),
    *(NO_TIME, SOME_TIMES, ALL_TIMES),
    *(NO_BOX, WRONG_OBJECT, SOME_BOXES, ALL_BOXES),
)
"""Every fixed text of this module."""

MOST_SENTENCES = 4


def compose(verdict: str, issues: Sequence[str]) -> str:
    """The verdict and the first issues, two to four sentences; praise of the reasoning where there is no issue."""
    sentences = dict.fromkeys([verdict, *(issues or [SUPPORTED])])
    return " ".join(list(sentences)[:MOST_SENTENCES])
