"""Probes of what answers say: deliberation, and traces of text that the policy was never shown."""

from __future__ import annotations

import re

COPIED_WORDS = 5
"""Words in a row that count as copied."""

_DELIBERATION = re.compile(
    r"\b(?:wait|hmm|maybe|perhaps|alternatively|actually|however|on second thought|let me (?:check|re-?check|verify))\b",
    re.IGNORECASE,
)
_MENTION = re.compile(
    r"\b(?:verified facts|hidden from the student|(?:reference|correct|given|provided) solution|reference:|"
    r"other answer:|previous (?:attempt|assessment)|(?:unsuccessful )?earlier attempt|key times:|feedback:|"
    r"(?:as|what) the (?:solution|reference|feedback) (?:says|states|shows)|according to the (?:solution|reference|feedback))",
    re.IGNORECASE,
)
_WORD = re.compile(r"\w+")


def deliberation_markers(text: str) -> int:
    """How often an answer hesitates or checks itself, by words such as `wait`, `maybe`, `alternatively`."""
    return len(_DELIBERATION.findall(text))


def mentions_privileged(text: str) -> bool:
    """Whether an answer speaks of a text that only a teacher is shown: a leak, whatever the text says."""
    return _MENTION.search(text) is not None


def copied_share(text: str, source: str, words: int = COPIED_WORDS) -> float | None:
    """Share of the runs of `words` words of an answer that stand in `source`; None for a shorter answer.

    Letter case and punctuation do not count.
    """
    own, known = _runs(text, words), set(_runs(source, words))
    return sum(run in known for run in own) / len(own) if own else None


def _runs(text: str, words: int) -> list[tuple[str, ...]]:
    found = [word.lower() for word in _WORD.findall(text)]
    return [tuple(found[i : i + words]) for i in range(len(found) - words + 1)]
