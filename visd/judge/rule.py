"""The rule judge: the report of a rollout from the evidence and the rollout's text, without any model.

What a text says about itself, its score or its judge changes nothing: only tags, times, boxes, numbers and the words
of answers are read. The feedback is made of fixed sentences (`visd.judge.feedback`) and holds no word of the rollout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from visd.judge import feedback as say
from visd.judge.base import Judge
from visd.judge.reasoning import conclusion, support
from visd.reward import rules
from visd.reward.combine import gold_windows, still
from visd.reward.parse import (
    Claim,
    Parsed,
    normalise,
    parse_box,
    parse_letter,
    parse_number,
    parse_response,
    parse_window,
)
from visd.types import XYXY, Answer, JudgeReport, Rollout, RolloutGroup, Sample, Span, Window

RIGHT_AT = 0.5
"""Least IoU, or support, that counts as right."""
PARTLY_AT = 0.2
"""Least accuracy that counts as partly right."""
EDGE_SHARE = 0.1
"""An end of a window is off when it is wrong by more than this share of both windows' hull."""
SIZE_RATIO = 1.5
"""A box is too large or too small when its area is off by more than this factor."""

CITES_TIMES = ("window", "text")
CITES_BOXES = ("box", "text")
"""Answer types whose reasoning must cite times, or boxes, where the sample has evidence."""


@dataclass
class Finding:
    """What was found about one dimension."""

    score: float | None = None
    issues: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


@dataclass
class RuleJudge(Judge):
    """Judges by evidence. The fields mean what those of the same name mean in `reward`."""

    number_tolerance: float = 0.0  # absolute tolerance for numbers, where a sample has none of its own
    gate_seconds: float = 1.0  # s between a cited time and a gold key frame

    def judge(self, groups: Sequence[RolloutGroup]) -> list[tuple[JudgeReport, ...]]:
        return [tuple(self.report(group.sample, rollout) for rollout in group.rollouts) for group in groups]

    def report(self, sample: Sample, rollout: Rollout) -> JudgeReport:
        """The report of one rollout.

        Scores: `answer` is the accuracy; `logic` the mean of how far the reasoning supports the given answer, how far
        it supports the verified one, and the share of its claims about objects of the evidence; `temporal` and
        `spatial` the mean of the answer's IoU (windows, boxes) and the cited times' and boxes' rightness. They are None
        where the sample has no window or key frame, or no box; and where nothing is cited, unless the answer's type
        calls for it (windows and texts for times, boxes and texts for boxes), which scores 0.
        """
        parsed = parse_response(rollout.text)
        verdict, answer = self._answer(sample.answer, parsed, cut=rollout.stop_reason == "length")
        logic = _logic(sample, parsed, correct=rules.is_correct(sample.answer, answer.score or 0.0))
        findings = (answer, logic, self._temporal(sample, parsed), self._spatial(sample, parsed))
        issues = [issue for finding in findings for issue in finding.issues]
        if not parsed.well_formed and say.CUT not in issues:
            issues.append(say.FORM)
        return JudgeReport(
            status="ok",
            answer=findings[0].score,
            logic=findings[1].score,
            temporal=findings[2].score,
            spatial=findings[3].score,
            feedback=say.compose(verdict, issues),
            spans=tuple(sorted((s for f in findings for s in f.spans), key=lambda span: (span.start, span.end))),
        )

    def _answer(self, gold: Answer, parsed: Parsed, cut: bool) -> tuple[str, Finding]:
        """The verdict on the answer, and the finding."""
        if parsed.answer is None:
            return say.MISSING, Finding(0.0, [say.CUT] if cut or parsed.unclosed else [])
        score = rules.accuracy(gold, parsed.answer, self.number_tolerance)
        correct = rules.is_correct(gold, score)
        spans = [_span(parsed.answer_span, "answer", correct)]
        if not rules.readable(gold, parsed.answer):
            return say.WRONG, Finding(score, [say.UNREADABLE], spans)
        issues = _answer_issues(gold, parsed.answer, correct)
        if correct and not issues:
            return say.RIGHT, Finding(score, issues, spans)
        graded = gold.type in ("window", "box", "text")
        return say.PARTLY if graded and score >= PARTLY_AT else say.WRONG, Finding(score, issues, spans)

    def _temporal(self, sample: Sample, parsed: Parsed) -> Finding:
        windows, frames = gold_windows(sample), sample.evidence.frames
        if not windows and not frames:
            return Finding()
        scores = _answer_iou(sample.answer, parsed) if sample.answer.type == "window" else []
        if not parsed.times:
            return Finding(_mean([*scores, 0.0]), [say.NO_TIME]) if sample.answer.type in CITES_TIMES else Finding()
        right = [self._right_time(t, windows, frames) for t in parsed.times]
        spans = [_span(span, "temporal", ok) for span, ok in zip(_whole_times(parsed), right, strict=True)]
        return Finding(_mean([*scores, _mean(right)]), _some_or_all(right, say.SOME_TIMES, say.ALL_TIMES), spans)

    def _right_time(self, t: float, windows: Sequence[Window], frames: Sequence[float]) -> bool:
        if windows:
            return any(start <= t <= end for start, end in windows)
        return any(abs(t - frame) <= self.gate_seconds for frame in frames)

    def _spatial(self, sample: Sample, parsed: Parsed) -> Finding:
        gold = sample.evidence.boxes
        scores = _answer_iou(sample.answer, parsed) if sample.answer.type == "box" else []
        if not gold:
            return Finding(_mean(scores) if scores else None)
        if not parsed.claims:
            return Finding(_mean([*scores, 0.0]), [say.NO_BOX]) if sample.answer.type in CITES_BOXES else Finding()
        known = _known_objects(sample, parsed.claims)
        values = [
            rules.claim_iou(claim, gold, self.gate_seconds, "within", need_time=not still(sample))
            for claim in parsed.claims
        ]
        right = [value >= RIGHT_AT for value in values if value is not None]
        issues = [] if any(known) else [say.WRONG_OBJECT]
        spans = [
            _span(claim.place, "spatial", value is not None and value >= RIGHT_AT)
            for claim, value, named in zip(parsed.claims, values, known, strict=True)
            if value is not None or not named
        ]
        score = _mean([*scores, _mean([value or 0.0 for value in values])])
        return Finding(score, issues + _some_or_all(right, say.SOME_BOXES, say.ALL_BOXES), spans)


def _logic(sample: Sample, parsed: Parsed, correct: bool) -> Finding:
    """Consistency of reasoning and answer, and of the reasoning's conclusion and objects with the verified facts."""
    if not (parsed.think or "").strip():
        return Finding(0.0, [say.NO_REASONING])
    given = _given(sample.answer, parsed.answer)
    for_given = support(parsed, given) if given else 0.0
    for_gold = max(support(parsed, sample.answer), for_given if correct else 0.0)
    scores = [for_given, for_gold]
    if parsed.claims and sample.evidence.boxes:
        scores.append(_mean(_known_objects(sample, parsed.claims)))
    end = conclusion(parsed)
    stated = end.explicit and end.text and end.bare and sample.answer.type in ("word", "number", "letter")
    spans = [_span(end.span, "logic", for_gold >= RIGHT_AT)] if stated else []
    if given is None:
        issues = []
    elif for_given >= RIGHT_AT:
        issues = [] if correct else [say.CONCLUSION]
    else:
        issues = [say.DRIFTED if for_gold >= RIGHT_AT and not correct else say.UNSUPPORTED]
    return Finding(_mean(scores), issues, spans)


def _given(gold: Answer, text: str | None) -> Answer | None:
    """The rollout's answer as an answer of the same type; None where it cannot be read."""
    if text is None:
        return None
    readers = {"number": parse_number, "window": parse_window, "box": parse_box, "word": normalise, "text": normalise}
    value = parse_letter(text, gold.options) if gold.type == "letter" else readers[gold.type](text)
    return replace(gold, value=cast(str, value)) if value not in (None, "") else None


def _answer_issues(gold: Answer, text: str, correct: bool) -> list[str]:
    """What is wrong with a readable answer, by its type."""
    if gold.type == "window":
        return _window_issues(cast(Window, parse_window(text)), cast(Window, gold.value))
    if correct:
        return []
    if gold.type == "number":
        return [say.NUMBER_HIGH if cast(float, parse_number(text)) > cast(float, gold.value) else say.NUMBER_LOW]
    if gold.type == "box":
        return [_box_issue(cast(XYXY, parse_box(text)), cast(XYXY, gold.value))]
    if gold.type == "text":
        shorter = len(normalise(text).split()) < len(normalise(cast(str, gold.value)).split())
        return [say.TEXT_LITTLE if shorter else say.TEXT_MUCH]
    return []


def _window_issues(given: Window, gold: Window) -> list[str]:
    if given[0] > gold[1] or given[1] < gold[0]:
        return [say.WINDOW_MISSES]
    slack = EDGE_SHARE * (max(given[1], gold[1]) - min(given[0], gold[0]))
    issues = []
    if abs(given[0] - gold[0]) > slack:
        issues.append(say.STARTS_EARLY if given[0] < gold[0] else say.STARTS_LATE)
    if abs(given[1] - gold[1]) > slack:
        issues.append(say.ENDS_EARLY if given[1] < gold[1] else say.ENDS_LATE)
    return issues


def _box_issue(given: XYXY, gold: XYXY) -> str:
    if rules.box_iou(given, gold) == 0:
        return say.BOX_MISSES
    ratio = _area(given) / _area(gold)
    if ratio > SIZE_RATIO:
        return say.BOX_LARGE
    return say.BOX_SMALL if ratio < 1 / SIZE_RATIO else say.BOX_OFF


def _area(box: XYXY) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _answer_iou(gold: Answer, parsed: Parsed) -> list[float]:
    return [rules.accuracy(gold, parsed.answer)]


def _known_objects(sample: Sample, claims: Sequence[Claim]) -> list[bool]:
    """Whether each claim names an object of the evidence."""
    golds = {box.name for box in sample.evidence.boxes}
    names = {claim.name for claim in claims}
    known = {name: any(rules.name_matches(name, gold, "within") for gold in golds) for name in names}
    return [known[claim.name] for claim in claims]


def _whole_times(parsed: Parsed) -> list[tuple[int, int]]:
    """The spans of the times, those of claims widened to `at<t>..</t>s`."""
    inside = {position: claim.time for claim in parsed.claims if claim.time for position in range(*claim.time)}
    return [inside.get(start, (start, end)) for start, end in parsed.time_spans]


def _some_or_all(right: Sequence[bool], some: str, every: str) -> list[str]:
    if all(right):
        return []
    return [some if any(right) else every]


def _span(span: tuple[int, int], dimension: str, right: bool) -> Span:
    verdict: Literal["right", "wrong"] = "right" if right else "wrong"
    return Span(*span, dimension, verdict)


def _mean(values: Iterable[float]) -> float:
    items = list(values)
    return sum(items) / len(items)
