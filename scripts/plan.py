"""Memory and time of a run on paper: from a model, the data and a cluster, for 8 to 1,024 GPUs.

python scripts/plan.py experiment=visd_qwen2_5_vl_7b                               # defaults of the flags below
python scripts/plan.py --gpu a100 --gpus 8,64 --visual 16384 --response 512 experiment=visd_qwen3_vl_8b rollout.n=8

Times are floors: operations over the share of the peak that is reached, plus bytes over bandwidth, phases one after the
other. What a floor leaves out (decoding of videos, judges, waiting for the longest answer, launches) comes on top.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.plan_model import architecture
from visd.cli import compose_config
from visd.config import RunConfig, build, load
from visd.policy.costs import Architecture, sequence
from visd.policy.quantize import STORED
from visd.train.forecast import GIB, Counts, Decoder, activations_of, forecast_of
from visd.types import VisdError

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class GPU:
    """A card and how it reaches others."""

    flops: float  # dense bfloat16, peak
    bandwidth: float  # bytes/s of its memory
    memory: float  # bytes
    link: float  # bytes/s to another card of the node, one direction


GPUS = {
    "a100": GPU(312e12, 2.04e12, 80e9, 300e9),
    "h100": GPU(989e12, 3.35e12, 80e9, 450e9),
    "h200": GPU(989e12, 4.8e12, 141e9, 450e9),
}


@dataclass(frozen=True)
class Data:
    """What an average prompt holds."""

    visual: int = 2048  # tokens of media
    cell: int = 128  # of them, those of one moment
    text: int = 300  # tokens of text
    response: int = 400  # tokens of an answer
    privileged: int = 400  # tokens that the teacher is told besides

    @property
    def prompt(self) -> int:
        return self.visual + self.text


@dataclass(frozen=True)
class Cluster:
    """The machines."""

    gpu: GPU = GPUS["h100"]
    node: int = 8  # GPUs of a node
    network: float = 50e9  # bytes/s of one GPU to other nodes, one direction
    utilisation: float = 0.4  # share of the peak that large products reach


@dataclass(frozen=True)
class Phases:
    """Seconds of one step on one GPU."""

    encode: float
    prefill: float
    decode: float
    teacher: float  # and the reference of a KL term
    update: float
    communication: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))

    @property
    def bottleneck(self) -> str:
        return max(fields(self), key=lambda f: getattr(self, f.name)).name


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU: what always lies there, and what the two largest phases add."""

    resident: float
    rollout: float
    update: float

    @property
    def peak(self) -> float:
        return self.resident + max(self.rollout, self.update)


@dataclass(frozen=True)
class Plan:
    gpus: int
    prompts: int  # a step, over all GPUs
    phases: Phases
    memory: Memory
    tokens_per_second: float  # of one GPU: tokens of prompts and answers, a prompt once for each of its answers


def phases_of(config: RunConfig, model: Architecture, data: Data, cluster: Cluster, gpus: int, prompts: int) -> Phases:
    """Seconds of one step; see `docs/performance.md` for the formulas."""
    own, group, gpu = prompts / gpus, config.rollout.n, cluster.gpu
    speed = cluster.utilisation * gpu.flops
    answers = group * data.response
    shared = config.train.shared_prefix is not False  # auto: all that can be planned can share
    tokens, pairs = sequence(data.prompt, data.response, group, shared)
    passes = 4 if config.model.gradient_checkpointing else 3
    if config.model.lora.rank:
        passes -= 1  # no gradients of the base's weights
    student = passes * (model.forward_flops(tokens, pairs) + model.head_flops(answers))
    t_tokens, t_pairs = sequence(data.prompt, data.privileged + data.response, group, shared)
    teacher = model.forward_flops(t_tokens, t_pairs) + model.head_flops(answers) if has_teacher(config) else 0.0
    if config.objective.kl_weight:
        teacher += model.forward_flops(tokens, pairs) + model.head_flops(answers)
    once = model.forward_flops(data.prompt, data.prompt * (data.prompt + 1) / 2)
    seen = group * (data.prompt + data.response / 2) * model.kv_bytes
    weights = 2 * (model.body + model.head)
    batches = -(-own // (config.rollout.batch_prompts or own))
    trained = trained_parameters(config, model)
    tower = model.tower.flops(data.visual, data.cell) if model.tower else 0.0
    trained_tower = tower_is_trained(config)
    return Phases(
        encode=own * tower * (1 if not trained_tower else 2) / speed,
        prefill=own * once / speed,
        decode=data.response * (batches * weights + own * seen) / gpu.bandwidth,
        teacher=own * teacher / speed,
        update=own * (student + (passes * tower if trained_tower else 0.0)) / speed,
        communication=traffic(config, model, data, gpus, own, trained) / slowest_link(cluster, gpus),
        optimizer=trained * 32 / shards(config, gpus) / gpu.bandwidth,
    )


def slowest_link(cluster: Cluster, gpus: int) -> float:
    return cluster.gpu.link if gpus <= cluster.node else cluster.network


def traffic(config: RunConfig, model: Architecture, data: Data, gpus: int, own: float, trained: float) -> float:
    """Bytes one GPU sends in a step: rings send all but a rank's own part.

    zero3 and fsdp2 gather bfloat16 weights for sampling, for the teacher, and twice or three times a micro-batch; zero3
    sums gradients a micro-batch, fsdp2 once a step in float32. The other modes sum gradients once and, zero2, gather weights.
    """
    mode, part = config.parallel.mode, (gpus - 1) / gpus
    every = model.language + (tower_parameters(model) if tower_is_trained(config) else 0)
    rows = own * config.rollout.n
    rows_a_batch = max(1, config.train.micro_batch_tokens // (data.prompt + data.response))
    batches = max(1.0, rows / rows_a_batch)
    if mode in ("zero3", "fsdp2"):
        gathers = (
            1
            + has_teacher(config)
            + (config.objective.kl_weight > 0)
            + batches * (3 if config.model.gradient_checkpointing else 2)
        )
        sums = 2 * trained * batches if mode == "zero3" else 4 * trained
        return part * (2 * every * gathers + sums)
    if mode == "zero2":
        return part * (2 * trained * batches + 2 * trained)
    return part * 2 * 4 * trained if mode == "ddp" else 0.0


def memory_of(config: RunConfig, model: Architecture, data: Data, gpus: int, prompts: int) -> Memory:
    """Bytes of one GPU."""
    mode, tower = config.parallel.mode, tower_parameters(model)
    inside = tower if tower_is_trained(config) else 0
    trained = trained_parameters(config, model)
    width = 2 if mode.startswith("zero") or (config.model.lora.rank and mode != "fsdp2") else 4
    teacher = config.teacher.weights if has_teacher(config) else None
    adapters = trained if config.model.lora.rank else 0
    packed = model.body if config.model.lora.quantize != "none" else 0  # but for the norms, which are small
    counts = Counts(
        int(model.language - packed + inside + adapters),
        int(trained),
        0 if inside else 2 * tower,
        quantized_bytes=int(STORED * packed),
    )
    resident = forecast_of(counts, mode, gpus, width, teacher)
    optimizer = 0.0 if config.parallel.offload_optimizer else resident.optimizer
    whole = 2 * (model.language + inside) if mode in ("zero3", "fsdp2") else 0.0
    own, tokens = prompts / gpus, config.train.micro_batch_tokens
    together = min(own, config.rollout.batch_prompts or own)
    cache = together * config.rollout.n * (data.prompt + config.rollout.max_new_tokens) * model.kv_bytes
    decoder = Decoder(model.layers, model.hidden, model.mlp)
    activations = activations_of(decoder, tokens, config.model.gradient_checkpointing)
    layer = 4 * model.body / model.layers if mode in ("zero3", "fsdp2") else 0.0
    return Memory(
        resident=resident.total - resident.optimizer + optimizer,
        rollout=whole + cache,
        update=activations + layer + 3 * 2**27,  # three chunks of float32 logits
    )


def has_teacher(config: RunConfig) -> bool:
    return bool(build(config.method, "method").uses_teacher)


def tower_is_trained(config: RunConfig) -> bool:
    """Whether the tower runs inside the trained module."""
    lora = config.model.lora
    frozen = "vision" in config.model.freeze or {"encoder", "projector"} <= set(config.model.freeze)
    return not frozen or bool(lora.rank and lora.vision_targets)


def tower_parameters(model: Architecture) -> int:
    return model.tower.parameters if model.tower else 0


def trained_parameters(config: RunConfig, model: Architecture) -> float:
    if config.model.lora.rank:
        return model.adapters(config.model.lora.rank)
    language = 0 if "language" in config.model.freeze else model.language
    return language + (tower_parameters(model) if tower_is_trained(config) else 0)


def shards(config: RunConfig, gpus: int) -> int:
    return gpus if config.parallel.mode in ("zero2", "zero3", "fsdp2") else 1


def plan(config: RunConfig, model: Architecture, data: Data, cluster: Cluster, gpus: int) -> Plan:
    """One size of cluster; a step has the configured prompts, raised until they divide among the GPUs."""
    prompts = -(-config.train.prompts_per_step // gpus) * gpus
    phases = phases_of(config, model, data, cluster, gpus, prompts)
    tokens = prompts * config.rollout.n * (data.prompt + data.response)
    memory = memory_of(config, model, data, gpus, prompts)
    return Plan(gpus, prompts, phases, memory, tokens / gpus / phases.total)


def table_of(plans: list[Plan], gpu: GPU, title: str) -> Table:
    table = Table(title=title)
    names = [f.name for f in fields(Phases)]
    for name in ("GPUs", "prompts", "GiB resident", "peak", "fits", *names, "step s", "tokens/s/GPU", "bottleneck"):
        table.add_column(name, justify="right")
    for item in plans:
        memory = item.memory
        table.add_row(
            str(item.gpus),
            str(item.prompts),
            f"{memory.resident / GIB:.1f}",
            f"{memory.peak / GIB:.1f}",
            "yes" if memory.peak < 0.95 * gpu.memory else "no",
            *(f"{getattr(item.phases, name):.2f}" for name in names),
            f"{item.phases.total:.1f}",
            f"{item.tokens_per_second:,.0f}",
            item.phases.bottleneck,
        )
    return table


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Data, Cluster]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(Data):
        parser.add_argument(f"--{f.name}", type=int, default=f.default)
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100")
    parser.add_argument("--gpus", type=numbers, default=SIZES, help="sizes of the cluster, such as 8,64")
    parser.add_argument("--node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--network", type=float, default=50, help="GB/s of one GPU to other nodes")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    args = parser.parse_intermixed_args(arguments)
    data = Data(**{f.name: getattr(args, f.name) for f in fields(Data)})
    cluster = Cluster(GPUS[args.gpu], args.node, args.network * 1e9, args.utilisation)
    return args, data, cluster


def main(arguments: list[str]) -> int:
    args, data, cluster = parse(arguments)
    try:
        config = load(compose_config(args.overrides))
        model = architecture(config.model.path)
        plans = [plan(config, model, data, cluster, gpus) for gpus in args.gpus]
    except VisdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    title = f"{config.model.path}, {config.parallel.mode}, {args.gpu}: floors at {cluster.utilisation:.0%} of the peak"
    Console(width=max(160, Console().width)).print(table_of(plans, cluster.gpu, title))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
