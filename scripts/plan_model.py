"""What a model costs: parameters, floating-point operations and bytes, from the sizes in its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from visd.config import ConfigError


@dataclass(frozen=True)
class Tower:
    """Sizes of a Qwen vision tower."""

    layers: int
    hidden: int
    mlp: int
    gated: bool  # three matrices in the MLP instead of two
    out: int  # width of the language model
    patch: int  # pixels
    temporal_patch: int  # frames
    merge: int  # patches merged along each side
    window: int  # patches that see each other in windowed layers; 0: every layer sees the whole frame
    full_layers: int  # layers that see the whole frame
    mergers: int = 1  # deepstack adds one for each inner level

    @property
    def block_parameters(self) -> int:
        h, m = self.hidden, self.mlp
        matrices = 4 * h * h + (3 if self.gated else 2) * h * m
        biases = 4 * h + (2 * m if self.gated else m) + h
        return matrices + biases + (2 * h if self.gated else 4 * h)

    @property
    def merger_parameters(self) -> int:
        wide = self.hidden * self.merge**2
        return wide * wide + wide + wide * self.out + self.out

    @property
    def parameters(self) -> int:
        embed = 3 * self.temporal_patch * self.patch**2 * self.hidden
        return self.layers * self.block_parameters + self.mergers * self.merger_parameters + embed

    def flops(self, tokens: int, tokens_a_cell: int) -> float:
        """Of one forward over `tokens` merged tokens; `tokens_a_cell` of them show one moment."""
        patches = tokens * self.merge**2
        linear = 2 * patches * self.layers * self.block_parameters + 2 * tokens * self.mergers * self.merger_parameters
        cell = tokens_a_cell * self.merge**2
        seen = self.full_layers * cell + (self.layers - self.full_layers) * min(self.window or cell, cell)
        return linear + 4 * self.hidden * patches * seen


@dataclass(frozen=True)
class Architecture:
    """Sizes of a dense decoder, and of its vision tower if it has one."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocabulary: int
    tied: bool  # the head is the table of embeddings
    bias: bool = False  # of queries, keys and values
    head_norms: bool = False  # of queries and keys
    tower: Tower | None = None

    @property
    def body(self) -> int:
        """Parameters of the decoder's blocks."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.hidden * (2 * queries + 2 * keys) + (queries + 2 * keys if self.bias else 0)
        norms = 2 * self.hidden + (2 * self.head_size if self.head_norms else 0)
        return self.layers * (attention + 3 * self.hidden * self.mlp + norms)

    @property
    def head(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def language(self) -> int:
        """Parameters of the language model, embeddings and head included."""
        return self.body + self.hidden + self.head * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size

    def adapters(self, rank: int) -> int:
        """Parameters of low-rank adapters beside all linear layers of the blocks."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        sides = 2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.mlp)
        return self.layers * rank * sides

    def forward_flops(self, tokens: float, pairs: float) -> float:
        """Of the blocks over `tokens` positions with `pairs` pairs of a query and a key it sees.

        A pair costs a product of queries and keys and one of weights and values, 2 operations an element each.
        """
        return 2 * self.body * tokens + 4 * self.heads * self.head_size * self.layers * pairs

    def head_flops(self, tokens: float) -> float:
        return 2 * self.head * tokens


PUBLISHED = {
    "Qwen/Qwen2.5-VL-7B-Instruct": Architecture(
        3584, 28, 28, 4, 128, 18944, 152064, tied=False, bias=True,
        tower=Tower(32, 1280, 3420, True, 3584, 14, 2, 2, 64, 4),
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Architecture(
        4096, 36, 32, 8, 128, 12288, 151936, tied=False, head_norms=True,
        tower=Tower(27, 1152, 4304, False, 4096, 16, 2, 2, 0, 27, mergers=4),
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Architecture(
        2560, 36, 32, 8, 128, 9728, 151936, tied=True, head_norms=True,
        tower=Tower(24, 1024, 4096, False, 2560, 16, 2, 2, 0, 24, mergers=4),
    ),
    "Qwen/Qwen3-4B": Architecture(2560, 36, 32, 8, 128, 9728, 151936, tied=True, head_norms=True),
}  # fmt: skip
"""Sizes of published models, for machines that cannot ask the hub."""
PUBLISHED["Video-R1/Qwen2.5-VL-7B-COT-SFT"] = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]


def architecture(path: str) -> Architecture:
    """Sizes of a published model, or from the config of a Hugging Face folder or hub id.

    Raises:
        ConfigError: no such model, or a decoder with experts, whose cost these formulas do not know.
    """
    if path in PUBLISHED:
        return PUBLISHED[path]
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path!r} has no config to plan with ({error}).") from error
    return from_config(config, path)


def from_config(config: Any, path: str) -> Architecture:
    """Sizes from a transformers config."""
    text = config.get_text_config()
    if getattr(text, "num_experts", None):
        raise ConfigError(f"model.path: {path!r} has experts; the plan knows dense decoders only.")
    vision = getattr(config, "vision_config", None)
    if vision is not None and not config.model_type.startswith(("qwen2_5_vl", "qwen3_vl")):
        raise ConfigError(f"model.path: the plan does not know the vision tower of {config.model_type!r}.")
    return Architecture(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        mlp=text.intermediate_size,
        vocabulary=text.vocab_size,
        tied=bool(config.tie_word_embeddings),
        bias=text.model_type.startswith("qwen2"),
        head_norms=text.model_type.startswith("qwen3"),
        tower=None if vision is None else _tower(vision),
    )


def _tower(vision: Any) -> Tower:
    """Qwen2.5-VL's has windows and gated MLPs, Qwen3-VL's neither."""
    windowed = hasattr(vision, "fullatt_block_indexes")
    return Tower(
        layers=vision.depth,
        hidden=vision.hidden_size,
        mlp=vision.intermediate_size,
        gated=windowed,
        out=vision.out_hidden_size,
        patch=vision.patch_size,
        temporal_patch=vision.temporal_patch_size,
        merge=vision.spatial_merge_size,
        window=(vision.window_size // vision.patch_size) ** 2 if windowed else 0,
        full_layers=len(vision.fullatt_block_indexes) if windowed else vision.depth,
        mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
    )
