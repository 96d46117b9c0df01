"""Golden positions: the rules of `docs/architecture.md` worked out token by token, by nothing that visd computes with.

    python -m tests.golden_positions

writes `tests/data/positions`, one file a rule. Each token is counted by itself, in whole numbers and exact fractions
(`Fraction`), as one would on paper; neither visd nor transformers nor torch is imported. Rules:

* text: one position a token, the same for time, height and width;
* image or video: height and width count merged patches from where it starts, and time is, for temporal cell k of a video
  whose cells last s seconds, the whole part of k * s * `TOKENS_PER_SECOND` later than where it starts;
* Qwen2.5-VL, rule `vllm`: what follows starts one after the largest position so far;
* Qwen2.5-VL, rule `transformers`: what follows starts after as many positions as the medium is wide or high, if that is
  more. `transformers_whole_seconds` is what transformers 5.16 does: the same with the fraction of s cut off. visd does not
  offer it;
* Qwen3-VL: each temporal cell is an image with text before it (its time and an opening token) and after it (a closing
  token); the times are the mean of the cell's first and last frame.

`qwen2_5_vl_differences.json` names what the other rules do differently from `vllm`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "positions"
MERGE = 2  # patches along a side that become one token
CELL_FRAMES = 2  # frames of a temporal cell
TOKENS_PER_SECOND = 2
STAMP, CLOSE = 4, 1  # text tokens before and after each cell of Qwen3-VL; a tokenizer may need others
RATES = ("0.5", "1", "2", "4", "23.976")
QWEN2_5_VL_RULES = ("vllm", "transformers", "transformers_whole_seconds")


@dataclass(frozen=True)
class Part:
    """Text tokens, or a medium."""

    kind: str  # text, image, video
    text: int = 0  # tokens
    grid: tuple[int, int, int] = (0, 0, 0)  # cells, patch rows, patch columns
    fps: str = ""  # sampled frames a second, decimal

    @property
    def cell_seconds(self) -> Fraction:
        return CELL_FRAMES / Fraction(self.fps)


@dataclass(frozen=True)
class Case:
    """One prompt's layout."""

    name: str
    parts: tuple[Part, ...]


def text(tokens: int) -> Part:
    return Part("text", text=tokens)


def image(rows: int, columns: int) -> Part:
    return Part("image", grid=(1, rows, columns))


def video(cells: int, rows: int, columns: int, fps: str) -> Part:
    return Part("video", grid=(cells, rows, columns), fps=fps)


def cases() -> list[Case]:
    found = [Case(f"{name}, {fps} fps", parts) for fps in RATES for name, parts in layouts(fps).items()]
    mixed = (text(1), video(4, 4, 4, "4"), text(2), video(4, 4, 4, "0.5"), text(2))
    return [*found, Case("two rates", mixed), Case("image alone", (text(2), image(4, 8), text(2)))]


def layouts(fps: str) -> dict[str, tuple[Part, ...]]:
    return {
        "text around": (text(3), video(6, 4, 6, fps), text(3)),
        "video first": (video(3, 8, 4, fps), text(2)),
        "video last": (text(2), video(13, 2, 2, fps)),
        "text between two videos": (text(1), video(5, 4, 8, fps), text(2), video(2, 12, 4, fps), text(3)),
        "image before video": (text(2), image(6, 10), text(1), video(7, 4, 4, fps), text(2)),
        "image between two videos": (video(4, 4, 4, fps), image(4, 8), video(3, 2, 6, fps), text(2)),
    }


class Sheet:
    """Rows of positions, one token after another."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []
        self.next = 0  # where what follows starts

    def write_text(self, tokens: int) -> None:
        for _ in range(tokens):
            self.rows.append((self.next, self.next, self.next))
            self.next += 1

    def write_medium(self, times: list[int], rows: int, columns: int) -> None:
        """`times`: of each cell, in positions after the start. Leaves `next` where it was."""
        for time in times:
            for row in range(rows // MERGE):
                for column in range(columns // MERGE):
                    self.rows.append((self.next + time, self.next + row, self.next + column))


def qwen2_5_vl(case: Case, rule: str) -> Sheet:
    sheet = Sheet()
    for part in case.parts:
        if part.kind == "text":
            sheet.write_text(part.text)
            continue
        cells, rows, columns = part.grid
        seconds = part.cell_seconds if part.kind == "video" else Fraction(0)
        if rule == "transformers_whole_seconds":
            seconds = Fraction(int(seconds))
        sheet.write_medium([int(k * seconds * TOKENS_PER_SECOND) for k in range(cells)], rows, columns)
        if rule == "vllm":
            sheet.next = max(max(row) for row in sheet.rows) + 1
        else:
            sheet.next += max(rows, columns) // MERGE
    return sheet


def qwen3_vl(case: Case) -> Sheet:
    sheet = Sheet()
    for part in case.parts:
        if part.kind == "text":
            sheet.write_text(part.text)
            continue
        cells, rows, columns = part.grid
        for _ in range(cells):
            if part.kind == "video":
                sheet.write_text(STAMP)
            sheet.write_medium([0], rows, columns)
            sheet.next += max(rows, columns) // MERGE
            if part.kind == "video":
                sheet.write_text(CLOSE)
    return sheet


def stamps(part: Part) -> list[str]:
    """What Qwen3-VL reads before each cell of a video whose frame k is shown at k / fps seconds."""
    half = CELL_FRAMES - 1
    middles = [(k * CELL_FRAMES + Fraction(half, 2)) / Fraction(part.fps) for k in range(part.grid[0])]
    return [f"<{float(middle):.1f} seconds>" for middle in middles]


Rows = Sequence[Sequence[int]]
"""[P, 3]: time, height, width of each token."""


def differences(case: Case, one: Rows, other: Rows) -> list[str]:
    """Where two positions of a Qwen2.5-VL prompt part, a name for each place.

    A part of the prompt that only starts elsewhere is named by that; what differs inside it, seen from its start, by the
    axis.
    """
    named, token = [], 0
    for number, part in enumerate(case.parts):
        cells, rows, columns = part.grid
        end = token + (part.text or cells * rows * columns // MERGE**2)
        (first, *_), (second, *_) = ours, theirs = one[token:end], other[token:end]
        if list(first) != list(second):
            named.append(f"part {number} ({part.kind}) starts at {second[0]}, not {first[0]}")
        for axis, name in enumerate(("time", "height", "width")):
            if [row[axis] - first[axis] for row in ours] != [row[axis] - second[axis] for row in theirs]:
                named.append(f"part {number} ({part.kind}) differs in {name}")
        token = end
    return named


def written(case: Case, sheet: Sheet, **more: Any) -> dict[str, Any]:
    time, height, width = (" ".join(str(row[axis]) for row in sheet.rows) for axis in range(3))
    layout = [_plain(part) for part in case.parts]
    return {"name": case.name, "layout": layout, **more, "time": time, "height": height, "width": width}


def _plain(part: Part) -> str:
    if part.kind == "text":
        return f"{part.text} text"
    grid = "x".join(map(str, part.grid))
    return f"video {grid} at {part.fps} fps" if part.kind == "video" else f"image {grid}"


def files() -> dict[str, str]:
    """Text of each file by its name."""
    found = {
        f"qwen2_5_vl_{rule}.json": [written(case, qwen2_5_vl(case, rule)) for case in cases()]
        for rule in QWEN2_5_VL_RULES
    }
    found["qwen3_vl.json"] = [
        written(case, qwen3_vl(case), stamps=[stamps(part) for part in case.parts if part.kind == "video"])
        for case in cases()
    ]
    found["qwen2_5_vl_differences.json"] = [
        {
            "name": case.name,
            **{
                rule: differences(case, qwen2_5_vl(case, "vllm").rows, qwen2_5_vl(case, rule).rows)
                for rule in QWEN2_5_VL_RULES[1:]
            },
        }
        for case in cases()
    ]
    return {name: json.dumps(rows, indent=1) + "\n" for name, rows in found.items()}


@cache
def read(name: str) -> list[dict[str, Any]]:
    """The cases of a committed file."""
    return list(json.loads((FOLDER / f"{name}.json").read_text()))


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content)
