"""What any vLLM is asked for, and what becomes of its answers: the same for an engine in process and for a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from visd.config import ConfigError
from visd.policy.policy import Policy
from visd.rollout.agreement import check_not_banned, check_prompt_ids
from visd.rollout.base import Limits, Sampling
from visd.rollout.sampling import finished_rollout
from visd.types import Frames, Prompt, Rollout, VisdError

NEVER = -100.0
"""What is added to a logit that may not be sampled, the least that vLLM takes: its share is then below 1e-43."""

PROCESSOR = {"do_resize": False}
"""What vLLM's processor is told: frames come in the size that the vision tower sees."""


def normalises_on_device() -> bool:
    """Whether the installed vLLM can leave rescaling and normalising to the model, by the image processor's numbers.

    The trainer has it done by the processors, of which that for videos may have other numbers; vLLM has to do the same.
    """
    from vllm.engine.arg_utils import EngineArgs

    return "mm_device_do_normalize" in {field.name for field in fields(EngineArgs)}


@dataclass(frozen=True)
class Answer:
    """One answer of an engine."""

    token_ids: Sequence[int]
    logp: Sequence[float]


def check_limits(limits: Limits) -> None:
    """Refuse what vLLM cannot be asked for.

    Raises:
        ConfigError: names the field.
    """
    if limits.sampling.top_p < 1 or limits.sampling.top_k:
        raise ConfigError(
            "rollout.top_p, rollout.top_k: vLLM's log-probabilities would be those of the cut distribution, which "
            "the trainer does not have; set top_p=1 and top_k=0, or take rollout=transformers."
        )


def sampling_fields(policy: Policy, sampling: Sampling, seed: int) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams for all answers of a prompt."""
    return {
        "n": sampling.n,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": 1.0 if sampling.greedy else sampling.top_p,
        "top_k": 0 if sampling.greedy else sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed >> 1,  # it adds the number of the answer
        "logprobs": 0,
        "logit_bias": {token: NEVER for token in policy.family.banned_ids},
        "stop_token_ids": list(policy.eos_ids),
        "detokenize": False,
    }


def short_ids(prompt: Prompt, tokenizer: Any) -> list[int]:
    """The prompt's ids with one placeholder a medium."""
    ids: list[int] = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    return ids


def engine_media(family: Any, prompt: Prompt) -> Mapping[str, Any]:
    """Frames and what is known of them, by kind, in the prompt's order."""
    media: dict[str, list[Any]] = {}
    for kind, frames in zip(prompt.kinds, prompt.frames, strict=True):
        if kind == "image":
            media.setdefault("image", []).append(torch.from_numpy(frames.pixels[0]).permute(2, 0, 1))
        else:
            media.setdefault("video", []).append((frames.pixels, video_facts(family, frames)))
    return media


def video_facts(family: Any, frames: Frames) -> dict[str, Any]:
    """What vLLM is told of a video's frames, so that it neither chooses among them nor guesses their times."""
    facts: dict[str, Any] = family.video_metadata(frames)
    return facts | {"duration": frames.duration, "video_backend": "visd", "do_sample_frames": False}


def rollout_group(
    policy: Policy,
    tokenizer: Any,
    prompt: Prompt,
    prompt_ids: Sequence[int],
    answers: Iterable[Answer],
    seeds: Sequence[int],
    policy_version: int,
) -> tuple[Rollout, ...]:
    """An engine's answers as rollouts.

    Raises:
        VisdError: the engine saw another prompt, gave another number of answers, or sampled a banned id.
    """
    check_prompt_ids(prompt, prompt_ids, tokenizer)
    given = list(answers)
    if len(given) != len(seeds):
        raise VisdError(f"sample {prompt.sample_id!r}: vLLM gave {len(given)} answers instead of {len(seeds)}.")
    for answer in given:
        check_not_banned(prompt.sample_id, answer.token_ids, policy.family.banned_ids)
    return tuple(
        finished_rollout(answer.token_ids, answer.logp, policy.eos_ids, tokenizer, seed, policy_version)
        for answer, seed in zip(given, seeds, strict=True)
    )
