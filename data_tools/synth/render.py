"""Scenes to H.264 files."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np

from data_tools.synth.scene import COLOURS, FIRST_CENTRE, PITCH, Scene, Thing

MOVING_SHARE = 0.25
"""Share of a step, at its end, in which an object travels to its next cell."""
SUPERSAMPLE = 3
ENCODER = {"preset": "veryfast", "crf": "16", "threads": "1", "g": "24", "bf": "0", "x264-params": "scenecut=0:sync-lookahead=0"}


def frames(scene: Scene) -> list[np.ndarray]:
    """All frames of a scene, uint8 [height, width, 3], `fps` of them a second."""
    drawn: dict[tuple[object, ...], np.ndarray] = {}
    result = []
    for number in range(scene.steps * scene.fps):
        states = tuple(_state(thing, number / scene.fps) for thing in scene.things)
        if states not in drawn:
            drawn[states] = _frame(scene, states)
        result.append(drawn[states])
    return result


def write_video(scene: Scene, path: Path) -> None:
    """Encode a scene; the file appears whole or not at all, and the same scene gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=scene.fps, options=ENCODER)
        stream.width, stream.height = scene.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames(scene):
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    os.replace(partial, path)


State = tuple[str, str, float, float] | None  # colour, shape, centre; None: not to be seen


def _state(thing: Thing, t: float) -> State:
    step = int(t + 1e-9)
    cell = thing.cells[step]
    if cell is None:
        return None
    x, y = float(cell[0]), float(cell[1])
    following = thing.cells[step + 1] if step + 1 < len(thing.cells) else cell
    share = max(0.0, (t - step - (1 - MOVING_SHARE)) / MOVING_SHARE)
    if following is not None and share > 0:
        x, y = x + share * (following[0] - x), y + share * (following[1] - y)
    changed = thing.recoloured_at is not None and step >= thing.recoloured_at
    colour = thing.new_colour if changed and thing.new_colour else thing.colour
    return colour, thing.shape, round(FIRST_CENTRE + PITCH * x, 4), round(FIRST_CENTRE + PITCH * y, 4)


def _frame(scene: Scene, states: tuple[State, ...]) -> np.ndarray:
    width, height = scene.size
    image = np.full((height, width, 3), float(scene.background))
    ys, xs = np.mgrid[0 : height * SUPERSAMPLE, 0 : width * SUPERSAMPLE]
    u, v = (xs + 0.5) / (width * SUPERSAMPLE), (ys + 0.5) / (height * SUPERSAMPLE)
    for state in states:
        if state is None:
            continue
        colour, shape, cx, cy = state
        inside = _inside(shape, (u - cx) / (PITCH / 2), (v - cy) / (PITCH / 2))
        cover = inside.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).mean(axis=(1, 3))[..., None]
        image = image * (1 - cover) + np.array(COLOURS[colour], dtype=float) * cover
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie in a shape that fills [-1, 1] x [-1, 1]."""
    if shape == "square":
        return (abs(x) <= 1) & (abs(y) <= 1)
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "triangle":
        return (abs(y) <= 1) & (abs(x) <= (y + 1) / 2)
    raise ValueError(f"no shape is called {shape!r}")
