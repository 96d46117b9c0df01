"""`python -m data_tools stats`: what is in a set, as one HTML page.

    python -m data_tools stats train.jsonl --root /data/videos --out stats.html --probe probe.jsonl \\
        --settings experiment=visd_qwen2_5_vl_7b prompt.video.max_frames=64

Distributions of sources, families, answers, lengths, windows and boxes; with --probe of the videos; with --settings, the
arguments of a run, of the tokens of its prompts and how many are over its limit; and some samples, drawn by chance, with
their frames, boxes and windows. OUT.json holds the numbers. The page needs no other file.
"""

from __future__ import annotations

import argparse
import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jinja2

from data_tools.choose import lot
from data_tools.distributions import Distribution
from data_tools.io.cli import add_settings_argument, check_ending, guarded, tool_parser
from data_tools.io.manifests import chunk_samples, replacing
from data_tools.io.passes import Pass, add_pass_arguments, beside, check_manifests, run_pass
from data_tools.io.rows import Chunk
from data_tools.io.shards import ShardedWork, ShardReport, ShardResult
from data_tools.probed import Probed, load_probed, probed_arguments
from visd import strict_json
from visd.data.manifest import sample_from_record, sample_to_record
from visd.data.targets import answer_text
from visd.media.container import below_root
from visd.media.errors import DecodeError
from visd.media.killable import KillableWorkers
from visd.observe.files import write_atomic
from visd.reward.combine import gold_windows
from visd.types import XYXY, Sample, VisdError, Window

GRID = 8
"""Cells of a side of the map of boxes."""
NAMES = {
    "question_chars": "characters of the messages",
    "rationale_chars": "characters of the trace",
    "options": "options of a letter",
    "media": "media of a record",
    "windows": "windows of a record",
    "window_seconds": "length of a window, s",
    "window_share": "window, share of the video",
    "boxes": "boxes of a record",
    "box_area": "box, share of the frame",
    "seconds": "length of the clip, s",
    "fps": "frames a second of the file",
    "frames": "frames of the file",
    "pixels": "pixels of a frame of the file",
    "tokens": "tokens of the prompt",
    "visual_tokens": "tokens of its media",
}
"""What each distribution is of."""


def main(arguments: list[str]) -> int:
    parser = tool_parser("stats", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests to describe")
    parser.add_argument("--out", type=Path, required=True, help="page to write (.html)")
    parser.add_argument("--root", type=Path, help="data root, for pictures of samples")
    parser.add_argument("--probe", type=Path, nargs="*", help="OUT files of `probe`")
    add_settings_argument(parser)
    parser.add_argument("--samples", type=int, default=24, help="samples that are shown")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    add_pass_arguments(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    check_ending(chosen.out, ".html")
    if chosen.root is not None and not chosen.root.is_dir():
        raise VisdError(f"--root {chosen.root}: is no folder")
    check_manifests(chosen.manifests)
    probe = probed_arguments(chosen.probe)
    task = Describe(probe, tuple(chosen.settings), max(0, chosen.samples), chosen.seed)
    return run_pass(
        chosen.out,
        [*chosen.manifests],
        task,
        Pass.chosen(chosen),
        lambda work, report: _finish(work, report, chosen),
        name="stats",
        also=probe,
    )


@dataclass
class Description:
    """What is known of some records; descriptions of parts add up."""

    records: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # by what is counted
    numbers: dict[str, Distribution] = field(default_factory=dict)  # by the names of `NAMES`
    box_map: list[int] = field(default_factory=lambda: [0] * GRID * GRID)  # boxes over each cell, row by row
    unusable: Counter[str] = field(default_factory=Counter)  # at the settings, by reason
    over: int = 0  # prompts over the limit
    limit: int = 0  # tokens
    shown: list[tuple[int, dict[str, Any]]] = field(default_factory=list)  # lot and record, the smallest lots

    def count(self, what: str, value: str) -> None:
        self.counts.setdefault(what, Counter())[value] += 1

    def number(self, what: str, value: float) -> None:
        self.numbers.setdefault(what, Distribution()).add(value)

    def show(self, shown: Iterable[tuple[int, dict[str, Any]]], most: int) -> None:
        self.shown = sorted([*self.shown, *shown], key=lambda item: item[0])[:most]

    def join(self, other: Description, most: int) -> None:
        self.records += other.records
        for what, counts in other.counts.items():
            self.counts.setdefault(what, Counter()).update(counts)
        for what, numbers in other.numbers.items():
            self.numbers.setdefault(what, Distribution()).join(numbers)
        self.box_map = [a + b for a, b in zip(self.box_map, other.box_map, strict=True)]
        self.unusable.update(other.unusable)
        self.over, self.limit = self.over + other.over, max(self.limit, other.limit)
        self.show(other.shown, most)

    def to_json(self) -> dict[str, Any]:
        numbers = {name: value.to_json() for name, value in self.numbers.items()}
        return {**vars(self), "numbers": numbers}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Description:
        numbers = {name: Distribution.from_json(value) for name, value in fields.pop("numbers").items()}
        counts = {name: Counter(value) for name, value in fields.pop("counts").items()}
        return cls(numbers=numbers, counts=counts, unusable=Counter(fields.pop("unusable")), **fields)


@dataclass(frozen=True)
class Describe:
    """The task of a shard: its description as one line."""

    probe: tuple[Path, ...]
    settings: tuple[str, ...]
    samples: int
    seed: int

    def __call__(self, chunk: Chunk) -> ShardResult:
        probed = load_probed(self.probe) if self.probe else None
        found = Description()
        picked: list[tuple[int, Sample]] = []
        for _, sample in chunk_samples(chunk):
            found.records += 1
            describe(sample, probed, found)
            if self.settings:
                self._tokens(sample, probed, found)
            picked.append((lot(self.seed, sample.id), sample))
            if len(picked) > 4 * self.samples:
                picked = sorted(picked, key=lambda item: item[0])[: self.samples]
        found.show(((number, sample_to_record(sample)) for number, sample in picked), self.samples)
        return ShardResult([strict_json.dumps(found.to_json())], ShardReport(found.records, found.records))

    def _tokens(self, sample: Sample, probed: Probed | None, found: Description) -> None:
        from data_tools.tokens import token_counter  # loads a tokenizer, and torch

        try:
            budget = token_counter(self.settings).count(sample, probed)
        except DecodeError as error:
            found.unusable[error.reason] += 1
            return
        found.number("tokens", budget.tokens)
        found.number("visual_tokens", budget.visual)
        found.over += budget.tokens > budget.limit
        found.limit = budget.limit


def describe(sample: Sample, probed: Probed | None, found: Description) -> None:
    """Add one sample to a description."""
    for what, value in (("source", sample.source), ("family", sample.family), ("answer type", sample.answer.type)):
        found.count(what, value)
    if sample.answer.type == "letter":
        found.count("letter", str(sample.answer.value))
        found.number("options", len(sample.answer.options))
    found.number("question_chars", sum(len(message.content) for message in sample.messages))
    if sample.rationale is not None:
        found.number("rationale_chars", len(sample.rationale))
    found.number("media", len(sample.media))
    windows, boxes = gold_windows(sample), [box.xyxy for box in sample.evidence.boxes]
    found.number("windows", len(windows))
    found.number("boxes", len(boxes))
    if sample.answer.type == "box":
        boxes.append(cast(XYXY, sample.answer.value))
    for xyxy in boxes:
        found.number("box_area", (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]))
        _mark(xyxy, found.box_map)
    _describe_media(sample, windows, probed, found)


def _describe_media(sample: Sample, windows: tuple[Window, ...], probed: Probed | None, found: Description) -> None:
    longest = sample.meta.get("duration") if isinstance(sample.meta.get("duration"), (int, float)) else None
    for item in sample.media:
        found.count("media kind", item.kind)
        file = probed.get(item.path) if probed is not None else None
        if probed is not None:
            found.count("file", "not probed" if file is None else "sound" if file.sound else "broken")
        if file is not None and file.sound:
            found.number("pixels", file.width * file.height)
            if item.kind == "video":
                longest = file.duration
                found.number("fps", file.fps)
                found.number("frames", file.frames)
        end = item.end if item.end is not None else longest
        if item.kind == "video" and end is not None:
            found.number("seconds", end - (item.start or 0.0))
    for start, end in windows:
        found.number("window_seconds", end - start)
        if longest:
            found.number("window_share", min(1.0, (end - start) / longest))


def _mark(xyxy: XYXY, box_map: list[int]) -> None:
    x1, y1, x2, y2 = (value * GRID for value in xyxy)
    for row in range(int(y1), min(GRID, int(-(-y2 // 1)))):
        for column in range(int(x1), min(GRID, int(-(-x2 // 1)))):
            box_map[row * GRID + column] += 1


def _finish(work: ShardedWork, report: ShardReport, chosen: argparse.Namespace) -> int:
    found = Description()
    for line in work.lines():
        found.join(Description.from_json(strict_json.loads(line, "a shard of stats")), chosen.samples)
    pictures = draw_samples([record for _, record in found.shown], chosen.root, chosen.num_workers)
    page = render(found, pictures, chosen)
    with replacing(chosen.out) as part:
        part.write_text(page, encoding="utf-8")
    numbers = found.to_json()
    del numbers["shown"]
    write_atomic(beside(chosen.out, "json"), strict_json.dumps(numbers, indent=1) + "\n")
    print(f"{chosen.out}: {found.records} records" + _about_tokens(found))
    return 0


def _about_tokens(found: Description) -> str:
    if "tokens" not in found.numbers:
        return ""
    tokens = found.numbers["tokens"]
    return (
        f"; prompts have {tokens.total / tokens.count:.0f} tokens on average and {tokens.most:.0f} at most, "
        f"{found.over} are over the limit of {found.limit}, {sum(found.unusable.values())} cannot be made"
    )


def draw_samples(records: list[dict[str, Any]], root: Path | None, workers: int) -> list[dict[str, Any]]:
    """What the page shows of each sample: its texts, and a picture or why there is none."""
    from data_tools.thumbnails import SECONDS, drawn, picture_of

    samples = [sample_from_record(record, "sample") for record in records]
    shown: list[dict[str, Any]] = [
        {"id": s.id, "source": s.source, "family": s.family, "question": s.messages[-1].content,
         "options": s.answer.options, "answer": answer_text(s.answer), "rationale": s.rationale}
        for s in samples
    ]  # fmt: skip
    if root is None:
        return shown
    pool = KillableWorkers(workers, 2048, "data_tools.thumbnails", "2048 MiB")
    try:
        waiting = []
        for sample, item in zip(samples, shown, strict=True):
            if not sample.media:
                continue
            try:
                path = below_root(root, sample.media[0].path)
                waiting.append((item, path, pool.submit(drawn, picture_of(sample, path), SECONDS + 5)))
            except DecodeError as error:
                item["problem"] = str(error)
        for item, path, future in waiting:
            try:
                item["picture"] = base64.b64encode(pool.result(path, future, SECONDS + 5)).decode()
            except DecodeError as error:
                item["problem"] = str(error)
    finally:
        pool.close()
    return shown


def render(found: Description, pictures: list[dict[str, Any]], chosen: argparse.Namespace) -> str:
    """The page."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    order = [name for name in NAMES if name in found.numbers]
    peak = max(found.box_map, default=0)
    return environment.get_template("stats.html.j2").render(
        found=found,
        inputs=[path.name for path in chosen.manifests],
        settings=chosen.settings,
        counts=[(what, counts.most_common(40), len(counts)) for what, counts in found.counts.items()],
        numbers=[(NAMES[name], found.numbers[name]) for name in order],
        box_map=[found.box_map[i : i + GRID] for i in range(0, GRID * GRID, GRID)] if peak else [],
        peak=peak,
        samples=pictures,
        unusable=sum(found.unusable.values()),
    )
