"""The typed schema of a run. Every field has one home, one default and one line that says what it does.

`configs/` holds the Hydra groups; `load` turns a composed configuration into a `RunConfig` and refuses an unknown
field or a wrong type in one sentence that names the field. A node with `_target_` (method, judge, rollout.engine) is
checked against the dataclass it names when it is built. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from visd.config_train import (
    CheckpointSection,
    ParallelSection,
    RolloutSection,
    TrackingSection,
    TrainSection,
    ValidationSection,
)
from visd.types import VisdError


class ConfigError(VisdError):
    """A configuration that cannot run; the message names the field."""


@dataclass
class RunSection:
    dir: str = "outputs/run"  # folder of everything the run writes
    seed: int = 0  # decides data order, sampled tokens and initial weights made here
    resume: str = (
        "auto"  # auto: newest checkpoint in run.dir if any; never: refuse a folder with steps; or a checkpoint's path
    )
    stop_file: str = ""  # once this file is there, the run takes it away, writes a checkpoint after its current step and ends with status 0; empty looks for none


@dataclass
class LoraSection:
    rank: int = 0  # width of the adapters; 0 trains the weights themselves
    alpha: float = 32.0  # an adapter's product is scaled by alpha / rank
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )  # linear layers of the language model that get one, by the last part of their names
    vision_targets: list[str] = field(default_factory=list)  # the same in the vision tower; empty leaves it out
    freeze_a: bool = False  # train B alone: the average of adapters is then exactly that of the weights
    quantize: str = "none"  # how linear layers of the language model hold their frozen weights: none, or nf4 (4 bit, QLoRA; parallel none or ddp)


@dataclass
class ModelSection:
    path: str = "???"  # Hugging Face folder or hub id
    dtype: str = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU; or float32, bfloat16
    attention: str = "sdpa"  # transformers' attention implementation: sdpa, eager, flash_attention_2
    freeze: list[str] = field(
        default_factory=lambda: ["vision"]
    )  # any of vision (the whole tower), encoder (the tower without its projector), projector, language
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    lora: LoraSection = field(default_factory=LoraSection)


@dataclass
class FramesSection:
    cache_mb: int = 2048  # memory for decoded frames, kept for the run
    workers: int = 4  # processes that decode, each rank's own, ahead of need; 0 decodes in the run's own process, where a decoder that hangs or crashes takes the run with it
    memory_mb: int = 4096  # memory that decoding one file may take; a file that needs more is dropped
    store: str = ""  # folder for decoded frames, shared by processes and runs; empty keeps none on disk
    store_gb: float = 100.0  # most that the folder may hold; what was not used longest goes first


@dataclass
class DataSection:
    root: str = "???"  # folder below which every media path lies
    train: list[str] = field(default_factory=list)  # manifests (JSONL or Parquet), relative to root
    validation: list[str] = field(default_factory=list)  # manifests for evaluation while developing
    test: list[str] = field(default_factory=list)  # manifests for the final number
    max_dropped: float = 0.01  # largest share of dropped samples before the run stops
    frames: FramesSection = field(default_factory=FramesSection)


@dataclass
class VideoSection:
    fps: float = 2.0  # frames a second to sample
    min_frames: int = 4  # a shorter sampling is raised to this many frames; a video with fewer is dropped
    max_frames: int = 768  # a longer one is lowered
    min_pixels: int = 3136  # least pixels of a frame
    max_pixels: int = 602112  # most pixels of a frame
    total_pixels: int = 90316800  # most pixels of a video; two frames that share a temporal patch count once
    timeout: float = 60.0  # s, longest decoding of one file before it is dropped
    backend: str = "pyav"  # who reads the chosen frames: pyav, or decord or torchcodec with the extra of that name


@dataclass
class PromptSection:
    system: str = ""  # system message; empty sends none
    instruction: bool = True  # add the instruction for the answer's type to the question
    max_tokens: int = 16384  # longest prompt
    over_budget: str = "drop"  # what becomes of a longer one: drop (counted), frames (as many as fit, not below video.min_frames) or pixels (smaller frames, not below video.min_pixels)
    layout: str = "native"  # a video is one for the model too (native), or its frames are images after their number and time (timestamped_frames)
    key_frames: list[str] = field(
        default_factory=list
    )  # question families whose training prompts, never those of evaluations, also show the key frames of their evidence; all takes every family; empty: the student is shown no evidence
    position_rule: str = (
        "vllm"  # Qwen2.5-VL after a video: vllm continues from the largest position + 1, transformers as its 5.19
    )
    video: VideoSection = field(default_factory=VideoSection)


@dataclass
class RewardSection:
    weights: dict[str, float] = field(
        default_factory=lambda: {"accuracy": 1.0, "format": 0.2}
    )  # part to weight; parts not named are logged with weight 0
    number_tolerance: float = 0.0  # absolute tolerance for numbers, where a sample has none of its own
    gate_seconds: float = 1.0  # symmetric time gate between a spatial claim and a gold key frame
    spatial_match: str = "soft"  # object names: soft (equal, contained, shared word) or exact
    spatial_normaliser: str = "claims"  # divide the spatial score by all claims (penalises spam) or by matched ones
    spatial_aggregate: str = "mean"  # over the gold objects of a claim: mean, or max as Open-o3-Video
    temporal_sigma: float = 4.0  # s, initial width of the temporal point reward
    temporal_sigma_end: float = 1.0  # s, its final width
    temporal_sigma_until: float = 0.75  # share of the run at which the final width is reached


@dataclass
class TeacherSection:
    weights: str = "ema"  # ema, live, frozen, snapshot, trust_region, external
    path: str = ""  # external: Hugging Face folder or hub id of another model with the student's vocabulary; every process holds it whole
    chat: str = (
        "same"  # external: same refuses a model whose chat template writes other prompts, own asks each in its own
    )
    rate: float = 0.05  # ema: theta_T <- (1 - rate) theta_T + rate theta_S after each step; trust_region: share of the current policy's logits beside the initial ones
    snapshot_every: int = 10  # snapshot: steps between copies
    ema_dtype: str = "float32"  # dtype of the average; bfloat16 reproduces the published, nearly frozen teacher
    context: list[str] = field(
        default_factory=lambda: ["answer", "window", "key_times", "feedback"]
    )  # blocks of the privileged text, in this order
    max_feedback_chars: int = 1000  # feedback is cut here
    overlap_k: int = 0  # log how teacher and student agree on their most probable tokens, this many of each (at most the method's own top_k), as overlap/; 0 logs nothing
    layout: str = "facts"  # texts around the blocks: facts, or those published for sdpo, opsd, antisd


@dataclass
class ObjectiveSection:
    advantage_std: bool = True  # divide by the group's standard deviation
    advantage_std_ddof: int = 1  # 1: sample deviation, 0: population deviation
    advantage_eps: float = 1e-4  # added to the standard deviation
    judge_weight: float = 0.0  # weight of the mean judge score in the direction
    eps_low: float = 0.2  # lower clip of the importance ratio
    eps_high: float = 0.2  # upper clip of the importance ratio
    ratio: str = "token"  # importance ratio of each token, or of the whole answer (sequence: GSPO, geometric mean of its tokens' ratios)
    surrogate: str = "clip"  # clip: PPO's minimum; cispo: the clipped ratio, detached, times A log p, so that no token loses its gradient
    old_logp: str = "detached"  # ratio to detached: the current policy (one update a rollout); engine: as sampled; start: the policy at the step's start, one more forward
    mini_batches: int = 1  # updates a step, each on an equal share of its prompts
    importance_cap: float = 0.0  # weigh tokens by min(p of the trainer / p of the engine, cap); 0 does not
    kl_weight: float = 0.0  # weight of KL(policy, reference), k3 estimator; 0 makes no reference pass
    aggregation: str = "token"  # token: mean over all tokens of the step; sequence: mean over rollouts of token means; constant: sum over tokens / (rollouts * rollout.max_new_tokens)
    dynamic_sampling: str = "off"  # groups without variance: off keeps them (as 0), drop leaves them out, refill samples other prompts instead
    refill_rounds: int = 3  # refill: most batches of further prompts a step; then it goes on with fewer groups
    overlong_share: float = 0.0  # last share of rollout.max_new_tokens over which the return falls linearly
    overlong_penalty: float = 1.0  # what an answer of rollout.max_new_tokens loses of its return


@dataclass
class OptimSection:
    algorithm: str = "adamw"  # adamw; or muon for the matrices and AdamW for the rest, with parallel none and ddp
    lr: float = 1e-6  # peak learning rate
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # AdamW
    momentum: float = 0.95  # Muon
    eps: float = 1e-8  # AdamW
    weight_decay: float = 0.0  # on matrices only
    schedule: str = "constant"  # constant or cosine
    warmup_steps: int = 0  # linear warm-up
    min_lr_ratio: float = 0.0  # cosine: final learning rate over the peak
    max_grad_norm: float = 1.0  # global gradient-norm clip


@dataclass
class SftSection:
    privileged_share: float = 0.3  # share of prompts that carry a privileged block, so that the model learns to use one
    context: list[str] = field(
        default_factory=lambda: ["answer", "window", "key_times", "feedback"]
    )  # blocks that may appear in it


@dataclass
class RunConfig:
    """A whole run."""

    stage: str = "rl"  # rl, or sft for supervised training on reasoning traces
    check_only: bool = False  # validate files, model and memory, then stop
    run: RunSection = field(default_factory=RunSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    train: TrainSection = field(default_factory=TrainSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    prompt: PromptSection = field(default_factory=PromptSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    reward: RewardSection = field(default_factory=RewardSection)
    judge: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "visd.judge.rule.RuleJudge"}
    )  # who reports on rollouts
    teacher: TeacherSection = field(default_factory=TeacherSection)
    method: dict[str, Any] = field(default_factory=lambda: {"_target_": "visd.methods.grpo.GRPO"})  # the algorithm
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    optim: OptimSection = field(default_factory=OptimSection)
    sft: SftSection = field(default_factory=SftSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    validation: ValidationSection = field(default_factory=ValidationSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)


CHOICES: dict[str, tuple[str | bool | int, ...]] = {
    "checkpoint.export": ("final", "all", "never"),
    "stage": ("rl", "sft"),
    "train.shared_prefix": ("auto", True, False),
    "train.rehearse": ("auto", "always", "never"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.lora.quantize": ("none", "nf4"),
    "model.attention": ("sdpa", "eager", "flash_attention_2"),
    "prompt.over_budget": ("drop", "frames", "pixels"),
    "prompt.layout": ("native", "timestamped_frames"),
    "prompt.position_rule": ("vllm", "transformers"),
    "prompt.video.backend": ("pyav", "decord", "torchcodec"),
    "rollout.max_staleness": (0, 1),
    "reward.spatial_match": ("soft", "exact"),
    "reward.spatial_normaliser": ("claims", "matched"),
    "reward.spatial_aggregate": ("mean", "max"),
    "teacher.weights": ("ema", "live", "frozen", "snapshot", "trust_region", "external"),
    "teacher.chat": ("same", "own"),
    "teacher.layout": ("facts", "sdpo", "opsd", "antisd"),
    "teacher.ema_dtype": ("float32", "bfloat16"),
    "objective.old_logp": ("detached", "engine", "start"),
    "objective.ratio": ("token", "sequence"),
    "objective.surrogate": ("clip", "cispo"),
    "objective.aggregation": ("token", "sequence", "constant"),
    "objective.dynamic_sampling": ("off", "drop", "refill"),
    "optim.algorithm": ("adamw", "muon"),
    "optim.schedule": ("constant", "cosine"),
    "parallel.mode": ("none", "ddp", "zero2", "zero3", "fsdp2"),
    "tracking.wandb": ("disabled", "offline", "online"),
}


def load(composed: DictConfig | dict[str, Any]) -> RunConfig:
    """Check a composed configuration against the schema.

    Raises:
        ConfigError: unknown field, wrong type, missing value or a value outside its choices, in one sentence.
    """
    schema = OmegaConf.structured(RunConfig)
    try:
        # As plain values: a typed node that was opened for `+field=value` would be taken with its unknown field.
        plain = OmegaConf.to_container(composed) if isinstance(composed, DictConfig) else composed
        config = OmegaConf.to_object(OmegaConf.merge(schema, plain))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_sentence(error)) from None
    assert isinstance(config, RunConfig)
    _check_choices(config)
    _check_ranges(config)
    return config


def build(node: dict[str, Any], where: str, **extra: Any) -> Any:
    """Build the dataclass that `node._target_` names from the node's other fields and `extra`.

    Raises:
        ConfigError: no such class, a field it does not have, or a value of another type.
    """
    fields = dict(node)
    target = fields.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"{where}._target_ must be the dotted path of a class, got {target!r}.")
    module_name, _, class_name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"{where}._target_ = {target!r} cannot be imported: {error}.") from error
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in fields:
        if name not in known:
            raise ConfigError(f"{where}.{name} is not a field of {class_name}; it has {', '.join(sorted(known))}.")
    try:
        settings = OmegaConf.to_container(OmegaConf.merge(_settings_schema(cls, set(extra)), fields))
    except OmegaConfBaseException as error:
        raise ConfigError(_one_sentence(error, prefix=f"{where}.")) from None
    assert isinstance(settings, dict)
    return cls(**{str(k): v for k, v in settings.items()}, **extra)


def _settings_schema(cls: type, exclude: set[str]) -> DictConfig:
    """The fields of `cls` that come from configuration, typed."""
    hints = get_type_hints(cls)
    spec = []
    for f in dataclasses.fields(cls):
        if not f.init or f.name in exclude:
            continue
        spec.append(
            (f.name, hints[f.name], field(default_factory=f.default_factory))
            if f.default_factory is not dataclasses.MISSING
            else (f.name, hints[f.name], field(default="???" if f.default is dataclasses.MISSING else f.default))
        )
    return OmegaConf.structured(dataclasses.make_dataclass(cls.__name__ + "Settings", spec))


def _one_sentence(error: OmegaConfBaseException, prefix: str = "") -> str:
    first = str(error).strip().splitlines()[0].rstrip(".")
    name = getattr(error, "full_key", None)
    if name:
        return f"{prefix}{name}: {first}."
    return f"{prefix.rstrip('.')}: {first}." if prefix else f"{first}."


def _check_choices(config: RunConfig) -> None:
    for name, choices in CHOICES.items():
        value = _lookup(config, name)
        if value not in choices:
            known = ", ".join(str(c).lower() for c in choices)
            raise ConfigError(f"{name}: {value!r} is not one of {known}.")
    for part in config.model.freeze:
        if part not in FREEZABLE:
            raise ConfigError(f"model.freeze: {part!r} is not one of {', '.join(FREEZABLE)}.")


FREEZABLE = ("vision", "encoder", "projector", "language")
POSITIVE = (
    "train.steps", "train.prompts_per_step", "train.micro_batch_tokens", "rollout.n", "rollout.temperature",
    "rollout.max_new_tokens", "optim.lr", "optim.max_grad_norm", "prompt.max_tokens", "prompt.video.fps",
    "data.frames.memory_mb", "data.frames.store_gb", "prompt.video.min_frames", "prompt.video.max_frames", "prompt.video.total_pixels", "prompt.video.timeout",
    "teacher.snapshot_every", "model.lora.alpha", "objective.mini_batches",
)  # fmt: skip
SHARES = ("data.max_dropped", "teacher.rate", "sft.privileged_share", "rollout.top_p", "reward.temporal_sigma_until", "objective.overlong_share", "train.max_mention_rate", "train.max_copied_share")  # fmt: skip


def _check_ranges(config: RunConfig) -> None:
    for name in POSITIVE:
        if not (value := _lookup(config, name)) > 0:
            raise ConfigError(f"{name}: {value!r} must be greater than 0.")
    for name in SHARES:
        if not 0 <= (value := _lookup(config, name)) <= 1:
            raise ConfigError(f"{name}: {value!r} must lie between 0 and 1.")
    if config.teacher.path and config.teacher.weights != "external":
        raise ConfigError(f"teacher.path: is read by teacher.weights=external only, which is {config.teacher.weights}.")
    video = config.prompt.video
    if video.min_frames > video.max_frames:
        raise ConfigError("prompt.video.min_frames: must not be greater than prompt.video.max_frames.")
    if video.max_frames < 2:
        raise ConfigError("prompt.video.max_frames: must be at least 2, frames are taken in pairs.")
    for name in (
        "parallel.lifeline_seconds",
        "model.lora.rank",
        "rollout.max_mismatch",
        "objective.importance_cap",
        "tracking.peak_tflops",
        "tracking.peak_gbps",
    ):
        if _lookup(config, name) < 0:
            raise ConfigError(f"{name}: must not be negative.")
    if config.objective.importance_cap and config.objective.old_logp == "engine":
        raise ConfigError("objective.importance_cap: old_logp=engine corrects for the engine already; set one of them.")
    if video.min_pixels > video.max_pixels:
        raise ConfigError("prompt.video.min_pixels: must not be greater than prompt.video.max_pixels.")
    if config.objective.mini_batches > 1 and config.objective.old_logp == "detached":
        raise ConfigError("objective.old_logp: detached has no ratio after a first update; take start or engine.")
    if config.objective.dynamic_sampling != "off" and config.objective.judge_weight > 0:
        raise ConfigError("objective.dynamic_sampling: chooses groups before they are judged; set judge_weight=0.")
    if config.rollout.max_staleness and config.stage == "rl":
        if config.objective.old_logp != "engine" and not config.objective.importance_cap:
            raise ConfigError(
                "rollout.max_staleness: 1 learns from answers of older weights, which a ratio has to correct for; set "
                "objective.old_logp=engine (clipped), or objective.importance_cap (truncated)."
            )
        if config.objective.dynamic_sampling == "refill":
            raise ConfigError(
                "rollout.max_staleness: 1 has a step's answers sampled by one version of the weights, and "
                "objective.dynamic_sampling=refill samples more by a newer one; take drop or off."
            )


def _lookup(config: RunConfig, dotted: str) -> Any:
    return reduce(getattr, dotted.split("."), config)
