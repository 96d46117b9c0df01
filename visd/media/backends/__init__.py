"""Who reads the chosen frames of a file. One module a backend, loaded when it is asked for.

The index of `visd.media.container` decides which frames are taken and when each is shown; a backend only fetches them.
Its module has

    ERRORS                               exceptions by which its library says that a frame cannot be decoded
    read(index, numbers, deadline)       RGB pixels [H, W, 3], uint8, upright, of the frames `numbers` of the file
                                         `deadline.path`, in order, never other frames
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from visd.config import ConfigError
from visd.media.container import Deadline, FrameIndex, undecodable
from visd.media.errors import DecodeError, is_out_of_memory


def load_backend(name: str) -> ModuleType:
    """The module of `prompt.video.backend`.

    Raises:
        ConfigError: its library is not installed or cannot be loaded here.
    """
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".:")
        raise ConfigError(
            f"prompt.video.backend: {name} cannot be loaded ({first}); "
            f"install visd's extra `{name}` as docs/environment.md says, or set prompt.video.backend=pyav."
        ) from error


def read_frames(
    name: str, index: FrameIndex, numbers: Sequence[int], deadline: Deadline
) -> Iterator[NDArray[np.uint8]]:
    """RGB pixels [H, W, 3], upright, of the frames `numbers` (strictly ascending) of the file `deadline.path`.

    Raises:
        ConfigError: the backend cannot be loaded.
        DecodeError: a frame is damaged, cannot be decoded or is not the one asked for; never fewer frames.
    """
    backend = load_backend(name)
    for number in numbers:
        if index.stamps[number] in index.damaged:
            raise undecodable(index, number, deadline, "its data is damaged")
    done = 0
    try:
        for pixels in backend.read(index, numbers, deadline):
            deadline.check()
            yield pixels
            done += 1
    except DecodeError:
        raise
    except backend.ERRORS as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise undecodable(index, numbers[done], deadline, str(error).strip().splitlines()[0]) from error
    if done < len(numbers):
        raise undecodable(index, numbers[done], deadline, "the stream ends before it")
