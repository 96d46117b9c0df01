"""Frames on their way to a vLLM server: exact pixels and what is known of them, instead of a file that it would decode.

A video travels as a safetensors file in base64: `frames`, uint8 [N, H, W, 3], and `facts`, JSON in bytes. An image travels
as PNG, which loses nothing.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from visd.rollout.vllm_request import video_facts
from visd.types import Prompt

BACKEND = "visd"
"""Name of the loader at the server, in `--media-io-kwargs`."""


def content_parts(family: Any, prompt: Prompt) -> list[dict[str, str]]:
    """The prompt's media, in order, as vLLM's endpoint for token ids takes them."""
    parts = []
    for kind, frames in zip(prompt.kinds, prompt.frames, strict=True):
        if kind == "image":
            file = io.BytesIO()
            Image.fromarray(frames.pixels[0]).save(file, format="PNG", compress_level=1)
            parts.append({"type": "image_url", "url": _data_url("image/png", file.getvalue())})
        else:
            parts.append(
                {"type": "video_url", "url": _data_url("video/visd", pack(frames.pixels, video_facts(family, frames)))}
            )
    return parts


def pack(frames: np.ndarray, facts: dict[str, Any]) -> bytes:
    """Frames and facts as one file."""
    written = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    return save({"frames": np.ascontiguousarray(frames), "facts": written})


def unpack(data: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """The inverse of `pack`."""
    tensors = load(data)
    return tensors["frames"], json.loads(tensors["facts"].tobytes())


class FramesLoader:
    """The server's loader: it decodes nothing and chooses nothing."""

    @classmethod
    def load_bytes(cls, data: bytes, num_frames: int = -1, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        return unpack(data)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
