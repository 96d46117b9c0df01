"""The cap on dropped samples holds for all ranks together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from visd.parallel.place import Place
from visd.parallel.single import SingleProcess
from visd.train.run import Drops
from visd.types import DroppedSample, VisdError


class OneOfTwo(SingleProcess):
    """A process whose other half has dropped what `other` says."""

    other: dict[str, str]

    def all_reduce(self, values: Any, op: str = "sum") -> Any:
        return values + len(self.other)

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value, self.other]


@pytest.mark.parametrize(("other", "stops"), [({"b": "decode"}, True), ({"a": "decode"}, False), ({}, False)])
def test_the_cap_is_for_all_ranks_together(other: dict[str, str], stops: bool) -> None:
    backend = OneOfTwo(Place(0, 2, 0), torch.device("cpu"), bf16=False)
    backend.other = other
    drops = Drops(samples=10, max_share=0.1)
    drops.add(DroppedSample("a", "decode", "it cannot be read."))
    if not stops:
        drops.check_all(backend)
        return
    with pytest.raises(VisdError, match=r"2 of 10 samples were dropped \(decode: 2\).*some of them were a, b"):
        drops.check_all(backend)
