"""The sections `checkpoint`, `train`, `rollout`, `parallel`, `validation` and `tracking` of the schema; `visd.config` holds the others and is where all are imported from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class CheckpointSection:
    every: int = 50  # optimiser steps between checkpoints; 0 keeps only the final one
    keep: int = 2  # newest checkpoints kept; 0 keeps all
    export: str = (
        "final"  # Hugging Face folder: final writes run.dir/model at the end, all also checkpoints/*/model, never none
    )
    push_to_hub: str = ""  # repository of the Hugging Face hub (owner/name) that gets the exported model when the run is finished, with the token in the environment's HF_TOKEN; empty pushes nothing
    hub_private: bool = True  # whether a repository that is made for it is private


@dataclass
class TrainSection:
    steps: int = 100  # optimiser steps of the whole run
    stop_after: int = 0  # stop cleanly after that many steps of this start; 0 runs to the end
    prompts_per_step: int = 8  # over all ranks
    micro_batch_tokens: int = 16384  # most prompt + response tokens in one forward of one rank, padding included
    shared_prefix: bool | str = (
        "auto"  # auto: update and teacher run a group's prompt once where the model's attention can, else once a rollout, and the log says which and why; true: once, or the run is refused; false: once a rollout
    )
    rehearse: str = "auto"  # before the first step of a start, run the largest one that the limits admit, which changes nothing, to see whether memory suffices: auto (on a GPU), always, never
    max_mention_rate: float = 0.2  # share of answers that speak of what only the teacher is shown (leak/mention_rate), on average of the last 10 steps, above which the run stops; from half of it on the log warns; 0 never
    max_copied_share: float = 0.0  # the same for the share of an answer that stands in the teacher's text word for word (leak/copied_share); where that text is a solution, answers like it are wanted; 0 never
    threads: int = 0  # CPU threads of a process; 0 divides the cores among the local ranks
    deterministic: bool = True  # use deterministic kernels, so that resume is bit-exact


@dataclass
class RolloutSection:
    n: int = 8  # answers sampled a prompt
    temperature: float = 1.0  # also divides the logits of student and teacher
    top_p: float = 1.0  # nucleus of the sampled tokens
    top_k: int = 0  # most probable tokens to sample from; 0 takes all
    max_new_tokens: int = 768  # an answer of this length without an end is cut and counted as truncated
    batch_prompts: int = 0  # prompts generated together on a rank; 0 takes all of the step
    max_mismatch: float = 0.2  # nats, mean |log p of trainer - log p of engine| that stops the run; 0 never
    max_staleness: int = 0  # 1: sample a step's answers with the weights before the update of the step before it, so that an engine elsewhere (rollout=vllm_server) samples while the trainer updates; needs objective.old_logp=engine or objective.importance_cap; 0: with the newest weights
    engine: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "visd.rollout.transformers_engine.TransformersEngine"}
    )  # who samples


@dataclass
class ParallelSection:
    mode: str = "none"  # none, ddp, zero2, zero3, fsdp2
    offload_optimizer: bool = False  # zero: optimiser state in CPU memory
    timeout_minutes: float = 10.0  # longest wait of a collective before the run stops
    lifeline_seconds: int = 30  # a machine that gives no sign of life for so long ends the run, a process that dies does so at once; 0 leaves the others to wait for timeout_minutes


@dataclass
class ValidationSection:
    every: int = 0  # optimiser steps between evaluations on data.validation, which also follow the last step; 0 never
    samples: int = 64  # questions, drawn once by run.seed and asked greedily; 0 takes all
    keep_best: bool = True  # keep the weights of the best accuracy so far in run.dir/best, a Hugging Face folder


@dataclass
class TrackingSection:
    table_every: int = 10  # steps between printed tables of one group; 0 prints none
    dump_every: int = 1  # steps between rollout dumps; 0 writes none
    progress: bool = True  # progress bar
    peak_tflops: float = 0.0  # 10^12 operations a second that one device reaches at most, for meter/mfu and the floors; 0 measures a matrix product at the first step
    peak_gbps: float = 0.0  # 10^9 bytes a second of its memory; 0 measures a copy
    wandb: str = "disabled"  # disabled, offline, online
    project: str = "visd"  # wandb project
