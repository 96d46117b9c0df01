"""Memory of one process before activations, from parameter counts and the parallel mode."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
KEPT = {"live": 0, "frozen": 0, "trust_region": 0, "external": 0, "snapshot": 1, "ema": 1}
"""Copies of the trained weights that a teacher keeps beside the student's, by `teacher.weights`."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a run's model."""

    every: int  # of the trained module, frozen ones included, quantised ones not
    trained: int
    tower_bytes: int  # of a frozen tower outside the module
    external_bytes: int = 0  # of a teacher that is another model
    quantized_bytes: int = 0  # of weights in 4 bit, whole on every process


@dataclass(frozen=True)
class Forecast:
    """Bytes a process needs before activations."""

    weights: float
    gradients: float
    optimizer: float  # AdamW's two moments, and the fp32 master copy where weights are bfloat16
    teacher: float  # average or copy, whose start lies in CPU memory; or an external model, whole on every process
    tower: float  # frozen vision tower, replicated

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.teacher + self.tower


def forecast_of(counts: Counts, mode: str, ranks: int, width: int, teacher: str | None) -> Forecast:
    """Bytes of one process.

    Args:
        mode: `parallel.mode`.
        width: bytes of a weight in the module, 2 or 4.
        teacher: `teacher.weights`; None for a method without a teacher.
    """
    weight_share = ranks if mode in ("zero3", "fsdp2") else 1
    gradient_share = ranks if mode in ("zero2", "zero3") else 1  # fsdp2 divides a step's sum, not each micro-batch's
    state_share = ranks if mode in ("zero2", "zero3", "fsdp2") else 1
    copies = KEPT[teacher] if teacher is not None else 0
    return Forecast(
        weights=counts.every * width / weight_share + counts.quantized_bytes,
        gradients=counts.trained * width / gradient_share,
        optimizer=counts.trained * (8 + (4 if width == 2 else 0)) / state_share,
        teacher=counts.trained * 4 * copies / weight_share + counts.external_bytes,
        tower=counts.tower_bytes,
    )


@dataclass(frozen=True)
class Decoder:
    """Sizes of a language model that its activations depend on."""

    layers: int
    hidden: int
    mlp: int  # inner width of what one token goes through, with experts of all that it is sent to


def activations_of(decoder: Decoder, tokens: float, checkpointing: bool, width: int = 2) -> float:
    """Bytes that a forward over `tokens` keeps for its backward.

    With recomputation (`model.gradient_checkpointing`) each layer keeps its input, and one layer at a time all the rest.
    """
    kept = decoder.layers * decoder.hidden * width
    inner = (16 * decoder.hidden + 6 * decoder.mlp) * width
    return tokens * (kept + inner if checkpointing else decoder.layers * inner)
