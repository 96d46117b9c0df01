"""Short grounded reasoning traces, one line each (broken here).

    red square blue circle
    0s red a1 blue c2 1s red a1 blue c2 2s red b1 right blue c2
    ; red moves right 1s 2s ; blue stays
    : 2s red b1<obj>red square</obj><box>[0.35,0.05,0.65,0.35]</box>at<t>2.0</t>s moves right 1s 2s so right

First the names of all objects; then what is seen each second, the colour and the cell of every visible object and what has
changed about it; then what each object does; then what the question rests on, and the conclusion. The colour stands right
before its cell, so that a model finds each cell by looking for the colour it has just written; each part can be looked up
in the one before it, so that a conclusion needs no new look at the video.
"""

from __future__ import annotations

from typing import cast

from data_tools.synth.questions import Draft, Sighting, Value, move_steps, third_person
from data_tools.synth.scene import DIRECTIONS, Scene, Thing, cell_name
from visd.data.targets import box_text, time_text
from visd.types import XYXY, Window


def listing(scene: Scene) -> str:
    """What is seen, second by second."""
    parts = []
    for step in range(scene.steps):
        parts.append(f"{step}s")
        for thing in scene.things:
            parts += _seen(thing, step)
    return " ".join(parts)


def _seen(thing: Thing, step: int) -> list[str]:
    """Colour, cell and changes of an object since the second before; nothing for one that is not there."""
    now, before = thing.cells[step], thing.cells[step - 1] if step else thing.cells[0]
    if now is None:
        return [thing.colour_at(step - 1), "gone"] if before is not None else []
    words = [thing.colour_at(step), cell_name(now)]
    if before is None:
        words.append("new")
    elif before != now:
        way = (_sign(now[0] - before[0]), _sign(now[1] - before[1]))
        words += [name for name, direction in DIRECTIONS.items() if direction == way]
    if step and thing.recoloured_at == step:
        words.append("turned")
    if thing.hits is not None and thing.event == step:
        words.append("hits")
    return words


def events(scene: Scene) -> str:
    """What each object does over the whole clip."""
    return "".join(f" ; {thing.colour} {deed(thing, scene)}" for thing in scene.things)


def deed(thing: Thing, scene: Scene) -> str:
    """What an object does, in the words of the questions, with seconds."""
    words = []
    if thing.action in ("move", "move_recolour"):
        first, last = move_steps(thing)
        words += ["moves", str(thing.direction), f"{first - 1}s", f"{last}s"]
    elif thing.action == "bounce" and thing.hits is not None:
        words += ["hits", scene.things[thing.hits].colour, f"{thing.event}s"]
    elif thing.action == "wander":
        words += ["wanders", f"{thing.event}s"]
    elif thing.action in ("appear", "vanish"):
        words += [third_person(thing.action), f"{thing.event}s"]
    if thing.new_colour:
        words += ["turns", thing.new_colour, f"{thing.recoloured_at}s"]
    return " ".join(words) or "stays"


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def place(seen: Sighting) -> str:
    """Second, colour and cell, as in the listing."""
    return f"{seen.step}s {seen.thing.colour_at(seen.step)} {cell_name(seen.thing.cells[seen.step])}"


def claim(seen: Sighting) -> str:
    """An object with its box at a second."""
    return f"<obj>{seen.thing.name}</obj>{box_text(seen.thing.box(seen.step))}at<t>{time_text(seen.step)}</t>s"


def trace(scene: Scene, draft: Draft, conclusion: Value) -> str:
    """The whole reasoning, without the answer tag; all that is seen is right, the conclusion need not be."""
    cited = f" {place(draft.cited)}{claim(draft.cited)} {deed(draft.cited.thing, scene)}" if draft.cited else ""
    names = " ".join(thing.name for thing in scene.things)
    return f"{names} {listing(scene)}{events(scene)} :{draft.noted}{cited} so{_stated(draft, conclusion)}"


def hasty_trace(draft: Draft, guess: Value) -> str:
    """What someone writes who has not looked."""
    return f" so{_stated(draft, guess)}"


def _stated(draft: Draft, conclusion: Value) -> str:
    if draft.type == "window":
        start, end = cast(Window, conclusion)
        return f"<t>{time_text(start)}</t>s to<t>{time_text(end)}</t>s"
    if draft.type == "box":
        return box_text(cast(XYXY, conclusion))
    if draft.type == "number":
        return f" {cast(float, conclusion):g}"
    return f" {cast(str, conclusion)}"
