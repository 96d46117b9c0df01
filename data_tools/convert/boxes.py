"""Three ways in which public data write boxes, told apart over a whole file, and their way to 0-1.

    unit      0-1 of width and height
    thousand  0-1000 of width and height
    pixels    of the original image; needs its size

One box alone often fits several: [10, 20, 300, 400] may be pixels or thousandths. So the convention is found on the
first rows of a file, must fit all of them, and is refused if two still fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from visd.types import XYXY, VisdError

CONVENTIONS = ("unit", "thousand", "pixels")
SLACK = 0.02
"""Share of a side by which a box may stand out and is cut back; annotators draw over the edge."""

Size = tuple[int, int]
"""Width and height, pixels."""


class BadBox(VisdError):
    """A box that cannot be read."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def to_unit(values: Sequence[float], convention: str, size: Size | None) -> tuple[XYXY, bool]:
    """x1, y1, x2, y2 in 0-1, and whether the box was cut back to the frame.

    Raises:
        BadBox: no four numbers, no size for pixels, far outside the frame, or no area.
    """
    if len(values) != 4 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        raise BadBox("box_shape", f"{list(values)} is no box of four numbers")
    if convention == "pixels":
        if size is None:
            raise BadBox("box_size", "boxes in pixels need the size of the image; give --root, so that it can be read")
        scale = (size[0], size[1], size[0], size[1])
    else:
        scale = (1000,) * 4 if convention == "thousand" else (1,) * 4
    box = [value / side for value, side in zip(values, scale, strict=True)]
    if min(box) < -SLACK or max(box) > 1 + SLACK:
        raise BadBox("box_outside", f"{list(values)} lies outside the frame as {convention}, size {size}")
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in box)
    if x1 >= x2 or y1 >= y2:
        raise BadBox("box_empty", f"{list(values)} has no area; corners are x1, y1, x2, y2")
    return (x1, y1, x2, y2), [x1, y1, x2, y2] != box


def from_unit(box: XYXY, size: Size) -> list[float]:
    """Pixels of an image of a size."""
    return [value * side for value, side in zip(box, (*size, *size), strict=True)]


@dataclass
class BoxReader:
    """Reads the boxes of one file."""

    convention: str = ""  # empty: still to be found
    size_of: Callable[[str], Size | None] = lambda path: None  # of a media file, where a row does not say it
    seen: int = 0
    cut: int = 0  # boxes cut back to the frame
    first: dict[str, str] = field(default_factory=dict)  # convention -> the first box that does not fit it

    def read(self, values: Sequence[float], size: Size | None, path: str = "", convention: str = "") -> XYXY:
        """A box in 0-1.

        Args:
            size: of the image that the box is drawn on; None: that of the file at `path`.
            convention: of this box, where the row says it.

        Raises:
            BadBox: see `to_unit`.
        """
        chosen = convention or self.convention
        if chosen != "unit" and size is None and path:
            size = self.size_of(path)
        self.seen += 1
        if not chosen:
            self._learn(values, size)
            return (0.0, 0.0, 1.0, 1.0)
        box, cut = to_unit(values, chosen, size)
        self.cut += cut
        return box

    def _learn(self, values: Sequence[float], size: Size | None) -> None:
        for name in CONVENTIONS:
            try:
                to_unit(values, name, size)
            except BadBox as error:
                # Without area, or of pixels without a size, it says nothing about the convention.
                if error.reason == "box_outside":
                    self.first.setdefault(name, str(list(values)))

    def found(self, documented: str = "") -> str:
        """The convention that fits all boxes seen; `documented` where several do, or there was none.

        Raises:
            VisdError: no convention fits, the documented one does not, or several do.
        """
        fits = [name for name in CONVENTIONS if name not in self.first]
        if documented:
            if documented in fits:
                return documented
            raise VisdError(
                f"boxes of this format are {documented}, but {self.first[documented]} is not; give --boxes "
                f"{' or '.join(fits) or 'and correct the file'}"
            )
        if "unit" in fits:
            return "unit"  # pixels and thousandths that all lie in 0-1 would be boxes of no size
        if len(fits) == 1:
            return fits[0]
        if not fits:
            raise VisdError(f"boxes follow several conventions: {self.first}; convert the sources apart with --boxes")
        raise VisdError(f"boxes may be {' or '.join(fits)}; say which with --boxes")
