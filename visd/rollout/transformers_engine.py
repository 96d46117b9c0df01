"""Rollouts by transformers' `generate`: the prompt is run once a group, then its cache is shared by the G answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from visd.policy.batch import ForwardInputs, VisionFeatures, concatenate_features
from visd.policy.policy import Policy
from visd.rollout.base import RolloutEngine, Sampling
from visd.rollout.cache import for_answers
from visd.rollout.sampling import SeededSampler, finished_rollout
from visd.types import Prompt, Rollout

ENDED_SHARE = 0.25
"""Of the rows of a round; fewer would be copied more often than their computing costs."""


class ManyEnded(StoppingCriteria):
    """Ends a round of all rows when `ENDED_SHARE` of them have ended."""

    def __init__(self, eos_ids: Tensor):
        self.eos_ids = eos_ids

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = torch.isin(input_ids[:, -1], self.eos_ids)  # ended rows are padded with an end-of-sequence id
        return torch.full_like(ended, bool(ended.float().mean() >= ENDED_SHARE))


@dataclass
class TransformersEngine(RolloutEngine):
    """Samples from the policy's own module, so that engine and trainer cannot disagree about a prompt."""

    policy: Policy
    tokenizer: Any

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        if not prompts:
            return []
        model = self.policy.model
        inputs = left_padded(prompts, self.policy.encode(prompts)).to(self.policy.device)
        cache = DynamicCache(config=model.hf.config.get_text_config())
        model.language_output(_without_last(inputs), past_key_values=cache, use_cache=True)
        for_answers(cache, sampling.n, sampling.max_new_tokens)

        flat_seeds = [seed for row in seeds for seed in row]
        tokens, logp = self._answers(inputs, cache, SeededSampler(flat_seeds, sampling, model.banned))
        rollouts = [
            finished_rollout(ids, values, self.policy.eos_ids, self.tokenizer, seed, policy_version)
            for ids, values, seed in zip(tokens, logp, flat_seeds, strict=True)
        ]
        return [tuple(rollouts[i : i + sampling.n]) for i in range(0, len(rollouts), sampling.n)]

    def _answers(
        self, inputs: ForwardInputs, cache: DynamicCache, sampler: SeededSampler
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probabilities of every answer, in rounds: each ends when many of its rows have.

        `generate` computes ended rows until the last one ends, which is most of the work where few answers are long.
        """
        n, most, texts = sampler.sampling.n, sampler.sampling.max_new_tokens, sampler.sampling.stop
        stops = [StopTexts(texts, inputs.input_ids.shape[1], self.tokenizer)] if texts else []
        positions = inputs.position_ids if self.policy.family.four_rows else inputs.position_ids[0]
        ids = inputs.input_ids.repeat_interleave(n, dim=0)
        mask = inputs.attention_mask.repeat_interleave(n, dim=0)
        positions = positions.repeat_interleave(n, dim=-2)
        tokens: list[list[int]] = [[] for _ in range(len(ids))]
        logp: list[list[float]] = [[] for _ in range(len(ids))]
        rows = torch.arange(len(ids), device=ids.device)
        eos = torch.tensor(self.policy.eos_ids, device=ids.device)
        while True:
            before = ids.shape[1]
            ids = self.policy.model.hf.generate(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                generation_config=self._generation_config(most - sampler.drawn),
                logits_processor=[sampler],
                stopping_criteria=StoppingCriteriaList([ManyEnded(eos), *stops]),
                synced_gpus=False,  # weights are whole here, and a rank may have nothing to sample
            )
            drawn = zip(rows.tolist(), ids[:, before:].tolist(), torch.stack(sampler.logp, dim=1).tolist(), strict=True)
            for row, new_ids, new_logp in drawn:
                tokens[row] += new_ids
                logp[row] += new_logp
            going_on = (~torch.isin(ids[:, -1], eos)).nonzero().squeeze(-1)
            if not len(going_on) or sampler.drawn == most:
                return tokens, logp
            new = torch.arange(1, ids.shape[1] - before + 1, device=ids.device)
            mask = torch.cat([mask, mask.new_ones(len(ids), len(new))], dim=1)[going_on]
            positions = torch.cat([positions, positions[..., -1:] + new], dim=-1)[..., going_on, :]
            ids, rows = ids[going_on], rows[going_on]
            cache.batch_select_indices(going_on)
            sampler.keep(going_on)

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        """Everything is said here, so that the checkpoint's own sampling defaults have no say."""
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(self.policy.eos_ids),
            pad_token_id=self.policy.eos_ids[0],
            use_cache=True,
        )


class StopTexts(StoppingCriteria):
    """Ends a row once its answer holds one of the texts; what `generate` pads it with comes after the text."""

    def __init__(self, texts: Sequence[str], prompt_length: int, tokenizer: Any):
        self.texts = texts
        self.start = prompt_length
        self.tokenizer = tokenizer
        self.window = max(len(text.encode()) for text in texts)  # a token has a byte at least

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        tails = self.tokenizer.batch_decode(input_ids[:, self.start :][:, -self.window :], skip_special_tokens=True)
        return torch.tensor([any(text in tail for text in self.texts) for tail in tails], device=input_ids.device)


def left_padded(prompts: Sequence[Prompt], features: Sequence[VisionFeatures | None]) -> ForwardInputs:
    """Prompts ending in one column, as generation needs them."""
    length = max(len(prompt) for prompt in prompts)
    shape = (len(prompts), length)
    input_ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    types = torch.zeros(shape, dtype=torch.int)
    positions = torch.zeros((4, *shape), dtype=torch.long)
    for b, prompt in enumerate(prompts):
        start = length - len(prompt)
        input_ids[b, start:] = prompt.input_ids
        mask[b, start:] = True
        types[b, start:] = prompt.mm_token_type_ids
        positions[:, b, start:] = prompt.position_ids
    empty = torch.zeros((len(prompts), 0), dtype=torch.long)
    inside = [
        prompt.vision for prompt, f in zip(prompts, features, strict=True) if f is None and not prompt.vision.empty
    ]
    return ForwardInputs(
        input_ids=input_ids,
        attention_mask=mask,
        mm_token_type_ids=types,
        position_ids=positions,
        response_index=empty,
        response_ids=empty,
        response_mask=empty.bool(),
        features=concatenate_features(features),
        media=tuple(inside),
    )


def _without_last(inputs: ForwardInputs) -> ForwardInputs:
    """All but the last column, which `generate` runs itself to get the first token's logits."""

    def cut(tensor: Tensor) -> Tensor:
        return tensor[..., :-1]

    return replace(
        inputs,
        input_ids=cut(inputs.input_ids),
        attention_mask=cut(inputs.attention_mask),
        mm_token_type_ids=cut(inputs.mm_token_type_ids),
        position_ids=cut(inputs.position_ids),
    )
