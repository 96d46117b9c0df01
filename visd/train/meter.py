"""How a step's phases compare with what they cost at least, and what the device makes of its peak.

A phase's floor is the time of its operations at the device's peak, each prompt once for all rows that begin with it,
plus, for sampling, no less than the time of reading weights and cached keys and values at the peak of its memory
(the formulas are in docs/performance.md). Utilisation counts the model's operations alone: what is computed again in a
backward pass belongs to the floor and not to it.
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from visd.config import ConfigError, RunConfig
from visd.observe.accumulate import Metrics, Ratio
from visd.policy import head
from visd.policy.batch import Row
from visd.policy.costs import Architecture, bundle_work, from_config
from visd.policy.policy import Policy
from visd.policy.prefix import bundles_of
from visd.types import Prompt, RolloutGroup

log = logging.getLogger(__name__)

GIB = 2.0**30


@dataclass(frozen=True)
class Peak:
    """What a device can do at most."""

    flops: float  # operations a second
    bandwidth: float  # bytes a second, of its memory


@dataclass
class Work:
    """What a phase has to do."""

    model: float = 0.0  # operations of the model
    again: float = 0.0  # operations that are to be repeated in a backward pass, to save memory
    reading: float = 0.0  # s, by which reading takes longer than computing where it does
    tokens: int = 0  # of prompts, each as often as a row has it, and of answers


class Meter:
    """Adds up the work of the phases of a step."""

    def __init__(self, config: RunConfig, policy: Policy, samples_here: bool, samples_by_module: bool):
        """
        Args:
            samples_here: answers are sampled on this device.
            samples_by_module: and by the policy's own module, with the features that teacher and update use.
        """
        self._config, self._policy = config.model, policy
        self._samples_here, self._by_module = samples_here, samples_by_module
        self._given = Peak(config.tracking.peak_tflops * 1e12, config.tracking.peak_gbps * 1e9)
        self._peak: Peak | None = None
        self._costs: dict[int, Architecture | None] = {}
        self._work: dict[str, Work] = {}
        self._encoded: set[tuple[int, int]] = set()  # policy and media whose features are there

    @property
    def peak(self) -> Peak:
        """As configured, or measured at its first use."""
        if self._peak is None:
            device, dtype = self._policy.device, self._policy.compute_dtype
            flops = self._given.flops or measured_flops(device, dtype)
            self._peak = Peak(flops, self._given.bandwidth or measured_bandwidth(device))
            log.info(
                "meter: a peak of %.3g TFLOP/s in %s and %.3g GB/s%s", self._peak.flops / 1e12, dtype,
                self._peak.bandwidth / 1e9, "" if self._given.flops and self._given.bandwidth else ", as measured",
            )  # fmt: skip
        return self._peak

    def sampled(self, groups: Sequence[RolloutGroup]) -> None:
        """Groups whose answers were generated together."""
        sizes = self._sizes(self._policy)
        if sizes is None or not self._samples_here or not groups:
            return
        work, width = self._work.setdefault("rollout", Work()), self._policy.compute_dtype.itemsize
        own = [[max(len(r.token_ids) - 1, 0) for r in group.rollouts if r.source == "policy"] for group in groups]
        cached = operations = 0.0
        for group, lengths in zip(groups, own, strict=True):
            prompt = len(group.prompt)
            before = sizes.forward_flops(*bundle_work(prompt, ()))
            positions, pairs = bundle_work(prompt, lengths)
            operations += sizes.forward_flops(positions, pairs) - before + sizes.head_flops(positions - prompt)
            work.model += before + sizes.head_flops(1) + self._encoding(self._policy, sizes, group.prompt)
            cached += sum(length * (prompt + (length + 1) / 2) for length in lengths)
            work.tokens += sum(prompt + length + 1 for length in lengths)
        longest = max((length for lengths in own for length in lengths), default=0)
        elements = longest * (sizes.active + sizes.head) + cached * sizes.kv_bytes / 2
        work.model += operations
        work.reading += max(0.0, width * elements / self.peak.bandwidth - operations / self.peak.flops)
        if not self._by_module:
            self._encoded.clear()  # the engine's own features

    def scored(self, phase: str, policy: Policy, rows: Sequence[Row], passes: int = 1) -> None:
        """Rows that are scored without gradients."""
        self._add(phase, policy, rows, float(passes), float(passes), 0.0)

    def trained(self, policy: Policy, rows: Sequence[Row]) -> None:
        """Rows that go forward and backward."""
        adapters = policy.adapter_scale is not None
        weights = not adapters and any(p.requires_grad for p in policy.model.text_model.parameters())
        self._add("update", policy, rows, 3.0 if weights else 2.0, 3.0, float(self._config.gradient_checkpointing))

    def _add(self, phase: str, policy: Policy, rows: Sequence[Row], linear: float, pairs: float, again: float) -> None:
        """Forwards' worth of products with weights and of attention's; a frozen weight saves one of the former."""
        sizes = self._sizes(policy)
        if sizes is None:
            return
        work = self._work.setdefault(phase, Work())
        for bundle in bundles_of(rows):
            own = [rows[i] for i in bundle.rows]
            positions, seen = bundle_work(bundle.prefix, (len(row) - bundle.prefix for row in own))
            answers = sum(len(row.response_ids) for row in own)
            flops_head = sizes.head_flops(answers)
            media = self._encoding(policy, sizes, own[0].prompt)
            if policy.model.tower_inside:  # trained with the rest, and called by every forward
                media *= 3.0 if phase == "update" else 1.0
            work.model += linear * (sizes.forward_flops(positions, 0) + flops_head) + media
            work.model += pairs * sizes.forward_flops(0, seen)
            chunked = phase == "update" and answers * sizes.vocabulary > head.CHUNK_ELEMENTS
            work.again += again * sizes.forward_flops(positions, seen) + chunked * flops_head
            work.tokens += sum(map(len, own))

    def _encoding(self, policy: Policy, sizes: Architecture, prompt: Prompt) -> float:
        """Operations of the vision tower for a prompt; none where its features are there already."""
        if sizes.tower is None or prompt.vision.empty:
            return 0.0
        key = id(policy), id(prompt.vision)
        if not policy.model.tower_inside:
            if key in self._encoded:
                return 0.0
            self._encoded.add(key)
        return sizes.tower.prompt_flops(prompt)

    def _sizes(self, policy: Policy) -> Architecture | None:
        """None, with a warning, for a model whose costs are not known."""
        if id(policy) not in self._costs:
            try:
                self._costs[id(policy)] = from_config(policy.model.hf.config, policy.source)
            except ConfigError as error:
                log.warning("meter: no floors: %s", error)
                self._costs[id(policy)] = None
        return self._costs[id(policy)]

    def take(self, seconds: dict[str, float], ahead: Sequence[Prompt] = ()) -> Metrics:
        """`meter/...` of a step, means over the ranks; starts anew.

        Args:
            seconds: by phase, and `step`, as `PhaseTimer.take` gives them.
            ahead: prompts of the next step whose features stay.
        """
        metrics, model = Metrics(), 0.0
        for phase, work in self._work.items():
            model += work.model
            floor = (work.model + work.again) / self.peak.flops + work.reading
            metrics.mean(f"meter/{phase}_floor", [floor])
            if phase in seconds and floor > 0:
                metrics.add(f"meter/{phase}_over_floor", Ratio.of([seconds[phase]], [floor]))
                metrics.add(f"meter/{phase}_mfu", Ratio.of([work.model], [seconds[phase] * self.peak.flops]))
        step = seconds["step"]
        if self._work:
            tokens = self._work.get("rollout", self._work.get("update", Work())).tokens
            metrics.add("meter/mfu", Ratio.of([model], [step * self.peak.flops]))
            metrics.add("meter/tokens_per_second", Ratio.of([tokens], [step]))
            timed = sum(seconds.get(phase, 0.0) for phase in self._work)
            metrics.add("meter/outside_share", Ratio.of([max(step - timed, 0.0)], [step]))
        metrics.max("meter/peak_memory_gib", peak_memory(self._policy.device) / GIB)
        self._work.clear()
        kept = {id(prompt.vision) for prompt in ahead}
        self._encoded = {(policy, vision) for policy, vision in self._encoded if vision in kept}
        return metrics


def peak_memory(device: torch.device) -> float:
    """Most bytes held: on a GPU since the last call, on a CPU by the process since its start."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(most)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few matrix products."""
    size = 8192 if device.type == "cuda" else 768
    one = torch.full((size, size), 0.5, device=device, dtype=dtype)
    return 2.0 * size**3 / best_seconds(lambda: torch.mm(one, one), device)


def measured_bandwidth(device: torch.device) -> float:
    """Bytes a second of the best of a few copies, read and written."""
    count = 1 << (28 if device.type == "cuda" else 23)
    one, other = (torch.zeros(count, device=device) for _ in range(2))
    return 2.0 * one.nbytes / best_seconds(lambda: other.copy_(one), device)


def best_seconds(work: Callable[[], object], device: torch.device, tries: int = 5) -> float:
    """Of a few tries after one that warms up."""
    found = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found[1:])
