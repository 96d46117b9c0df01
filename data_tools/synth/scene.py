"""What happens in a video: objects on a grid of cells, one state a second.

A frame has a cell for every 28 x 28 pixels: two or three a side.

The world is stated in steps of one second: at step k (from second k to k + 1) an object is in one cell, or nowhere.
The renderer moves objects smoothly in the last quarter of a step, so that at second k an object stands in its cell of
step k exactly.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, TypeVar

import numpy as np

from visd.types import XYXY

COLOURS = {
    "blue": (40, 80, 255),
    "green": (30, 200, 60),
    "purple": (190, 50, 210),
    "red": (230, 40, 40),
    "white": (245, 245, 245),
    "yellow": (240, 220, 40),
}
SHAPES = ("square", "circle", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CELL_PX = 28
SPANS = {2: ((0.05, 0.45), (0.55, 0.95)), 3: ((0.0, 0.3), (0.35, 0.65), (0.7, 1.0))}
"""Where an object begins and ends along a side of two or three cells, as shares of the frame."""
SIZES = {(56, 56): 0.5, (84, 56): 0.2, (56, 84): 0.2, (84, 84): 0.1}
"""Width and height, px, and how often."""
LENGTHS = {3: 0.5, 4: 0.3, 5: 0.2}
"""Seconds, and how often."""
FRAME_RATES = (4, 8, 12)

T = TypeVar("T")
Cell = tuple[int, int]  # column, row
Grid = tuple[int, int]  # columns, rows
Action = Literal["still", "move", "wander", "appear", "vanish", "recolour", "move_recolour", "bounce"]
ACTIONS: tuple[Action, ...] = ("move", "wander", "appear", "vanish", "recolour", "move_recolour")
ACTION_SHARES = (0.36, 0.18, 0.11, 0.11, 0.11, 0.13)


@dataclass(frozen=True)
class Thing:
    """One object over the whole clip."""

    colour: str
    shape: str
    grid: Grid
    cells: tuple[Cell | None, ...]  # one a step; None: not to be seen
    action: Action = "still"
    event: int | None = None  # step at which its first event has happened
    direction: str | None = None  # of its first move
    new_colour: str | None = None
    recoloured_at: int | None = None  # first step in the new colour
    hits: int | None = None  # index of the object it touches at step `event`

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def moves(self) -> bool:
        return self.moved_until() is not None

    def colour_at(self, step: int) -> str:
        recoloured = self.recoloured_at is not None and step >= self.recoloured_at
        return self.new_colour if recoloured and self.new_colour else self.colour

    def moved_until(self) -> int | None:
        """First step at which a move is over."""
        changes = [k for k in range(1, len(self.cells)) if self._changed(k)]
        return changes[-1] if changes else None

    def _changed(self, k: int) -> bool:
        before, now = self.cells[k - 1], self.cells[k]
        return before is not None and now is not None and before != now

    def box(self, step: int) -> XYXY:
        """Box in 0-1 at second `step`; the object must be visible then."""
        cell = self.cells[step]
        assert cell is not None
        return cell_box(cell, self.grid)


@dataclass(frozen=True)
class Scene:
    """A clip before it is drawn."""

    steps: int  # seconds
    things: tuple[Thing, ...]  # in the order of their colours' names
    size: tuple[int, int]  # width, height, px
    fps: int

    def signature(self) -> str:
        """What happens, whatever the clip's size and frame rate."""
        parts = [
            f"{t.name}>{t.new_colour}@{t.recoloured_at}:{''.join(cell_name(c) for c in t.cells)}" for t in self.things
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def visible(self, step: int) -> list[Thing]:
        return [t for t in self.things if t.cells[step] is not None]


def cell_name(cell: Cell | None) -> str:
    """`a1` is the top left cell, `c3` the bottom right one, `-` none."""
    return "-" if cell is None else f"{'abc'[cell[0]]}{cell[1] + 1}"


def cell_box(cell: Cell, grid: Grid) -> XYXY:
    (x1, x2), (y1, y2) = SPANS[grid[0]][cell[0]], SPANS[grid[1]][cell[1]]
    return x1, y1, x2, y2


def pick(rng: np.random.Generator, items: Sequence[T], shares: Sequence[float] | None = None) -> T:
    """One of the items, each as probable as its share; a tenth of the time of numpy's `choice`."""
    if shares is None:
        return items[int(rng.integers(len(items)))]
    return items[min(bisect(list(accumulate(shares)), rng.random()), len(items) - 1)]


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene in which at least one thing happens and no two objects share a cell."""
    steps, size = pick(rng, list(LENGTHS), list(LENGTHS.values())), pick(rng, list(SIZES), list(SIZES.values()))
    grid = (size[0] // CELL_PX, size[1] // CELL_PX)
    count = 2 if grid == (2, 2) else pick(rng, (2, 3))
    while True:
        things = _draw_things(rng, steps, count, grid)
        if _legal(things, steps):
            return Scene(steps, things, size, pick(rng, FRAME_RATES))


def _draw_things(rng: np.random.Generator, steps: int, count: int, grid: Grid) -> tuple[Thing, ...]:
    colours = sorted(list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count])
    spare = [c for c in COLOURS if c not in colours]
    order = rng.permutation(count).tolist()
    things: dict[int, Thing] = {}
    if max(grid) == 3 and rng.random() < 0.2:
        things.update(_bounce(rng, steps, order[0], order[1], colours, grid))
    for place, index in enumerate(order):
        if index in things:
            continue
        action: Action = "still"
        if place < 2 or rng.random() < 0.5:
            action = pick(rng, ACTIONS, ACTION_SHARES)
        things[index] = _thing(rng, steps, colours[index], action, spare, grid)
    return tuple(things[i] for i in range(count))


def _thing(rng: np.random.Generator, steps: int, colour: str, action: Action, spare: list[str], grid: Grid) -> Thing:
    shape = pick(rng, SHAPES)
    start: Cell = (int(rng.integers(grid[0])), int(rng.integers(grid[1])))
    cells: list[Cell | None] = [start] * steps
    event = int(rng.integers(1, steps)) if action != "still" else None
    direction = new_colour = None
    recoloured_at = None
    if action == "appear":
        cells[:event] = [None] * (event or 0)
    elif action == "vanish":
        cells[event:] = [None] * (steps - (event or 0))
    if action in ("recolour", "move_recolour"):
        new_colour, recoloured_at = pick(rng, spare), event
    if action in ("move", "move_recolour"):
        assert event is not None
        direction = pick(rng, list(DIRECTIONS))
        event = int(rng.integers(1, steps)) if action == "move_recolour" else event
        cells = _path(start, direction, event, int(rng.integers(1, 3)), steps)
    if action == "wander":
        assert event is not None
        cells = _wander(rng, start, event, steps, grid)
    if action == "move_recolour":
        assert event is not None and recoloured_at is not None
        return Thing(
            colour, shape, grid, tuple(cells), action, min(event, recoloured_at), direction, new_colour, recoloured_at
        )
    return Thing(colour, shape, grid, tuple(cells), action, event, direction, new_colour, recoloured_at)


def _path(start: Cell, direction: str, first: int, length: int, steps: int) -> list[Cell | None]:
    """Stand at `start`, be one cell further at each step from `first` on, `length` times, then stand still."""
    dx, dy = DIRECTIONS[direction]
    return [
        (start[0] + dx * min(max(k - first + 1, 0), length), start[1] + dy * min(max(k - first + 1, 0), length))
        for k in range(steps)
    ]


def _wander(rng: np.random.Generator, start: Cell, first: int, steps: int, grid: Grid) -> list[Cell | None]:
    """Stand at `start`, then be in a random neighbouring cell at each step from `first` on."""
    cells: list[Cell | None] = [start] * steps
    x, y = start
    for k in range(first, steps):
        ways = [(x + dx, y + dy) for dx, dy in DIRECTIONS.values() if 0 <= x + dx < grid[0] and 0 <= y + dy < grid[1]]
        x, y = pick(rng, ways)
        cells[k] = (x, y)
    return cells


def _bounce(
    rng: np.random.Generator, steps: int, mover: int, target: int, colours: list[str], grid: Grid
) -> dict[int, Thing]:
    """`mover` goes towards `target` across the grid, touches it at the event step and goes back."""
    direction = pick(rng, [name for name, (dx, dy) in DIRECTIONS.items() if grid[0 if dx else 1] == 3])
    dx, dy = DIRECTIONS[direction]
    start: Cell = (1 - dx if dx else int(rng.integers(grid[0])), 1 - dy if dy else int(rng.integers(grid[1])))
    middle: Cell = (start[0] + dx, start[1] + dy)
    end: Cell = (middle[0] + dx, middle[1] + dy)
    event = int(rng.integers(1, steps - 1))
    cells = tuple(middle if k == event else start for k in range(steps))
    return {
        mover: Thing(colours[mover], pick(rng, SHAPES), grid, cells, "bounce", event, direction, hits=target),
        target: Thing(colours[target], pick(rng, SHAPES), grid, (end,) * steps),
    }


def _legal(things: tuple[Thing, ...], steps: int) -> bool:
    """Inside the grid, never two objects in a cell or passing through each other; events at different steps, new colours differ."""
    columns, rows = things[0].grid
    for k in range(steps):
        cells = [cell for t in things if (cell := t.cells[k]) is not None]
        if len(set(cells)) < len(cells) or any(not (0 <= x < columns and 0 <= y < rows) for x, y in cells):
            return False
        for a in things:
            for b in things:
                if k and a is not b and a.cells[k] is not None and a.cells[k] == b.cells[k - 1]:
                    return False
    events = [t.event for t in things if t.event is not None]
    turned = [t.new_colour for t in things if t.new_colour is not None]
    return len(set(events)) == len(events) and len(set(turned)) == len(turned)
