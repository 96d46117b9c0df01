"""Scenes with questions to samples: open or multiple choice, right or wrong traces, full evidence."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np

from data_tools.synth.questions import FAMILIES, Draft, Value
from data_tools.synth.scene import Scene
from data_tools.synth.trace import hasty_trace, trace
from visd.data.manifest import LETTERS
from visd.types import Answer, Box, Evidence, Media, Message, Sample

SOURCE = "synth"
MAX_OPTIONS = 4
T = TypeVar("T")


def choose_drafts(scene: Scene, rng: np.random.Generator, count: int) -> list[Draft]:
    """At most `count` different questions; the families take turns, so that none dominates."""
    piles = {name: list(family(scene)) for name, family in FAMILIES.items()}
    for pile in piles.values():
        rng.shuffle(pile)
    chosen: list[Draft] = []
    while len(chosen) < count and any(piles.values()):
        names = [name for name, pile in piles.items() if pile]
        for index in rng.permutation(len(names)).tolist():
            chosen.append(piles[names[index]].pop())
    return chosen[:count]


def video_sample(
    scene: Scene,
    draft: Draft,
    rng: np.random.Generator,
    *,
    sample_id: str,
    path: str,
    wrong_share: float,
    hasty_share: float,
    letter_share: float,
) -> Sample:
    """One sample of a video.

    Args:
        path: of the video, relative to the data root.
        wrong_share: share of traces whose conclusion is wrong.
        hasty_share: share of traces that do not look and conclude a guess.
        letter_share: share of multiple-choice questions among those that can be asked so.
    """
    hasty = hasty_share > 0 and rng.random() < hasty_share
    concluded = conclusion(draft.truth, draft.wrong, rng, None if hasty else wrong_share)
    careful = trace(scene, draft, draft.truth)
    options = _options(draft, rng) if draft.choices and rng.random() < letter_share else ()
    value = stated(draft.truth, options)
    rationale = hasty_trace(draft, concluded) if hasty else trace(scene, draft, concluded)
    said = trace_notes(value, stated(concluded, options), rationale, careful)
    text = draft.text + "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Sample(
        id=sample_id,
        source=SOURCE,
        family=draft.family,
        media=(Media("video", path),),
        messages=(Message("user", f"<video>\n{text}"),),
        answer=Answer("letter" if options else draft.type, value, options),
        evidence=_evidence(draft),
        rationale=rationale,
        meta={"duration": float(scene.steps), "size": list(scene.size), "fps": scene.fps, **said},
    )


def conclusion(truth: T, wrong: tuple[T, ...], rng: np.random.Generator, wrong_share: float | None) -> T:
    """What a trace concludes: something wrong in `wrong_share` of the cases; None: a guess among all."""
    if wrong_share is None:
        return (truth, *wrong)[int(rng.integers(1 + len(wrong)))]
    return wrong[int(rng.integers(len(wrong)))] if wrong and rng.random() < wrong_share else truth


def _options(draft: Draft, rng: np.random.Generator) -> tuple[str, ...]:
    """The truth, the traces' wrong conclusions and others, shuffled."""
    wrong = list(dict.fromkeys(cast(str, value) for value in draft.wrong))
    more = [c for c in draft.choices if c != draft.truth and c not in wrong]
    rng.shuffle(more)
    options = [cast(str, draft.truth), *wrong, *more][:MAX_OPTIONS]
    rng.shuffle(options)
    return tuple(options)


def stated(value: Value, options: tuple[str, ...]) -> Value:
    """A value, or the letter it has among the options."""
    return LETTERS[options.index(cast(str, value))] if options else value


def trace_notes(truth: Value, concluded: Value, rationale: str, careful: str) -> dict[str, Any]:
    """What `meta` says about a trace that concludes something wrong or is not the careful one."""
    notes: dict[str, Any] = {}
    if concluded != truth:
        notes["trace_answer"] = list(concluded) if isinstance(concluded, tuple) else concluded
    if rationale != careful:
        notes["verified_rationale"] = careful
    return notes


def _evidence(draft: Draft) -> Evidence:
    boxes = tuple(Box(float(s.step), s.thing.name, s.thing.box(s.step)) for s in draft.seen)
    return Evidence((draft.window,), tuple(sorted({b.t for b in boxes})), boxes)
