"""Work in threads that the end of the process does not wait for: a run that stops does not sit out what servers still do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Future[T]:
    """Start `work` in a thread of its own. An executor's threads would be joined at the interpreter's exit."""
    future: Future[T] = Future()

    def act() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=act, daemon=True).start()
    return future
