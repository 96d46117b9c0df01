"""All the parts of a run, built once from its configuration."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from visd.config import ConfigError, RunConfig, TeacherSection, build
from visd.data.key_frames import KeyFrames, splice
from visd.data.manifest import load_manifest
from visd.data.prompts import PromptBuilder
from visd.data.sampler import StepSampler
from visd.judge.base import Judge, JudgeServices
from visd.media.processor import PromptProcessor
from visd.methods.base import Method
from visd.observe.timing import PhaseTimer
from visd.observe.tracker import Tracker
from visd.parallel import Backend, launch
from visd.policy.policy import Policy, compute_dtype
from visd.reward.combine import check_section
from visd.rollout.base import Limits, RolloutEngine, Sampling
from visd.seeding import derive_seed, generator
from visd.teacher.external import ExternalTeacher, check_media, load_external
from visd.teacher.view import check_blocks
from visd.teacher.weights import TeacherWeights
from visd.train.ahead import Ahead
from visd.train.leaks import LeakWatch
from visd.train.meter import Meter
from visd.train.optimizer import optimizer_factory
from visd.train.sharing import share_where_possible, wants_sharing
from visd.types import DroppedSample, Prompt, Sample, VisdError

log = logging.getLogger(__name__)


@dataclass
class Drops:
    """Samples that could not be used: which, and why."""

    samples: int  # distinct samples of the run's data
    max_share: float
    by_id: dict[str, str] = field(default_factory=dict)  # sample id to reason

    @property
    def reasons(self) -> Counter[str]:
        return Counter(self.by_id.values())

    def add(self, error: DroppedSample) -> None:
        """Count a sample once.

        Raises:
            VisdError: more than `data.max_dropped` of the samples are gone.
        """
        if error.sample_id in self.by_id:
            return
        self.by_id[error.sample_id] = error.reason
        log.warning("dropped %s (%s)", error, error.reason)
        self._check(self.by_id, f"the last was {error}")

    def check_all(self, backend: Backend) -> None:
        """Hold the cap for what all ranks dropped together. All ranks call it.

        Raises:
            VisdError: as `add`, on every rank.
        """
        count = backend.all_reduce(torch.tensor(float(len(self.by_id))))
        if count.item() > self.max_share * self.samples:  # or less: a sample may have been dropped by several ranks
            everywhere = union(backend, self.by_id)
            self._check(everywhere, f"some of them were {', '.join(sorted(everywhere)[:3])}")

    def _check(self, by_id: dict[str, str], which: str) -> None:
        if len(by_id) > self.max_share * self.samples:
            raise VisdError(
                f"{len(by_id)} of {self.samples} samples were dropped ({_counts(Counter(by_id.values()))}), more than "
                f"data.max_dropped = {self.max_share:g} allows; {which}. Repair the data or raise the cap."
            )


def union(backend: Backend, by_id: dict[str, str]) -> dict[str, str]:
    """What all ranks know of samples; a sample that several met counts once. All ranks call it."""
    return {name: value for known in backend.all_gather_object(by_id) for name, value in known.items()}


def _counts(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))


@dataclass
class Rehearsal:
    """What `visd.train.rehearse` ran and what it took."""

    sample_id: str
    prompt: int  # tokens
    tokens: int  # of the largest micro-batch
    forecast: int  # bytes
    peaks: dict[str, int] = field(default_factory=dict)  # bytes by phase, the most of any rank

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    accuracy: float


@dataclass
class Run:
    """What the loop works with."""

    config: RunConfig
    dir: Path
    backend: Backend
    policy: Policy
    processor: PromptProcessor
    builder: PromptBuilder
    sampler: StepSampler
    engine: RolloutEngine
    judge: Judge | None
    method: Method
    teacher: TeacherWeights | None  # None for a method without one, and for an external one
    external: ExternalTeacher | None  # with teacher.weights=external
    reference: TeacherWeights | None  # the initial weights, when a KL term needs them
    drops: Drops
    reduced: dict[str, str]  # sample id to what was reduced to fit prompt.max_tokens, frames or pixels
    timer: PhaseTimer
    meter: Meter
    leaks: LeakWatch
    ahead: Ahead = field(default_factory=Ahead)  # answers for the step to come, with rollout.max_staleness=1
    tracker: Tracker | None = None  # set when the first step is known
    step: int = 0  # optimiser steps done
    policy_version: int = 0  # optimiser steps that changed the weights
    questions: Sequence[Sample] = ()  # what validation.every asks, over all ranks
    best: Best | None = None  # with validation.every
    key_frames: KeyFrames | None = None  # with prompt.key_frames
    rehearsal: Rehearsal | None = None  # of this start
    unshared: list[str] = field(default_factory=list)  # models that train.shared_prefix=auto cannot share in, and why

    def sampling_weights(self) -> AbstractContextManager[object]:
        """Holds the weights whole for an engine that samples from the policy's own module. All ranks enter it."""
        return self.backend.whole_weights() if self.engine.uses_module else nullcontext()

    def sync_engine(self) -> None:
        """Give the engine the newest weights, once it owes no answers by older ones. All ranks call it."""
        self.ahead.wait(self.backend)
        with self.timer.phase("sync"):
            self.engine.sync(self.backend, self.policy_version)

    def forget_features(self) -> None:
        """Free the features at the end of a step, but those of the next step's prompts where these are there already."""
        self.policy.forget_features(keep={prompt.sample_id for prompt in self.ahead.prompts})

    @property
    def reductions(self) -> Counter[str]:
        """How many samples were reduced, by what was reduced."""
        return Counter(self.reduced.values())

    @cached_property
    def refill_sampler(self) -> StepSampler:
        """The order of the prompts that dynamic sampling takes instead of groups without variance."""
        seed = derive_seed("refill", self.config.run.seed)
        return StepSampler(self.sampler.samples, self.sampler.prompts_per_step, seed)

    @property
    def videos_decoded(self) -> int:
        """By this process so far; an external teacher that wants frames of other sizes decodes its own."""
        processors = [self.processor, *([self.external.processor] if self.external is not None else [])]
        counters = {id(processor.counters): processor.counters for processor in processors}
        return sum(counter.videos_decoded for counter in counters.values())

    @property
    def sampling(self) -> Sampling:
        return sampling_of(self.config)

    def step_prompts(self, step: int) -> list[tuple[Sample, Prompt]]:
        """This rank's samples of a step, with their prompts; media of the step after it are decoded meanwhile.

        All ranks call it.
        """
        rank, ranks = self.backend.rank, self.backend.world_size
        samples, following = self.sampler.local(step, rank, ranks), self.sampler.local(step + 1, rank, ranks)
        with self.timer.phase("prompts"):
            with self.backend.together():
                questions = [sample.question() for sample in [*samples, *following]]
                self.builder.prefetch(questions)
                if self.external is not None:
                    self.external.builder.prefetch(questions)
                pairs = self.prompts(samples)
            self.drops.check_all(self.backend)
        return pairs

    def prompts(self, samples: Sequence[Sample]) -> list[tuple[Sample, Prompt]]:
        """Samples with their prompts; one that cannot be used is counted and left out."""
        pairs = []
        for sample in samples:
            try:
                prompt = self.builder.build(sample.question())
            except DroppedSample as error:
                self.drops.add(error)
                continue
            pairs.append((sample, prompt))
            if prompt.reduced and sample.id not in self.reduced:
                self.reduced[sample.id] = prompt.reduced
                log.info("sample %r: fewer %s, to fit prompt.max_tokens", sample.id, prompt.reduced)
        return pairs


def _device_type() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_samples(config: RunConfig, split: str) -> list[Sample]:
    """Samples of all manifests of a split.

    Raises:
        ConfigError: the split names no manifest.
        ManifestError: a line that is not a valid record, or an id that stands twice.
    """
    root = Path(config.data.root)
    manifests: list[str] = getattr(config.data, split)
    if not manifests:
        raise ConfigError(f"data.{split}: names no manifest; give at least one below data.root.")
    samples = [sample for name in manifests for sample in load_manifest(root / name, root)]
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ConfigError(f"data.{split}: sample id {sample.id!r} stands in two manifests; ids must be unique.")
        seen.add(sample.id)
    return samples


def training_samples(config: RunConfig) -> tuple[list[Sample], KeyFrames | None]:
    """Samples of the train split as the student is asked them, and with `prompt.key_frames` what that adds to them.

    Raises:
        ConfigError: see `load_samples`, and `prompt.key_frames` where there is nothing to add.
    """
    samples, families = load_samples(config, "train"), config.prompt.key_frames
    return splice(samples, families) if families else (samples, None)


def validation_questions(config: RunConfig) -> list[Sample]:
    """What is asked at every evaluation while training.

    Raises:
        ConfigError: `data.validation` names no manifest.
    """
    samples = load_samples(config, "validation")
    number = config.validation.samples or len(samples)
    order = generator("validation", config.run.seed).permutation(len(samples)).tolist()
    return [samples[i] for i in order[:number]]


def set_up(config: RunConfig) -> Run:
    """Build every part. Nothing is written yet and no step is taken."""
    mode = config.parallel.mode
    if mode in ("zero2", "zero3", "fsdp2") and config.optim.algorithm == "muon":
        raise ConfigError(
            f"optim.algorithm: muon needs whole matrices, which {mode} cuts up; take adamw, or none or ddp."
        )
    if mode in ("zero2", "zero3", "fsdp2") and config.model.lora.quantize != "none":
        raise ConfigError(f"model.lora.quantize: {mode} cuts weights up, and packed ones are whole; take none or ddp.")
    bf16 = compute_dtype(config.model, _device_type()) == torch.bfloat16
    backend = launch(config.parallel, bf16=bf16, threads=config.train.threads)
    torch.manual_seed(config.run.seed)
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, decides nothing
    if config.train.prompts_per_step % backend.world_size:
        raise ConfigError(
            f"train.prompts_per_step: {config.train.prompts_per_step} does not divide among "
            f"{backend.world_size} processes."
        )
    check_section(config.reward)
    check_blocks([*config.teacher.context, *config.sft.context])
    processor = PromptProcessor.load(config.model.path, config.prompt, Path(config.data.root), config.data.frames)
    samples, key_frames = training_samples(config)
    questions = validation_questions(config) if config.validation.every else []
    method: Method = build(config.method, "method")
    if config.stage == "rl":
        method.check(samples, config)
    judge: Judge | None = build(config.judge, "judge") if config.judge.get("_target_") else None
    # DeepSpeed keeps float32 masters of its own; elsewhere the weights themselves are float32.
    # Adapters are float32 of themselves, so that their frozen base need not be; fsdp2 wants one dtype a layer.
    plain = mode.startswith("zero") or (config.model.lora.rank and mode != "fsdp2")
    policy = Policy.load(config.model, backend.device, None if plain or not bf16 else torch.float32, config.run.seed)
    rl = config.stage == "rl"
    share = wants_sharing(config)
    unshared = [share_where_possible(policy, config)] if share else []
    engine: RolloutEngine = build(config.rollout.engine, "rollout.engine", policy=policy, tokenizer=processor.tokenizer)
    engine.open(limits_of(config, backend.world_size))
    engine.use(processor)
    if engine.shows_media and config.rollout.max_staleness:
        raise ConfigError("rollout.max_staleness: answers with frames in them are not kept for a later step; take 0.")
    if rl and config.rollout.max_staleness and not engine.elsewhere:
        log.warning(
            "rollout.max_staleness: 1 saves no time here: an engine in this process does not sample during updates"
        )
    if judge is not None:
        judge.open(JudgeServices(Path(config.run.dir) / "judge", processor.frames, backend.rank, backend.world_size))
    backend.setup(policy.model, optimizer_factory(config.optim, policy.model), config.optim.max_grad_norm)
    taught = rl and method.uses_teacher
    outside = taught and config.teacher.weights == "external"
    teacher = attached(config.teacher, backend) if taught and not outside else None
    external = load_external(config, policy, processor, method.crosses_tokenizers) if outside else None
    if external is not None:
        check_media(external, samples, policy if engine.shows_media else None)
    if share and external is not None:
        unshared.append(share_where_possible(external.policy, config))
    frozen = replace(config.teacher, weights="frozen")
    reference = attached(frozen, backend) if rl and config.objective.kl_weight > 0 else None
    return Run(
        config=config,
        dir=Path(config.run.dir),
        backend=backend,
        policy=policy,
        processor=processor,
        builder=PromptBuilder(processor, config.prompt),
        sampler=StepSampler(samples, config.train.prompts_per_step, config.run.seed),
        engine=engine,
        judge=judge,
        method=method,
        teacher=teacher,
        external=external,
        reference=reference,
        drops=Drops(len(samples), config.data.max_dropped),
        reduced={},
        unshared=[reason for reason in unshared if reason],
        questions=questions,
        key_frames=key_frames,
        meter=Meter(config, policy, not engine.elsewhere, engine.uses_module),
        leaks=LeakWatch(config.train),
        timer=PhaseTimer(torch.cuda.synchronize if backend.device.type == "cuda" else None),
    )


def sampling_of(config: RunConfig) -> Sampling:
    """How a run draws tokens."""
    r = config.rollout
    return Sampling(r.n, r.temperature, r.top_p, r.top_k, r.max_new_tokens)


def limits_of(config: RunConfig, processes: int) -> Limits:
    """What a run will ask of its engine."""
    return Limits(sampling_of(config), config.prompt.max_tokens + config.rollout.max_new_tokens, processes)


def attached(section: TeacherSection, backend: Backend) -> TeacherWeights:
    """Teacher weights that begin as the student is now."""
    weights = TeacherWeights(section)
    weights.attach(backend)
    return weights
