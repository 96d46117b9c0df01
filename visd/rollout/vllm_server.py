"""Rollouts by vLLM servers, on this machine or others, with the trainer's prompts and the trainer's weights.

A server is sent a prompt's ids and its frames, chosen and sized, and answers with ids and log-probabilities. New weights
go to its workers through sockets that they open to the trainer. Every answer says which weights it is of.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from threading import BoundedSemaphore
from typing import Any

from visd.config import ConfigError
from visd.parallel.base import Backend
from visd.policy.policy import Policy
from visd.rollout.background import in_background
from visd.rollout.base import Limits, RolloutEngine, Sampling
from visd.rollout.servers import Server, ServerPool
from visd.rollout.transfer import transfer
from visd.rollout.vllm_media import content_parts
from visd.rollout.vllm_request import Answer, check_limits, rollout_group, sampling_fields, short_ids
from visd.rollout.weights import features_change, plain_weights
from visd.types import Prompt, Rollout, VisdError


@dataclass
class VLLMServerEngine(RolloutEngine):
    """One or many servers, shared by all processes of the run."""

    uses_module = False
    elsewhere = True

    policy: Policy
    tokenizer: Any
    urls: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8000"])  # of the servers
    timeout: float = (
        600.0  # s that a server may take over one request, or one transfer of weights, before it counts as dead
    )
    start_wait: float = 600.0  # s to wait for all servers before the first step
    requests: int = 64  # prompts that one process has under way at once
    address: str = ""  # of this machine, for the servers to fetch weights from; empty finds it out

    def __post_init__(self) -> None:
        if not self.urls:
            raise ConfigError("rollout.engine.urls: names no server.")
        self._pool = ServerPool(self.urls, self.timeout)
        self._version: int | None = None  # of the weights that the servers have
        self._label = ""  # what the servers call these weights
        self._run = ""
        self._slots = BoundedSemaphore(self.requests)
        # A tokenizer keeps options of its last call, and the trainer calls its own while requests are made here.
        self.tokenizer = deepcopy(self.tokenizer)

    def open(self, limits: Limits) -> None:
        check_limits(limits)

    def sync(self, backend: Backend, version: int) -> None:
        """Servers that are well get the weights, unless they have them; the others are not asked this step."""
        first = self._version is None
        if first:
            self._run = backend.all_gather_object(secrets.token_hex(4))[0]
        label = f"{self._run}-{version}"
        with backend.together():
            behind = self._behind(label, self.start_wait if first else 0.0) if backend.is_main else []
        if backend.all_gather_object(len(behind))[0]:
            self._transfer(backend, behind, label)
        with backend.together():
            if backend.is_main and not self._pool.alive:
                raise self._pool.no_server()
        # The other processes ask those servers alone that the main one has found well and with these weights.
        lost = backend.all_gather_object([server.lost for server in self._pool.servers])[0]
        for server, why in zip(self._pool.servers, lost, strict=True):
            server.lost = why
        self._version, self._label = version, label

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[Sequence[int]], policy_version: int
    ) -> list[tuple[Rollout, ...]]:
        """`seeds[i][0]` decides the tokens of all rollouts of prompt i, together with what its server computes beside them."""
        if not prompts:
            return []
        asked = [
            in_background(partial(self._group, prompt, sampling, row, policy_version))
            for prompt, row in zip(prompts, seeds, strict=True)
        ]
        return [group.result() for group in asked]

    def _group(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int
    ) -> tuple[Rollout, ...]:
        with self._slots:
            return self._asked(prompt, sampling, seeds, policy_version)

    def _asked(
        self, prompt: Prompt, sampling: Sampling, seeds: Sequence[int], policy_version: int
    ) -> tuple[Rollout, ...]:
        body: dict[str, Any] = {
            "token_ids": short_ids(prompt, self.tokenizer),
            "sampling_params": sampling_fields(self.policy, sampling, seeds[0]),
            "return_token_ids": True,
        }
        if prompt.frames:
            body["content_parts"] = content_parts(self.policy.family, prompt)
        said = self._pool.ask("/inference/v1/generate", body, self._other_weights)
        choices = sorted(said["choices"], key=lambda choice: choice["index"])
        answers = (Answer(c["token_ids"], [token["logprob"] for token in c["logprobs"]["content"]]) for c in choices)
        ids = said["prompt_token_ids"]
        return rollout_group(self.policy, self.tokenizer, prompt, ids, answers, seeds, policy_version)

    def _other_weights(self, said: Any) -> str:
        """Why an answer may not be used: a server that was started again has the weights of its folder."""
        versions = {span["version"] for choice in said["choices"] for span in choice["weight_versions"] or ()}
        return "" if versions == {self._label} else f"it answers with weights {sorted(versions)}, not {self._label!r}"

    def _behind(self, label: str, wait: float) -> list[Server]:
        """Servers that are well and have other weights."""
        self._pool.check_health(wait)
        if wait and (missing := [server for server in self._pool.servers if server.lost]):
            said = ", ".join(f"{server.url} ({server.lost})" for server in missing)
            raise VisdError(
                f"rollout.engine.urls: no answer within {wait:g} s from {said}. Start it with scripts/serve_rollout.sh, "
                "or take it out of the list."
            )
        return [one for one in self._pool.alive if self._pool.get(one, "/weight_info")["weight_version"] != label]

    def _transfer(self, backend: Backend, behind: list[Server], label: str) -> None:
        """Send the trained weights to some servers. All ranks call it, for gathering takes all; the main one sends."""
        stream = plain_weights(self.policy, backend)
        if not backend.is_main:
            for _ in stream:
                pass
            return
        keep = not features_change(self.policy)
        transfer(self._pool, behind, stream, label, keep, self.timeout, self.address)
