"""Running a wrapped module as if it were not: without the hooks that a sharded mode put on its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Take hooks off their modules, so that a forward neither gathers nor releases parameters.

    Left in place they would release weights under another forward, and ranks would wait for each other. The hooks go
    back as they were, not anew: a recorded order of gathers stays valid.

    Args:
        handles: torch's `RemovableHandle`s.
    """
    taken = []
    for handle in handles:
        hooks = handle.hooks_dict_ref()
        taken.append((hooks, dict(hooks)))
    for handle in handles:
        handle.hooks_dict_ref().pop(handle.id, None)
    try:
        yield
    finally:
        for hooks, before in taken:
            added = {key: hook for key, hook in hooks.items() if key not in before}
            hooks.clear()
            hooks.update(before | added)
