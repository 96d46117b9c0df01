"""Evaluate a checkpoint on a manifest.

    python -m eval.run model=outputs/demo/checkpoints/step_000060/model data=test.jsonl root=outputs/demo/world out=outputs/eval
    python -m eval.run model=outputs/demo/model benchmark=videomme root=data/videomme out=outputs/videomme     (`eval.bench`)

`out` then holds `results.json` and `samples.jsonl`. Started again, it asks only the questions that have no answer yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval import bench
from eval.model import ModelSettings, check_engine, open_engine
from eval.results import QuestionResult, question_from, summarise, to_line
from eval.runner import Asking, ask
from eval.table import result_table
from visd import strict_json
from visd.config import ConfigError, PromptSection, RewardSection
from visd.data.manifest import load_manifest
from visd.data.prompts import PromptBuilder
from visd.media.processor import PromptProcessor
from visd.observe.console import Progress, plain_console
from visd.observe.files import read_jsonl, write_atomic
from visd.types import VisdError


@dataclass
class EvalConfig(Asking, ModelSettings):
    """One evaluation; every field is a `key=value` argument."""

    data: str = "???"  # manifest (JSONL or Parquet), relative to root
    root: str = "???"  # folder below which every media path lies
    out: str = "???"  # folder for the results
    split: str = "test"  # name of the data in the results
    config: str = "auto"  # a run's config.yaml, whose prompt, reward and max_new_tokens hold where not given here; auto: of the run the model lies in, if any; none
    prompt: PromptSection = field(default_factory=PromptSection)
    reward: RewardSection = field(default_factory=RewardSection)


def parse(arguments: list[str]) -> EvalConfig:
    """Arguments to a checked configuration.

    Raises:
        ConfigError: an argument that is no key=value, an unknown field, a wrong type or a missing value.
    """
    for argument in arguments:
        if "=" not in argument:
            raise ConfigError(f"{argument!r} is not key=value; the keys are {', '.join(_fields())}.")
    try:
        given = OmegaConf.from_dotlist(arguments)
        schema = OmegaConf.structured(EvalConfig)
        OmegaConf.to_object(OmegaConf.merge(schema, given))  # names a wrong argument before a run's config is read
        config = OmegaConf.to_object(OmegaConf.merge(schema, _run_config(given), given))
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None)
        raise ConfigError(f"{name or 'arguments'}: {str(error).splitlines()[0].rstrip('.')}.") from None
    assert isinstance(config, EvalConfig)
    if not (config.greedy or config.samples):
        raise ConfigError("samples: 0 with greedy=false asks nothing.")
    check_engine(config)
    return config


def _fields() -> list[str]:
    return [f.name for f in dataclasses.fields(EvalConfig)]


def _run_config(given: Any) -> dict[str, Any]:
    """The fields of an evaluation that a training run's configuration decides."""
    where = given.get("config", "auto")
    path = Path(where)
    if where == "none":
        return {}
    if where == "auto":
        above = Path(given.model).absolute().parents  # RUN/model or RUN/checkpoints/step_NNNNNN/model
        runs = [above[0], *([above[2]] if len(above) > 2 and above[1].name == "checkpoints" else [])]
        path = next((run / "config.yaml" for run in runs if (run / "config.yaml").is_file()), Path())
        if not path.is_file():
            return {}
    if not path.is_file():
        raise ConfigError(f"config: no file {where!r}.")
    run = OmegaConf.load(path)
    print(f"prompt, reward and max_new_tokens from {path}", file=sys.stderr)
    return {"prompt": run.prompt, "reward": run.reward, "max_new_tokens": run.rollout.max_new_tokens}


def fingerprint(config: EvalConfig) -> str:
    """Changes with everything that may change an answer or its score."""
    fields = dataclasses.asdict(config)
    for name in (
        "out",
        "split",
        "config",
        "threads",
        "batch_prompts",
        "frames",
        "memory_share",
        "cache_gb",
    ):
        del fields[name]
    weights = sorted(Path(config.model).glob("*.safetensors"))
    files = [*weights, Path(config.root) / config.data]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    return hashlib.sha256(json.dumps([fields, stats], sort_keys=True).encode()).hexdigest()


def finished(out: Path, mark: str) -> list[QuestionResult]:
    """The results already in `out`.

    Raises:
        VisdError: they belong to another evaluation.
    """
    path, mark_path = out / "samples.jsonl", out / "fingerprint"
    if not path.exists():
        return []
    if not mark_path.exists() or mark_path.read_text(encoding="utf-8") != mark:
        raise VisdError(
            f"out: {out} holds the answers of another model, manifest or settings; delete it or name another folder."
        )
    results = [question_from(fields, str(path)) for fields in read_jsonl(path)]
    write_atomic(path, "".join(to_line(result) + "\n" for result in results))  # without a half-written last line
    return results


def run(config: EvalConfig) -> None:
    """Evaluate and write `results.json`, `samples.jsonl` and a printed table."""
    start = time.monotonic()
    out, root = Path(config.out), Path(config.root)
    samples = load_manifest(root / config.data, root)
    mark = fingerprint(config)
    results = finished(out, mark)
    write_atomic(out / "fingerprint", mark)
    done = {result.sample_id for result in results}
    if len(done) < len(samples):
        processor = PromptProcessor.load(config.model, config.prompt, root, config.frames)
        longest = config.prompt.max_tokens + config.max_new_tokens
        opened = open_engine(config, processor.tokenizer, longest)
        builder = PromptBuilder(processor, config.prompt)
        answers = ask(opened.engine, builder, samples, config, config.reward, done=done, forget=opened.forget)
        progress = Progress("evaluate", len(samples), len(done), unit="question")
        with (out / "samples.jsonl").open("a", encoding="utf-8") as handle:
            for result in answers:
                handle.write(to_line(result) + "\n")
                handle.flush()
                results.append(result)
                progress.advance()
        progress.close()
    order = {sample.id: i for i, sample in enumerate(samples)}
    summary = summarise(sorted(results, key=lambda r: order[r.sample_id]), config.seed)
    seconds = time.monotonic() - start
    document = {
        "split": config.split,
        "settings": dataclasses.asdict(config),
        "seconds": seconds,
        "result": dataclasses.asdict(summary),
    }
    write_atomic(out / "results.json", strict_json.dumps(strict_json.without_nonfinite(document), indent=2) + "\n")
    plain_console(sys.stdout).print(result_table(summary, f"{config.model} on {config.split}"))


def main() -> None:
    arguments = sys.argv[1:]
    try:
        if any(argument.startswith("benchmark=") for argument in arguments):
            bench.run(bench.parse(arguments))
        else:
            run(parse(arguments))
    except VisdError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
