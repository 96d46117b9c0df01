"""Short problems without media: sums, comparisons, orders of height. Traces work them out step by step."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_tools.synth.samples import MAX_OPTIONS, SOURCE, conclusion, stated, trace_notes
from visd.data.manifest import LETTERS
from visd.types import Answer, AnswerType, Message, Sample

NAMES = ("ann", "bob", "eve", "kim", "max", "tom")
LARGEST = 12


@dataclass(frozen=True)
class Problem:
    """A text problem and how to solve it."""

    family: str
    key: str  # what it is about, whatever the wording
    text: str
    type: AnswerType
    work: str  # the steps, all right
    truth: str | float
    wrong: tuple[str | float, ...]
    choices: tuple[str, ...] = ()  # what a multiple choice may offer

    def signature(self) -> str:
        return hashlib.sha256(f"{self.family}:{self.key}".encode()).hexdigest()


def draw_problem(rng: np.random.Generator) -> Problem:
    """A random problem of a random family."""
    names = list(FAMILIES)
    return FAMILIES[names[int(rng.integers(len(names)))]](rng)


def text_sample(
    problem: Problem,
    rng: np.random.Generator,
    *,
    sample_id: str,
    wrong_share: float,
    hasty_share: float,
    letter_share: float,
) -> Sample:
    """One sample; see `video_sample`. The steps of a trace that has any are right."""
    hasty = hasty_share > 0 and rng.random() < hasty_share
    concluded = conclusion(problem.truth, problem.wrong, rng, None if hasty else wrong_share)
    options: tuple[str, ...] = ()
    if problem.choices and rng.random() < letter_share:
        others = [c for c in problem.choices if c != problem.truth][: MAX_OPTIONS - 1]
        shuffled = [str(problem.truth), *others]
        rng.shuffle(shuffled)
        options = tuple(shuffled)
    careful = _trace(problem, problem.truth)
    rationale = f" {_concluded(concluded)}" if hasty else _trace(problem, concluded)
    value = stated(problem.truth, options)
    text = problem.text + "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Sample(
        id=sample_id,
        source=SOURCE,
        family=problem.family,
        media=(),
        messages=(Message("user", text),),
        answer=Answer("letter" if options else problem.type, value, options),
        rationale=rationale,
        meta=trace_notes(value, stated(concluded, options), rationale, careful),
    )


def _trace(problem: Problem, value: str | float) -> str:
    return f"{problem.work} {_concluded(value)}"


def _concluded(value: str | float) -> str:
    return f"so {value if isinstance(value, str) else f'{value:g}'}"


def _sum(rng: np.random.Generator) -> Problem:
    count = int(rng.integers(2, 5))
    total = int(rng.integers(0, 10))
    terms, work, parts = [total], [], [str(total)]
    for _ in range(count - 1):
        low, high = max(-9, -total), min(9, LARGEST - total)
        term = int(rng.integers(low, high + 1))
        sign = "-" if term < 0 else "+"
        work.append(f" {total} {sign} {abs(term)} = {total + term}")
        parts += [sign, str(abs(term))]
        terms.append(term)
        total += term
    text = f"What is {' '.join(parts)} ?"
    return Problem("sum", " ".join(parts), text, "number", f"compute{' ;'.join(work)}", float(total), _near(total))


def _near(total: int) -> tuple[float, ...]:
    return tuple(float(v) for v in (total - 2, total - 1, total + 1, total + 2) if 0 <= v <= LARGEST)


def _larger(rng: np.random.Generator) -> Problem:
    chosen = rng.choice(NAMES, size=2, replace=False).tolist()
    while True:
        pairs = [(int(a), int(b)) for a, b in rng.integers(0, 7, size=(2, 2))]
        sums = [a + b for a, b in pairs]
        if sums[0] != sums[1]:
            break
    held = " ".join(f"{n} has {a} + {b} ." for n, (a, b) in zip(chosen, pairs, strict=True))
    work = " ;".join(f" {n} {a} + {b} = {a + b}" for n, (a, b) in zip(chosen, pairs, strict=True))
    winner = 0 if sums[0] > sums[1] else 1
    wrong = (chosen[1 - winner],)
    return Problem(
        "larger", held, f"{held} Who has more ?", "word", f"compute{work}", chosen[winner], wrong, tuple(chosen)
    )


def _chain(rng: np.random.Generator) -> tuple[list[str], str]:
    """Names from tall to short, and the shuffled facts that say so."""
    order = rng.choice(NAMES, size=int(rng.integers(3, 5)), replace=False).tolist()
    facts = [f"{a} is taller than {b} ." for a, b in itertools.pairwise(order)]
    rng.shuffle(facts)
    return order, " ".join(facts)


def _extreme(rng: np.random.Generator) -> Problem:
    order, facts = _chain(rng)
    word, truth = ("tallest", order[0]) if rng.random() < 0.5 else ("shortest", order[-1])
    wrong = tuple(n for n in order if n != truth)
    work = f"order {' > '.join(order)}"
    return Problem("extreme", f"{facts} {word}", f"{facts} Who is {word} ?", "word", work, truth, wrong, tuple(order))


def _rank(rng: np.random.Generator) -> Problem:
    order, facts = _chain(rng)
    index = int(rng.integers(len(order)))
    wrong = tuple(float(v) for v in range(len(order)) if v != index)
    text = f"{facts} How many are taller than {order[index]} ?"
    return Problem("rank", f"{facts} {order[index]}", text, "number", f"order {' > '.join(order)}", float(index), wrong)


FAMILIES: dict[str, Callable[[np.random.Generator], Problem]] = {
    "sum": _sum,
    "larger": _larger,
    "extreme": _extreme,
    "rank": _rank,
}
