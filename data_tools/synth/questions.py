"""Questions about a scene, with their answers, evidence and plausible wrong conclusions.

Each `_family` function lists every question of its family that the scene answers without ambiguity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_tools.synth.scene import COLOURS, DIRECTIONS, SHAPES, Scene, Thing
from visd.types import XYXY, AnswerType, Window

Value = str | float | Window | XYXY


@dataclass(frozen=True)
class Sighting:
    """An object at a second."""

    thing: Thing
    step: int


@dataclass(frozen=True)
class Draft:
    """A question before it is worded as open or multiple choice."""

    family: str
    text: str
    type: AnswerType
    truth: Value
    wrong: tuple[Value, ...]  # what a careless annotator might conclude
    window: Window  # s, where the answer is to be seen
    seen: tuple[Sighting, ...]  # all sightings that prove the answer
    cited: Sighting | None  # the sighting that a trace rests its conclusion on
    choices: tuple[str, ...] = ()  # what a multiple choice may offer; empty: stays open
    noted: str = ""  # what a trace writes down to compare or to count before it concludes


def drafts(scene: Scene) -> list[Draft]:
    """Every question of every family."""
    return [draft for family in FAMILIES.values() for draft in family(scene)]


def event_phrase(thing: Thing, scene: Scene) -> str | None:
    """What the object does first, as a verb phrase; None where it does nothing or two things."""
    if thing.action == "bounce" and thing.hits is not None:
        return f"hit the {scene.things[thing.hits].name}"
    if thing.action == "recolour":
        return f"turn {thing.new_colour}"
    return {"move": "move", "appear": "appear", "vanish": "vanish"}.get(thing.action)


def third_person(phrase: str) -> str:
    """`turn green` to `turns green`."""
    verb, _, rest = phrase.partition(" ")
    ending = "es" if verb == "vanish" else "s"
    return f"{verb}{ending} {rest}".rstrip()


def proof(thing: Thing) -> Sighting:
    """The sighting that shows an object's event: just after it, or just before it vanished."""
    assert thing.event is not None
    return near(thing, thing.event - 1 if thing.action == "vanish" else thing.event)


def near(thing: Thing, step: int) -> Sighting:
    """The object at the step nearest to `step` at which it is visible."""
    steps = [k for k, cell in enumerate(thing.cells) if cell is not None]
    return Sighting(thing, min(steps, key=lambda k: (abs(k - step), k)))


def _span(thing: Thing) -> Window:
    """Whole seconds around an object's first event."""
    assert thing.event is not None
    return float(thing.event - 1), float(min(thing.event + 1, len(thing.cells)))


def _unique(things: list[Thing], phrase: str, scene: Scene) -> bool:
    return sum(event_phrase(t, scene) == phrase for t in things) == 1


def _described(scene: Scene) -> Iterator[tuple[Thing, str]]:
    """Objects that one event alone describes, with that event."""
    movers = sum(t.moves for t in scene.things)
    for thing in scene.things:
        phrase = event_phrase(thing, scene)
        if phrase and _unique(list(scene.things), phrase, scene) and (phrase != "move" or movers == 1):
            yield thing, phrase


def _which(scene: Scene) -> Iterator[Draft]:
    if len({t.name for t in scene.things}) < 2:
        return
    for thing, phrase in _described(scene):
        wrong = tuple(t.colour for t in scene.things if t is not thing)
        what = f"What colour is the object that {third_person(phrase)}?"
        if phrase.startswith("turn"):
            what = f"What colour was the object that {third_person(phrase)} at first?"
        seen = proof(thing)
        yield Draft("which", what, "word", thing.colour, wrong, _span(thing), (seen,), seen, tuple(COLOURS))


def _direction(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        if thing.direction and thing.action in ("move", "move_recolour"):
            first, last = move_steps(thing)
            seen = (Sighting(thing, first - 1), Sighting(thing, last))
            wrong = tuple(d for d in DIRECTIONS if d != thing.direction)
            text = f"Which way does the {thing.name} move?"
            window = (float(first - 1), float(last))
            yield Draft("direction", text, "word", thing.direction, wrong, window, seen, seen[1], tuple(DIRECTIONS))


def _when_time(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        phrase = event_phrase(thing, scene)
        if phrase in (None, "move") or thing.event is None:
            continue
        wrong = tuple(float(k) for k in range(1, scene.steps) if k != thing.event)
        text, seen = f"At what second does the {thing.name} {phrase}?", proof(thing)
        yield Draft("when_time", text, "number", float(thing.event), wrong, _span(thing), (seen,), seen)


def _when_window(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        span = _asked_span(thing, scene.steps)
        if span is None:
            continue
        text, (start, end) = span
        window = (float(start), float(end))
        seen = (near(thing, start), near(thing, end - 1))
        wrong = tuple(_other_windows(window, scene.steps))
        yield Draft("when_window", text, "window", window, wrong, window, seen, seen[0])


def _other_windows(window: Window, steps: int) -> list[Window]:
    """Windows of whole seconds that overlap too little with the true one to pass for it."""
    found = []
    for start in range(steps):
        for end in range(start + 1, steps + 1):
            shared = max(0.0, min(end, window[1]) - max(start, window[0]))
            if shared / (max(end, window[1]) - min(start, window[0])) < 0.5:
                found.append((float(start), float(end)))
    return found


def _asked_span(thing: Thing, steps: int) -> tuple[str, tuple[int, int]] | None:
    """A question about a span of whole seconds, and the span."""
    if thing.action in ("appear", "vanish") and thing.event is not None:
        span = (thing.event, steps) if thing.action == "appear" else (0, thing.event)
        return f"From when to when is the {thing.name} visible?", span
    if thing.action == "recolour" and thing.event is not None:
        return f"From when to when is the {thing.name} {thing.new_colour}?", (thing.event, steps)
    if thing.action == "move":
        first, last = move_steps(thing)
        return f"In which whole seconds does the {thing.name} move?", (first - 1, last)
    return None


def move_steps(thing: Thing) -> tuple[int, int]:
    """First step in a new cell and first step at rest in the last one."""
    last = thing.moved_until()
    assert last is not None
    first = next(k for k in range(1, len(thing.cells)) if thing.cells[k] != thing.cells[k - 1])
    return first, last


def _where(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        for step in range(scene.steps):
            if thing.cells[step] is None:
                continue
            text, seen = f"Where is the {thing.name} at second {step}?", Sighting(thing, step)
            window = (float(step), float(step + 1))
            yield Draft("where", text, "box", thing.box(step), _other_boxes(scene, seen), window, (seen,), seen)


def _other_boxes(scene: Scene, seen: Sighting) -> tuple[XYXY, ...]:
    """Where any object is at some second, except where this one is now."""
    boxes = {t.box(k) for t in scene.things for k in range(scene.steps) if t.cells[k] is not None}
    return tuple(sorted(boxes - {seen.thing.box(seen.step)}))


def _count(scene: Scene) -> Iterator[Draft]:
    whole = (0.0, float(scene.steps))
    movers = [t for t in scene.things if t.moves]
    yield _counted(scene, "How many objects move?", [proof(t) for t in movers], whole)
    for step in range(scene.steps):
        seen = [Sighting(t, step) for t in scene.visible(step)]
        yield _counted(scene, f"How many objects are visible at second {step}?", seen, (float(step), float(step + 1)))


def _counted(scene: Scene, text: str, seen: list[Sighting], window: Window) -> Draft:
    wrong = tuple(float(n) for n in range(len(scene.things) + 1) if abs(n - len(seen)) == 1)
    shown = tuple(seen) or tuple(near(t, 0) for t in scene.things)
    noted = "".join(f" {sighting.thing.colour}" for sighting in seen)
    return Draft("count", text, "number", float(len(seen)), wrong, window, shown, None, noted=f" count{noted}")


def _order(scene: Scene) -> Iterator[Draft]:
    active = [t for t in scene.things if t.event is not None]
    for a in active:
        for b in active:
            if a is b or a.event is None or b.event is None or (a.hits is not None and scene.things[a.hits] is b):
                continue
            first, second = (a, b) if a.event < b.event else (b, a)
            text = f"Which changes first, the {a.name} or the {b.name}?"
            window = (float(first.event or 0) - 1, float(second.event or 0))
            seen, colours = (proof(first), proof(second)), (a.colour, b.colour)
            noted = f" {a.colour} {a.event}s {b.colour} {b.event}s"
            yield Draft("order", text, "word", first.colour, (second.colour,), window, seen, seen[0], colours, noted)


def _two_facts(scene: Scene) -> Iterator[Draft]:
    yield from _turning_mover(scene)
    yield from _shape_of_event(scene)
    yield from _place_at_event(scene)


def _turning_mover(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        turns = sum(t.new_colour == thing.new_colour for t in scene.things)
        if thing.action != "move_recolour" or turns > 1 or thing.direction is None:
            continue
        first, last = move_steps(thing)
        seen = (near(thing, thing.recoloured_at or 0), Sighting(thing, last))
        wrong = tuple(d for d in DIRECTIONS if d != thing.direction)
        text = f"Which way does the object that turns {thing.new_colour} move?"
        window = (float(min(first, thing.recoloured_at or first) - 1), float(max(last, thing.recoloured_at or last)))
        yield Draft("two_facts", text, "word", thing.direction, wrong, window, seen, seen[1], tuple(DIRECTIONS))


def _shape_of_event(scene: Scene) -> Iterator[Draft]:
    for thing, phrase in _described(scene):
        wrong = tuple(sorted({t.shape for t in scene.things} - {thing.shape}))
        if wrong:
            text, seen = f"What shape is the object that {third_person(phrase)}?", proof(thing)
            yield Draft("two_facts", text, "word", thing.shape, wrong, _span(thing), (seen,), seen, SHAPES)


def _place_at_event(scene: Scene) -> Iterator[Draft]:
    for actor, phrase in _described(scene):
        if actor.action not in ("appear", "vanish", "recolour") or actor.event is None:
            continue
        for thing in scene.things:
            if thing is actor or thing.cells[actor.event] is None:
                continue
            seen = Sighting(thing, actor.event)
            text = f"Where is the {thing.name} when the {actor.name} {third_person(phrase)}?"
            box, wrong = thing.box(actor.event), _other_boxes(scene, seen)
            yield Draft("two_facts", text, "box", box, wrong, _span(actor), (seen, proof(actor)), seen)


FAMILIES: dict[str, Callable[[Scene], Iterator[Draft]]] = {
    "which": _which,
    "direction": _direction,
    "when_time": _when_time,
    "when_window": _when_window,
    "where": _where,
    "count": _count,
    "order": _order,
    "two_facts": _two_facts,
}
