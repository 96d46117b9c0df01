"""The module that is trained: a Hugging Face model behind one forward that scores response tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visd.media.families.base import Family
from visd.policy.batch import ForwardInputs, VisionFeatures, concatenate_features
from visd.policy.head import ScoringHead, make_scoring, score_positions
from visd.policy.vision import encode_media, vision_modules
from visd.types import ScoreNeeds


class PolicyModel(nn.Module):
    """Wraps a transformers model; what is wrapped for parallel training is this module.

    With a frozen vision tower the tower is taken out of `hf`, so that it is neither sharded nor called here and its
    features arrive with the inputs. With a trained one it stays inside and every forward calls it exactly once.
    """

    banned: Tensor  # [V] bool, ids that can be neither sampled nor counted in a normaliser

    def __init__(self, hf: Any, family: Family, tower_inside: bool):
        super().__init__()
        self.hf = hf
        self.family = family
        self.tower_inside = tower_inside
        self.vocab_size: int = make_scoring(hf.get_output_embeddings()).weight.shape[0]
        banned = torch.zeros(self.vocab_size, dtype=torch.bool)
        banned[list(family.banned_ids)] = True
        self.register_buffer("banned", banned, persistent=False)

    @property
    def text_model(self) -> nn.Module:
        return self.hf.get_submodule(self.family.language_module)

    @property
    def head(self) -> ScoringHead:
        head = self.hf.get_output_embeddings()
        assert isinstance(head, ScoringHead)
        return head

    def shard_units(self) -> list[nn.Module]:
        """What fully sharded training gathers at a time: the decoder's layers; a trained tower's blocks, then its rest.

        The rest (embeddings, the head that may be tied to them, the last norm) is needed at both ends of every forward.
        """
        units = layers_of(self.text_model)
        for module in vision_modules(self.hf, self.family) if self.tower_inside else ():
            units += [*layers_of(module), module]
        return units

    def forward(
        self,
        inputs: ForwardInputs,
        temperature: float,
        needs: ScoreNeeds,
        support_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Scores of the response tokens, each [B, T] or [B, T, K]; entries on padding are 0.

        Args:
            support_ids: [B, T, K] ids to read besides the sampled token.
        """
        hidden = self.hidden_states(inputs)
        mask = inputs.response_mask
        if inputs.layout is None:
            rows = torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)
            predictors = hidden[rows[mask], inputs.response_index[mask]]
        else:
            predictors = hidden[0, inputs.response_index[mask]]
        scores = score_positions(
            self.head,
            predictors,
            inputs.response_ids[mask],
            temperature=temperature,
            banned_V=self.banned,
            needs=needs,
            support_ids_NK=None if support_ids is None else support_ids[mask],
        )
        return {name: _spread(value, mask) for name, value in scores.items()}

    def hidden_states(self, inputs: ForwardInputs, **cache: Any) -> Tensor:
        """Last hidden states [B, L, H]; `cache` goes to the language model (past_key_values, use_cache)."""
        return self.language_output(inputs, **cache).last_hidden_state

    def language_output(self, inputs: ForwardInputs, **cache: Any) -> Any:
        embeds = self.hf.get_input_embeddings()(inputs.input_ids)
        features, anchor = self._features(inputs)
        if anchor is not None:
            embeds = embeds + anchor
        extra: dict[str, Any] = dict(cache)
        if features is not None:
            visual = inputs.mm_token_type_ids > 0
            embeds = embeds.masked_scatter(visual[..., None], features.embeds.to(embeds.dtype))
            if features.deepstack:
                extra["visual_pos_masks"] = visual
                extra["deepstack_visual_embeds"] = [level.to(embeds.dtype) for level in features.deepstack]
        mask = inputs.attention_mask
        if inputs.layout is not None:
            extra["shared_layout"] = inputs.layout
            mask = mask[:, None, None, :1]  # with four dimensions transformers takes it as made, and makes none
        return self.text_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=inputs.position_ids if self.family.four_rows else inputs.position_ids[0],
            **extra,
        )

    def _features(self, inputs: ForwardInputs) -> tuple[VisionFeatures | None, Tensor | None]:
        """Features to inject, and a zero that keeps a trained tower in the graph where there is no media."""
        if not self.tower_inside:
            return inputs.features, None
        modules = vision_modules(self.hf, self.family)
        if inputs.media:
            with_media = [row.cpu() for row in inputs.prompt_types if bool((row > 0).any())]
            return concatenate_features(encode_media(self.family, modules, inputs.media, with_media)), None
        nothing_seen, its_types = self.family.dummy_media()
        feature = encode_media(self.family, modules, [nothing_seen], [its_types])[0]
        levels: Sequence[Tensor] = (feature.embeds, *feature.deepstack)
        nothing = torch.zeros((), device=inputs.input_ids.device)
        return None, sum((level.sum() for level in levels), nothing) * 0.0


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: members of its module lists, not those of lists within them."""
    layers: list[nn.Module] = []
    for child in module.children():
        layers += list(child) if isinstance(child, nn.ModuleList) else layers_of(child)
    return layers


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """[N, ...] back to [B, T, ...] with zeros on padding."""
    out = values.new_zeros((*mask.shape, *values.shape[1:]))
    out[mask] = values
    return out
