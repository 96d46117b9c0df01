"""Scenes to H.264 files."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from data_tools.synth.scene import CELL_PX, COLOURS, DIRECTIONS, Scene, Thing, cell_box
from visd.types import XYXY

MOVING_SHARE = 0.15
"""Share of a step, at its end, in which an object travels to its next cell."""
CONTACT_SHARE = 0.5
"""Share of a step, at its start, in which a bouncing object closes the gap to what it hits and opens it again."""
GAP = 0.05
"""Gap between objects in neighbouring cells of a side of three, as a share of the frame."""
DARKEST = 10.0
"""Grey level of the top left corner at second 0: the same everywhere, or place and time could not be told apart from it."""
LIGHT = 44.0
"""How much brighter the background's red gets a cell to the right, and its green a cell down, whatever the frame's size."""
DAWN = 18.0
"""How much brighter the background's blue gets a second. Together the three colours tell place and time in any patch."""
SUPERSAMPLE = 3
TO_YUV = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
OFFSET = np.array([16.0, 128.0, 128.0])
ENCODER = {
    "preset": "veryfast",
    "crf": "16",
    "threads": "1",
    "g": "24",
    "bf": "0",
    "x264-params": "scenecut=0:sync-lookahead=0",
}


def frames(scene: Scene) -> list[np.ndarray]:
    """All frames of a scene, uint8 [height, width, 3], `fps` of them a second."""
    times = [number / scene.fps for number in range(scene.steps * scene.fps)]
    return [_frame(scene, t) for t in times]


def write_video(scene: Scene, path: Path) -> None:
    """Encode a scene; the file appears whole or not at all, and the same scene gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=scene.fps, options=ENCODER)
        stream.width, stream.height = scene.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in _yuv420p(np.stack(frames(scene))):
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="yuv420p")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    os.replace(partial, path)


def _yuv420p(rgb: np.ndarray) -> np.ndarray:
    """BT.601, limited range, [frames, height * 3 / 2, width]: written out, so that bytes do not depend on a converter's."""
    count, height, width, _ = rgb.shape
    y, u, v = np.moveaxis(rgb @ TO_YUV.T + OFFSET, -1, 0)
    size = (count, height // 2, 2, width // 2, 2)
    planes = [y, *(p.reshape(size).mean(axis=(2, 4)).reshape(count, -1, width) for p in (u, v))]
    return np.rint(np.concatenate(planes, axis=1)).astype(np.uint8)


State = tuple[str, str, XYXY] | None  # colour, shape, box; None: not to be seen


def _state(thing: Thing, t: float) -> State:
    step = int(t + 1e-9)
    cell = thing.cells[step]
    if cell is None:
        return None
    box = cell_box(cell, thing.grid)
    following = thing.cells[step + 1] if step + 1 < len(thing.cells) else cell
    share = max(0.0, (t - step - (1 - MOVING_SHARE)) / MOVING_SHARE)
    if following is not None and share > 0:
        target = cell_box(following, thing.grid)
        box = _moved(box, (target[0] - box[0]) * share, (target[1] - box[1]) * share)
    if thing.hits is not None and step == thing.event and t - step < CONTACT_SHARE and thing.direction is not None:
        reach = GAP * np.sin(np.pi * (t - step) / CONTACT_SHARE)
        dx, dy = DIRECTIONS[thing.direction]
        box = _moved(box, dx * reach, dy * reach)
    return thing.colour_at(step), thing.shape, box


def _moved(box: XYXY, dx: float, dy: float) -> XYXY:
    return round(box[0] + dx, 4), round(box[1] + dy, 4), round(box[2] + dx, 4), round(box[3] + dy, 4)


def _frame(scene: Scene, t: float) -> np.ndarray:
    width, height = scene.size
    image = np.full((height, width, 3), DARKEST)
    u, v = _subpixels(width), _subpixels(height)
    image[..., 0] += LIGHT * width / CELL_PX * u[None, ::SUPERSAMPLE]
    image[..., 1] += LIGHT * height / CELL_PX * v[::SUPERSAMPLE, None]
    image[..., 2] += DAWN * t
    for thing in scene.things:
        state = _state(thing, t)
        if state is not None:
            colour, shape, box = state
            rows, columns, cover = _cover(shape, box, width, height)
            image[rows, columns] = image[rows, columns] * (1 - cover) + np.array(COLOURS[colour], dtype=float) * cover
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _subpixels(pixels: int) -> np.ndarray:
    """Centres of the supersampled points along a side, 0-1."""
    return (np.arange(pixels * SUPERSAMPLE) + 0.5) / (pixels * SUPERSAMPLE)


@lru_cache(4096)  # most of the time objects stand still, in one of few cells
def _cover(shape: str, box: XYXY, width: int, height: int) -> tuple[slice, slice, np.ndarray]:
    """The rows and columns that a box touches, and which share of each pixel there the shape covers, [rows, columns, 1]."""
    x1, y1, x2, y2 = box
    u, v = _subpixels(width), _subpixels(height)
    columns, rows = _touched(x1, x2, width), _touched(y1, y2, height)
    x = (2 * u[_supersampled(columns)][None] - x1 - x2) / (x2 - x1)
    y = (2 * v[_supersampled(rows)][:, None] - y1 - y2) / (y2 - y1)
    size = (rows.stop - rows.start, SUPERSAMPLE, columns.stop - columns.start, SUPERSAMPLE)
    return rows, columns, _inside(shape, x, y).reshape(size).mean(axis=(1, 3))[..., None]


def _touched(start: float, end: float, pixels: int) -> slice:
    return slice(max(0, int(start * pixels) - 1), min(pixels, int(end * pixels) + 2))


def _supersampled(pixels: slice) -> slice:
    return slice(pixels.start * SUPERSAMPLE, pixels.stop * SUPERSAMPLE)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie in a shape that fills [-1, 1] x [-1, 1]."""
    if shape == "square":
        return (abs(x) <= 1) & (abs(y) <= 1)
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "triangle":
        return (abs(y) <= 1) & (abs(x) <= (y + 1) / 2)
    raise ValueError(f"no shape is called {shape!r}")
