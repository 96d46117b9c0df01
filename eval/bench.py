"""Run a benchmark: `python -m eval.run model=MODEL benchmark=videomme root=FOLDER out=OUT`.

`out` then holds `samples.jsonl` (one line a question), `results.json`, `report.md` and `report.html`. Started again, it
asks only what has no answer yet. `shard=0/4` ... `shard=3/4` divide the questions among four processes with one `out`;
whichever ends last writes the results. `shard=auto` takes a process's share from torchrun or srun.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval import benchmarks
from eval.answers import Reading
from eval.answers import read as read_answer
from eval.asking import Builder, replies
from eval.bench_report import write_reports
from eval.bench_results import Answered, Record, record_from, summarise, to_line
from eval.benchmarks.base import Benchmark, Item, Protocol, Seen
from eval.benchmarks.files import located
from eval.hub import fetch, provenance
from eval.metrics import majority
from eval.model import ModelSettings, check_engine, open_engine
from eval.shards import own_shard, shard_file, share, stand_alone
from visd import strict_json
from visd.config import ConfigError, PromptSection, VideoSection
from visd.observe.console import Progress
from visd.observe.files import read_jsonl, write_atomic
from visd.rollout.base import RolloutEngine, Sampling
from visd.seeding import derive_seed
from visd.types import DroppedSample, Rollout, VisdError

BOX_UNITS = ("pixels", "thousand", "one")
PACKAGES = ("visd", "torch", "transformers", "qwen-vl-utils", "av")
"""Whose versions are written into the results."""


@dataclass
class BenchConfig(ModelSettings):
    """One benchmark run; every field is a `key=value` argument."""

    benchmark: str = "???"  # name of a file of eval/benchmarks
    root: str = "???"  # local copy of the benchmark, in its published layout
    hub: str = ""  # fetch what root lacks from the Hugging Face hub: auto (the benchmark's own data set) or a data set
    revision: str = ""  # commit, tag or branch of hub; empty: the commit that root holds, else the newest, which stays
    out: str = "???"  # folder for the results
    protocol: str = "official"  # official, video_r1_16 or open_o3
    samples: int = 1  # answers a question; above 1 they are sampled
    temperature: float = -1.0  # of sampled answers; negative: the protocol's, or 1 where that is greedy
    max_new_tokens: int = 0  # 0: the protocol's
    video: dict[str, float] = field(default_factory=dict)  # fields of prompt.video that differ from the protocol's
    limit: int = 0  # only the first questions; 0 takes all
    box_unit: str = "pixels"  # of the model's boxes: pixels of its frames (Qwen2.5-VL), thousand (Qwen3-VL) or one
    shard: str = "0/1"  # this process's share: index/count, or auto under torchrun or srun
    batch_prompts: int = 16  # questions generated together
    seed: int = 0  # of sampled tokens and intervals
    max_prompt_tokens: int = 32768  # longer prompts are dropped and count as wrong


def parse(arguments: list[str]) -> BenchConfig:
    """Arguments to a checked configuration.

    Raises:
        ConfigError: an unknown field, a wrong type, a missing value or a value outside its choices.
    """
    try:
        given = OmegaConf.from_dotlist(arguments)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchConfig), given))
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None)
        raise ConfigError(f"{name or 'arguments'}: {str(error).splitlines()[0].rstrip('.')}.") from None
    assert isinstance(config, BenchConfig)
    benchmark = benchmarks.load(config.benchmark)
    if config.protocol not in benchmark.protocols:
        raise ConfigError(f"protocol: {config.protocol!r} is not one of {', '.join(benchmark.protocols)}.")
    if config.box_unit not in BOX_UNITS:
        raise ConfigError(f"box_unit: {config.box_unit!r} is not one of {', '.join(BOX_UNITS)}.")
    if config.samples < 1:
        raise ConfigError("samples: must be at least 1.")
    if config.revision and not config.hub:
        raise ConfigError("revision: is of hub; give hub=auto, or the name of a data set.")
    check_engine(config)
    if config.shard != "auto":
        share(config.shard)
    return config


def load_items(benchmark: Benchmark, root: Path, limit: int = 0) -> list[Item]:
    """The benchmark's questions.

    Raises:
        VisdError: a file is missing or malformed, or an id stands twice.
    """
    if not root.is_dir():
        raise VisdError(
            f"root: {root} is no folder; give the one of the benchmark's copy, or hub=auto to fetch it there."
        )
    items = located(benchmark.read(root), root, benchmark.unique_names)
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise VisdError(f"{benchmark.name}: question {item.id!r} stands twice below {root}; remove one file.")
        seen.add(item.id)
    return items[:limit] if limit else items


def warn_of_missing(items: Sequence[Item], root: Path) -> None:
    """Say how many questions will be dropped, and count as wrong, because their files are not there."""
    missing = [m.path for item in items for m in item.media if not (root / m.path).is_file()]
    if missing:
        print(
            f"warning: files of {len(missing)} of {len(items)} questions are not below {root}, as {missing[0]}; "
            "these questions count as wrong.",
            file=sys.stderr,
        )


def decoding(config: BenchConfig, protocol: Protocol) -> Sampling:
    """How tokens are drawn: as the protocol says, or several sampled answers."""
    temperature = config.temperature if config.temperature >= 0 else protocol.temperature
    if config.samples > 1 and temperature == 0:
        temperature = 1.0
    tokens = config.max_new_tokens or protocol.max_new_tokens
    greedy = temperature == 0
    return Sampling(config.samples, 1.0 if greedy else temperature, protocol.top_p, 0, tokens, greedy)


def prompt_section(config: BenchConfig, protocol: Protocol) -> PromptSection:
    """Frames, pixels and system message of a protocol."""
    known = {f.name for f in dataclasses.fields(VideoSection)}
    values: dict[str, Any] = {**protocol.video, **config.video}
    for name in values:
        if name not in known:
            raise ConfigError(f"video.{name}: is no field of prompt.video; it has {', '.join(sorted(known))}.")
    whole = {"min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"}
    typed: dict[str, Any] = {name: int(v) if name in whole else v for name, v in values.items()}
    return PromptSection(protocol.system, False, config.max_prompt_tokens, video=VideoSection(**typed))


def prompt_hash(items: Sequence[Item], protocol: Protocol) -> str:
    """Of the system message and every prompt's text: two scores are of the same questions where it is the same."""
    digest = hashlib.sha256(protocol.system.encode())
    for item in items:
        digest.update(json.dumps([item.id, protocol.text(item)], ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def answer_items(
    engine: RolloutEngine,
    builder: Builder,
    items: Sequence[Item],
    benchmark: Benchmark,
    protocol: Protocol,
    config: BenchConfig,
    pixel_factor: int = 28,
    forget: Any = None,
) -> Iterator[Record]:
    """One record an item, in order."""
    sampling = decoding(config, protocol)
    for start in range(0, len(items), config.batch_prompts):
        batch = items[start : start + config.batch_prompts]
        following = items[start : start + 2 * config.batch_prompts]
        builder.prefetch(protocol.asked(item) for item in following)
        questions = [protocol.asked(item) for item in batch]
        seeds = [seeds_of(config, item.id, sampling.n) for item in batch]
        for item, reply in zip(batch, replies(engine, builder, questions, sampling, seeds, pixel_factor), strict=True):
            if reply.drop is not None:
                yield _dropped(item, benchmark, reply.drop, sampling.n)
                continue
            seen = Seen(reply.frame_size, config.box_unit)
            yield scored(item, benchmark, [answered(item, benchmark, r, seen) for r in reply.rollouts], seen)
        if forget is not None:
            forget()


def seeds_of(config: BenchConfig, item_id: str, n: int) -> list[int]:
    """Of a question's answers."""
    return [derive_seed("bench", config.seed, item_id, g) for g in range(n)]


def answered(item: Item, benchmark: Benchmark, rollout: Rollout, seen: Seen) -> Answered:
    """A rollout, read and scored."""
    return answer_of(item, benchmark, rollout.own_text, rollout.stop_reason == "length", rollout.length, seen)


def answer_of(item: Item, benchmark: Benchmark, text: str, truncated: bool, tokens: int, seen: Seen) -> Answered:
    """A response, read and scored."""
    reading = read_answer(text, item.kind, item.options, truncated)
    return Answered(text, truncated, tokens, reading.status, plain(reading.value), benchmark.score(item, reading, seen))


def scored(item: Item, benchmark: Benchmark, answers: list[Answered], seen: Seen) -> Record:
    """A question with its answers and, of several, their vote."""
    vote = None
    if len(answers) > 1 and item.kind in ("letter", "number", "yes_no", "math"):
        value = majority([answer.value for answer in answers])
        vote = benchmark.score(item, Reading(value, "plain" if value is not None else "empty", None), seen)
    return Record(item.id, item.unit or item.id, dict(item.categories), plain(item.truth), answers, vote)


def _dropped(item: Item, benchmark: Benchmark, drop: DroppedSample, n: int) -> Record:
    nothing = Answered("", False, 0, "dropped", None, benchmark.score(item, Reading(None, "empty", None), Seen()))
    record = scored(item, benchmark, [nothing] * n, Seen())
    return dataclasses.replace(record, dropped=drop.reason, message=str(drop))


def plain(value: Any) -> Any:
    """A reading as JSON has it: lists for tuples, texts for keys."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


# -------------------------------------------------------------------------------------------------------- files


def fingerprint(config: BenchConfig, hash_of_prompts: str) -> str:
    """Changes with everything that may change an answer or its score."""
    names = (
        "out",
        "shard",
        "threads",
        "batch_prompts",
        "frames",
        "limit",
        "memory_share",
        "cache_gb",
        "hub",
        "revision",
    )
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in names}
    weights = sorted(Path(config.model).glob("*.safetensors"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return hashlib.sha256(json.dumps([fields, hash_of_prompts, stats], sort_keys=True).encode()).hexdigest()


def load_records(path: Path) -> list[Record]:
    return [record_from(fields, str(path)) for fields in read_jsonl(path)] if path.exists() else []


def finished(out: Path, shard: str, mark: str) -> list[Record]:
    """What this shard has already answered.

    Raises:
        VisdError: the folder holds another run's answers.
    """
    path, marked = shard_file(out, shard), out / "fingerprint"
    if marked.exists() and marked.read_text(encoding="utf-8") != mark:
        raise VisdError(f"out: {out} holds answers of another model, benchmark or settings; name another folder.")
    write_atomic(marked, mark)
    records = load_records(path)
    write_atomic(path, "".join(to_line(record) + "\n" for record in records))
    return records


def run(config: BenchConfig) -> None:
    """Answer this shard's questions; with the last shard, write the results."""
    if config.shard == "auto":
        config = dataclasses.replace(config, shard=own_shard(os.environ))
        stand_alone(os.environ)
    benchmark = benchmarks.load(config.benchmark)
    protocol, out, root = benchmark.protocols[config.protocol], Path(config.out), Path(config.root)
    if config.hub:
        fetch(benchmark, root, config.hub, config.revision)
    items = load_items(benchmark, root, config.limit)
    warn_of_missing(items, root)
    section, hashed = prompt_section(config, protocol), prompt_hash(items, protocol)
    records = finished(out, config.shard, fingerprint(config, hashed))
    index, count = share(config.shard)
    done = {record.id for record in records}
    waiting = [item for item in items[index::count] if item.id not in done]
    if waiting:
        _answer(config, benchmark, protocol, section, waiting, len(done))
    records = [r for i in range(count) for r in load_records(shard_file(out, f"{i}/{count}"))]
    missing = len({item.id for item in items} - {record.id for record in records})
    if missing:
        print(f"{missing} of {len(items)} questions are not answered yet: other shards are to come.", file=sys.stderr)
        return
    order = {item.id: i for i, item in enumerate(items)}
    records = sorted((r for r in records if r.id in order), key=lambda r: order[r.id])
    if count > 1:
        write_atomic(out / "samples.jsonl", "".join(to_line(record) + "\n" for record in records))
    write_results(out, config, benchmark, protocol, section, hashed, records)


def _answer(
    config: BenchConfig, benchmark: Benchmark, protocol: Protocol, section: PromptSection, items: list[Item], done: int
) -> None:
    from visd.data.prompts import PromptBuilder
    from visd.media.processor import PromptProcessor

    processor = PromptProcessor.load(config.model, section, Path(config.root), config.frames)
    longest = section.max_tokens + decoding(config, protocol).max_new_tokens
    opened = open_engine(config, processor.tokenizer, longest)
    builder = PromptBuilder(processor, section)
    factor = processor.family.pixel_factor if processor.family.has_media else 28
    answers = answer_items(opened.engine, builder, items, benchmark, protocol, config, factor, opened.forget)
    progress = Progress(benchmark.name, done + len(items), done, unit="question")
    with shard_file(Path(config.out), config.shard).open("a", encoding="utf-8") as handle:
        for record in answers:
            handle.write(to_line(record) + "\n")
            handle.flush()
            progress.advance()
    progress.close()


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is answered."""
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    return {name: installed.get(name, "not installed") for name in PACKAGES}


def write_results(
    out: Path, config: BenchConfig, benchmark: Benchmark, protocol: Protocol, section: PromptSection, hashed: str,
    records: Sequence[Record],
) -> None:  # fmt: skip
    """`results.json` and the reports."""
    changed = [name for name in ("video", "max_new_tokens", "limit") if getattr(config, name)]
    document = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "split": benchmark.split,
        "headline": benchmark.headline,
        "protocol": {
            "name": config.protocol,
            "changed": changed,
            **dataclasses.asdict(protocol),
            "decoding": dataclasses.asdict(decoding(config, protocol)),
            "prompt": dataclasses.asdict(section),
        },
        "prompt_hash": hashed,
        "hub": provenance(Path(config.root)),  # commits by data set; null where data was put there by hand
        "notes": list(benchmark.notes),
        "versions": versions(),
        "settings": dataclasses.asdict(config),
        "result": dataclasses.asdict(summarise(records, benchmark, config.seed)),
    }
    write_atomic(out / "results.json", strict_json.dumps(strict_json.without_nonfinite(document), indent=1) + "\n")
    print(write_reports(out, document))
