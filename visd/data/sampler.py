"""The order of samples, as a pure function of the seed and the step: nothing to save, nothing to restore."""

from __future__ import annotations

from collections.abc import Sequence

from visd.seeding import generator
from visd.types import Sample, VisdError


class StepSampler:
    """Batches of prompts. Every epoch is a permutation of all samples; no batch holds a sample twice.

    Epochs follow each other without a gap. Where a batch spans two, the next epoch's permutation puts the samples
    that would come twice later: equal samples in one step would be given equal sampling seeds.
    """

    def __init__(self, samples: Sequence[Sample], prompts_per_step: int, seed: int):
        """Raises VisdError where there are fewer samples than `prompts_per_step`."""
        if len(samples) < prompts_per_step:
            raise VisdError(
                f"train.prompts_per_step = {prompts_per_step} is more than the {len(samples)} training samples; "
                "lower it or add manifests to data.train."
            )
        self.samples = samples
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self._orders: list[list[int]] = []

    def batch(self, step: int) -> list[Sample]:
        """The samples of a step (0-based), over all ranks."""
        size = len(self.samples)
        first = step * self.prompts_per_step
        places = range(first, first + self.prompts_per_step)
        return [self.samples[self._order(place // size)[place % size]] for place in places]

    def local(self, step: int, rank: int, world_size: int) -> list[Sample]:
        """A rank's even share of the step; the shares of all ranks, in order, are the batch.

        Raises:
            VisdError: the ranks do not divide `train.prompts_per_step`.
        """
        if self.prompts_per_step % world_size:
            raise VisdError(
                f"train.prompts_per_step = {self.prompts_per_step} is not a multiple of the {world_size} ranks; "
                "change one of them."
            )
        share = self.prompts_per_step // world_size
        return self.batch(step)[rank * share : (rank + 1) * share]

    def _order(self, epoch: int) -> list[int]:
        while len(self._orders) <= epoch:
            self._orders.append(self._next_order(len(self._orders)))
        return self._orders[epoch]

    def _next_order(self, epoch: int) -> list[int]:
        size = len(self.samples)
        shuffled: list[int] = generator(self.seed, "epoch", epoch).permutation(size).tolist()
        leftover = epoch * size % self.prompts_per_step
        if not leftover:
            return shuffled
        taken = set(self._orders[epoch - 1][-leftover:])
        head = [i for i in shuffled if i not in taken][: self.prompts_per_step - leftover]
        chosen = set(head)
        return head + [i for i in shuffled if i not in chosen]
