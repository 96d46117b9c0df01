"""Running out of memory, said with the samples it happened to and the settings that help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from visd.media.errors import is_out_of_memory
from visd.types import VisdError

HELP = {
    "encode": "lower prompt.video.max_pixels, prompt.video.max_frames or prompt.video.total_pixels",
    "rollout": "lower rollout.batch_prompts (0 takes all prompts of the step), rollout.n or rollout.max_new_tokens",
    "teacher": "lower train.micro_batch_tokens, or divide the model among GPUs with parallel=zero3",
    "update": "lower train.micro_batch_tokens, set model.gradient_checkpointing=true, "
    "or divide the model among GPUs with parallel=zero3",
    "validation": "lower train.prompts_per_step, which are asked together, or rollout.max_new_tokens",
    "optimizer": "divide its state among GPUs with parallel=zero2 or zero3, or set parallel.offload_optimizer=true with these",
}
"""What to do, by the phase that ran out of memory."""


class OutOfMemory(VisdError):
    """A phase needed more memory than there is."""


@contextmanager
def memory_of(phase: str, sample_ids: Iterable[str] = ()) -> Iterator[None]:
    """Have an allocation that fails inside name the phase, the samples and what to change.

    Args:
        phase: a key of `HELP`.
        sample_ids: whose data were in memory.

    Raises:
        OutOfMemory: from the original error.
    """
    help_ = HELP[phase]
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch reports a failed allocation on a CPU as a plain RuntimeError
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or is_out_of_memory(error)):
            raise
        samples = ", ".join(sorted(set(sample_ids)))
        where = f"{phase} of sample{'s' * (', ' in samples)} {samples}" if samples else phase
        raise OutOfMemory(f"out of memory in the {where}: {help_}. ({_first_sentences(error)})") from error


def _first_sentences(error: BaseException) -> str:
    """What was asked for; the rest of torch's message is about its allocator."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return ". ".join(line.split(". ")[:2]).rstrip(".")
