"""What a model costs: parameters, floating-point operations and bytes, from the sizes in its config alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from visd.config import ConfigError
from visd.types import Prompt


@dataclass(frozen=True)
class Tower:
    """Sizes of a vision tower: of Qwen2.5-VL, Qwen3-VL or InternVL."""

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
    merger_inner: int = 0  # width between a merger's two matrices; 0: as wide as what it merges
    extra: int = 0  # positions of a frame that are no patches (a class token)

    @property
    def block_matrices(self) -> int:
        return 4 * self.hidden**2 + (3 if self.gated else 2) * self.hidden * self.mlp

    @property
    def block_parameters(self) -> int:
        h, m = self.hidden, self.mlp
        biases = 4 * h + (2 * m if self.gated else m) + h
        return self.block_matrices + biases + (2 * h if self.gated else 4 * h)

    @property
    def merger_matrices(self) -> int:
        wide = self.hidden * self.merge**2
        return (self.merger_inner or wide) * (wide + self.out)

    @property
    def merger_parameters(self) -> int:
        return self.merger_matrices + (self.merger_inner or self.hidden * self.merge**2) + self.out

    @property
    def embedding(self) -> int:
        return 3 * self.temporal_patch * self.patch**2 * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.block_parameters + self.mergers * self.merger_parameters + self.embedding

    def flops(self, tokens: float, tokens_a_cell: float) -> float:
        """Of one forward over `tokens` merged tokens; `tokens_a_cell` of them show one moment."""
        patches, cell = tokens * self.merge**2, tokens_a_cell * self.merge**2
        positions = patches + (self.extra * tokens / tokens_a_cell if tokens else 0.0)
        linear = 2 * positions * self.layers * self.block_matrices + 2 * patches * self.embedding
        linear += 2 * tokens * self.mergers * self.merger_matrices
        whole = cell + self.extra
        seen = self.full_layers * whole + (self.layers - self.full_layers) * min(self.window or whole, whole)
        return linear + 4 * self.hidden * positions * seen

    def prompt_flops(self, prompt: Prompt) -> float:
        """Of one forward over a prompt's media."""
        vision, total = prompt.vision, 0.0
        for grids in (vision.video_grid_thw, vision.image_grid_thw):
            for moments, rows, columns in grids.tolist() if grids is not None else ():
                cell = rows * columns / self.merge**2
                total += self.flops(moments * cell, cell)
        if vision.pixel_values is not None and vision.image_grid_thw is None:  # tiles, all of one size
            tokens, tiles = int((prompt.mm_token_type_ids > 0).sum()), len(vision.pixel_values)
            total += self.flops(tokens, tokens / tiles)
        return total


@dataclass(frozen=True)
class Architecture:
    """Sizes of a decoder, and of its vision tower if it has one."""

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
    experts: int = 0  # of each sparse layer
    experts_used: int = 0  # by a token
    expert_mlp: int = 0
    sparse_layers: int = 0

    @property
    def attention(self) -> int:
        """Matrices of a layer's attention."""
        return self.hidden * self.head_size * 2 * (self.heads + self.kv_heads)

    @property
    def body(self) -> int:
        """Parameters of the decoder's blocks."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.attention + (queries + 2 * keys if self.bias else 0)
        norms = 2 * self.hidden + (2 * self.head_size if self.head_norms else 0)
        sparse = self.hidden * self.experts * (3 * self.expert_mlp + 1)
        dense = 3 * self.hidden * self.mlp
        return self.layers * (attention + norms) + self._mlps(dense, sparse)

    @property
    def active(self) -> int:
        """Elements of the blocks' matrices that a token goes through."""
        used = self.hidden * (self.experts_used * 3 * self.expert_mlp + self.experts)
        return self.layers * self.attention + self._mlps(3 * self.hidden * self.mlp, used)

    def _mlps(self, dense: int, sparse: int) -> int:
        return (self.layers - self.sparse_layers) * dense + self.sparse_layers * sparse

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
        return 2 * self.active * tokens + 4 * self.heads * self.head_size * self.layers * pairs

    def head_flops(self, tokens: float) -> float:
        return 2 * self.head * tokens


def causal_pairs(before: float, own: float) -> float:
    """Pairs of a query and a key of `own` positions that see `before` others and, in order, themselves."""
    return own * before + own * (own + 1) / 2


def bundle_work(prefix: int, suffixes: Iterable[int]) -> tuple[float, float]:
    """Positions and pairs of a prefix that runs once and of suffixes of these lengths after it."""
    lengths = list(suffixes)
    pairs = causal_pairs(0, prefix) + sum(causal_pairs(prefix, own) for own in lengths)
    return prefix + sum(lengths), pairs


def sequence(prompt: float, own: float, group: int, shared: bool) -> tuple[float, float]:
    """Positions and attention pairs of a group's prompt and of `own` further tokens an answer."""
    first, after = causal_pairs(0, prompt), causal_pairs(prompt, own)
    if shared:
        return prompt + group * own, first + group * after
    return group * (prompt + own), group * (first + after)


def from_config(config: Any, path: str) -> Architecture:
    """Sizes from a transformers config.

    Raises:
        ConfigError: a config without the usual names of sizes, or a vision tower of another kind.
    """
    text, vision = config.get_text_config(), getattr(config, "vision_config", None)
    sparse = _sparse_layers(text)
    try:
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
            tower=None if vision is None else _tower(config, vision, path),
            experts=text.num_experts if sparse else 0,
            experts_used=text.num_experts_per_tok if sparse else 0,
            expert_mlp=text.moe_intermediate_size if sparse else 0,
            sparse_layers=sparse,
        )
    except AttributeError as error:
        raise ConfigError(f"model.path: the costs of {path!r} are not known ({error}).") from error


def _sparse_layers(text: Any) -> int:
    """Layers that have experts."""
    if not getattr(text, "num_experts", None):
        return 0
    dense, every = getattr(text, "mlp_only_layers", None) or (), getattr(text, "decoder_sparse_step", 1)
    return sum(layer not in dense and (layer + 1) % every == 0 for layer in range(text.num_hidden_layers))


def _tower(config: Any, vision: Any, path: str) -> Tower:
    """Qwen2.5-VL's has windows and gated MLPs, Qwen3-VL's and InternVL's neither."""
    if config.model_type == "internvl":
        return _internvl_tower(config, vision)
    if not config.model_type.startswith(("qwen2_5_vl", "qwen3_vl")):
        raise ConfigError(f"model.path: the costs of the vision tower of {path!r} ({config.model_type}) are not known.")
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


def _internvl_tower(config: Any, vision: Any) -> Tower:
    width = config.get_text_config().hidden_size
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    return Tower(
        layers=vision.num_hidden_layers,
        hidden=vision.hidden_size,
        mlp=vision.intermediate_size,
        gated=False,
        out=width,
        patch=patch,
        temporal_patch=1,
        merge=round(1 / config.downsample_ratio),
        window=0,
        full_layers=vision.num_hidden_layers,
        merger_inner=width,
        extra=1,
    )
