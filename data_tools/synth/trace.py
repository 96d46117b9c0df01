"""Short grounded reasoning traces.

    0s red a1 blue c2 1s red a1 blue c2 2s red b1 right blue c2<obj>red square</obj><box>[0.35,0.05,0.65,0.35]</box>at<t>2.0</t>s so right

First what is seen: each second the colour and the cell of every visible object, and what has changed about it. Then one
sighting, then the conclusion. The colour stands right before its cell, so that a model finds each cell by looking for the
colour it has just written; changes are named where they are seen, so that a conclusion is a matter of looking them up.
"""

from __future__ import annotations

from typing import cast

from data_tools.synth.questions import Conclusion, Draft, Sighting
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


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def claim(seen: Sighting, box: XYXY | None = None) -> str:
    """An object with its box at a second."""
    place = box_text(box or seen.thing.box(seen.step))
    return f"<obj>{seen.thing.name}</obj>{place}at<t>{time_text(seen.step)}</t>s"


def trace(scene: Scene, draft: Draft, conclusion: Conclusion) -> str:
    """The whole reasoning, without the answer tag."""
    seen, sighting = listing(scene), conclusion.seen
    if draft.type == "box":
        assert sighting is not None
        return seen + claim(sighting, cast(XYXY, conclusion.value))
    return f"{seen}{claim(sighting) if sighting else ''} so{_stated(draft, conclusion)}"


def _stated(draft: Draft, conclusion: Conclusion) -> str:
    if draft.type == "window":
        start, end = cast(Window, conclusion.value)
        return f"<t>{time_text(start)}</t>s to<t>{time_text(end)}</t>s"
    if draft.type == "number":
        return f" {cast(float, conclusion.value):g}"
    return f" {cast(str, conclusion.value)}"
