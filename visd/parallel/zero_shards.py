"""Reaching into ZeRO-3: a rank's part of a parameter, and running the module without DeepSpeed's hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def own_part(parameter: Any, rank: int) -> Tensor:
    """A flat view of what `rank` stores of a ZeRO-3 parameter, without the padding at the parameter's end.

    The padding is uninitialised memory, so that no norm may see it. Writing to the view changes the model at the next
    gather.
    """
    shard: Tensor = parameter.ds_tensor.data
    own = min(max(parameter.ds_numel - rank * shard.numel(), 0), shard.numel())
    return shard.narrow(0, 0, own)


@contextmanager
def without_hooks(offload: Any) -> Iterator[None]:
    """Take DeepSpeed's hooks off every submodule, so that a forward neither gathers nor releases parameters.

    Left in place they would release weights under another forward, and ranks would wait for each other. The hooks go
    back as they were, not anew: the recorded order of gathers stays valid.

    Args:
        offload: the engine's `DeepSpeedZeRoOffload`.
    """
    handles = [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]
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
