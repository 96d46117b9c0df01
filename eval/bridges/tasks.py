"""Write visd's questions as tasks of lmms-eval, and the functions that these tasks name.

    python -m eval.bridges.tasks benchmark=videomme root=data/videomme protocol=official folder=tasks
    python -m eval.bridges.tasks data=test.jsonl root=outputs/demo/world config=outputs/demo/config.yaml folder=tasks

`folder` then holds `visd_videomme.yaml` and its questions; the arguments are those of `eval.run`. Any model class of lmms-eval
can be asked them, and answers are read and scored as by `eval.run`:

    lmms-eval --model visd --model_args model=MODEL --tasks visd_videomme --include_path tasks --output_path out --log_samples
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval import bench, run
from eval.bridges.sources import Source, describe, open_source
from visd import strict_json
from visd.observe.files import write_atomic
from visd.types import Media, VisdError

TRAILER = "\n<|visd|>"
"""After a response of the model class `visd`: what the text alone does not say, as JSON."""


# --------------------------------------------------------------------------------- functions that tasks name


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The prompt's text; media go before it."""
    return str(doc["text"])


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """Paths of the media, and the used part of a video that is not used whole."""
    source = open_source(doc["visd_source"])
    return [_visual(source.root, media) for media in source.question(doc["id"]).media]


def doc_to_messages(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> list[dict[str, Any]]:
    """The chat, as lmms-eval's chat models take it."""
    source = open_source(doc["visd_source"])
    content: list[dict[str, Any]] = []
    for media in source.question(doc["id"]).media:
        visual = _visual(source.root, media)
        content.append({"type": media.kind, "url": visual["path"] if isinstance(visual, dict) else visual})
        if isinstance(visual, dict):
            content[-1] |= {"start_time": media.start, "end_time": media.end}
    turns = [{"role": "user", "content": [*content, {"type": "text", "text": doc_to_text(doc)}]}]
    if source.section.system:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": source.section.system}]})
    return turns


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The answer's scores, under the name of every reported number."""
    source = open_source(doc["visd_source"])
    text, said = split_trailer(results[0])
    size = tuple(said["frame_size"]) if said.get("frame_size") else None
    made = source.scored(doc["id"], text, said.get("truncated", False), size)
    return {metric: {"metric": metric, "source": doc["visd_source"], **made} for metric in source.metrics}


def aggregate(scored: Sequence[Mapping[str, Any]]) -> float:
    """One reported number of all answers."""
    return open_source(scored[0]["source"]).total(scored[0]["metric"], scored)


def with_trailer(text: str, truncated: bool, frame_size: tuple[int, int] | None) -> str:
    """A response with what its text alone does not say."""
    return f"{text}{TRAILER}{json.dumps({'truncated': truncated, 'frame_size': frame_size})}"


def split_trailer(response: str) -> tuple[str, dict[str, Any]]:
    """The inverse of `with_trailer`; another model's response has none."""
    text, mark, said = response.rpartition(TRAILER.strip())
    return (text.removesuffix("\n"), json.loads(said)) if mark else (response, {})


def _visual(root: Path, media: Media) -> Any:
    path = str(root / media.path)
    if media.start is None and media.end is None:
        return path
    return {"type": media.kind, "path": path, "video_start": media.start, "video_end": media.end}


# ------------------------------------------------------------------------------------------------------ files


class _Function(str):
    """A function of this module, for YAML."""


def _dump_function(dumper: yaml.SafeDumper, value: _Function) -> yaml.Node:
    return dumper.represent_scalar(
        "!function", f"{__name__ if __name__ != '__main__' else 'eval.bridges.tasks'}.{value}"
    )


yaml.SafeDumper.add_representer(_Function, _dump_function)


def write_task(config: bench.BenchConfig | run.EvalConfig, folder: Path) -> str:
    """Write a task's YAML file and its questions; returns its name.

    Raises:
        VisdError: files of the benchmark or manifest are missing or malformed.
    """
    described = describe(config)
    source = open_source(described)
    what = config.benchmark if isinstance(config, bench.BenchConfig) else Path(config.data).stem
    if isinstance(config, bench.BenchConfig) and config.protocol != "official":
        what += f"_{config.protocol}"
    name = "visd_" + re.sub(r"\W", "_", what)
    rows = [
        {"id": i, "text": source.text(i), "target": source.truth(i), "visd_source": described} for i in source.ids()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(strict_json.dumps(row) + "\n" for row in rows)
    write_atomic(folder / f"{name}.jsonl", lines)
    document = yaml.safe_dump(_task(name, source), sort_keys=False)
    write_atomic(folder / f"{name}.yaml", document)
    return name


def _task(name: str, source: Source) -> dict[str, Any]:
    sampling = source.sampling
    aggregation = _Function("aggregate")
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": _Function("doc_to_visual"),
        "doc_to_text": _Function("doc_to_text"),
        "doc_to_messages": _Function("doc_to_messages"),
        "doc_to_target": "target",
        "process_results": _Function("process_results"),
        "generation_kwargs": {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "do_sample": not sampling.greedy,
            "until": [],
        },
        "reasoning_tags": "none",  # responses are read whole
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": True} for metric in source.metrics
        ],
        "metadata": [{"version": 1}],
    }


def main() -> None:
    folders = [argument for argument in sys.argv[1:] if argument.startswith("folder=")]
    rest = [argument for argument in sys.argv[1:] if not argument.startswith("folder=")]
    if not folders or not rest:
        sys.exit(__doc__)
    fixed = ["model=none", "out=none"]
    try:
        benchmark = any(argument.startswith("benchmark=") for argument in rest)
        config = bench.parse([*fixed, *rest]) if benchmark else run.parse([*fixed, *rest])
        print(write_task(config, Path(folders[-1].removeprefix("folder="))))
    except VisdError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
