"""`python -m data_tools filter`: leave records out, and say of each why.

    python -m data_tools filter train.jsonl --out kept.jsonl --quarantine probe.jsonl.quarantine.jsonl
    python -m data_tools filter train.jsonl --out kept.jsonl --pass-rate eval/samples.jsonl
    python -m data_tools filter train.jsonl --out kept.jsonl --policy MODEL --samples 8 --root /data/videos
    python -m data_tools filter train.jsonl --out kept.jsonl --max-tokens 8192 --probe probe.jsonl --settings experiment=grpo_video_r1

Records of which the policy answers all of k samples right, or none, teach group-relative methods nothing: by --pass-rate, which
reads the samples.jsonl of `python -m eval.run ... samples=k`, they go (--keep-rate takes other bounds). --policy runs that
evaluation first, and goes on with it when it was interrupted. Further choices are lengths, tokens of the prompt at the
settings of a run, a difficulty in meta, and files in quarantine; a record must pass all that are given.

OUT.dropped.jsonl lists each record that went with its reason, OUT.report.json counts them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from data_tools.io.cli import add_settings_argument, guarded, summary, tool_parser
from data_tools.io.manifests import check_kind, chunk_samples, dumps
from data_tools.io.passes import (
    Pass,
    add_pass_arguments,
    beside,
    check_manifests,
    run_pass,
    write_kept,
)
from data_tools.io.rows import Chunk, check_input, read_rows
from data_tools.io.shards import ShardedWork, ShardReport, ShardResult
from data_tools.probed import load_probed, probed_arguments
from visd import strict_json
from visd.data.fields import ManifestError
from visd.data.manifest import sample_to_record
from visd.media.errors import DecodeError
from visd.observe.files import write_atomic
from visd.types import Sample, VisdError

Bounds = tuple[float, float]
ANY: Bounds = (float("-inf"), float("inf"))


def main(arguments: list[str]) -> int:
    parser = tool_parser("filter", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests to take records from")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    parser.add_argument("--quarantine", type=Path, nargs="*", default=[], help="quarantine lists of `probe`")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--pass-rate", type=Path, help="samples.jsonl of an evaluation of these records")
    rate.add_argument("--policy", help="Hugging Face folder of the policy that is asked first")
    parser.add_argument("--samples", type=int, default=8, help="answers a record, for --policy")
    parser.add_argument("--root", type=Path, help="data root, for --policy")
    parser.add_argument(
        "--eval", nargs="*", default=[], metavar="KEY=VALUE", help="further arguments of eval.run, for --policy"
    )
    parser.add_argument(
        "--keep-rate",
        type=_bounds,
        metavar="LOW:HIGH",
        help="keep pass rates within these, ends included; default: above 0 and below 1",
    )
    parser.add_argument(
        "--question-chars", type=_bounds, default=ANY, metavar="LOW:HIGH", help="length of all messages"
    )
    parser.add_argument(
        "--rationale-chars", type=_bounds, default=ANY, metavar="LOW:HIGH", help="length of the trace, 0 without one"
    )
    parser.add_argument(
        "--seconds",
        type=_bounds,
        default=ANY,
        metavar="LOW:HIGH",
        help="length of the clip, for records with a video; needs --probe unless start and end or meta.duration say it",
    )
    parser.add_argument("--difficulty", type=_bounds, default=ANY, metavar="LOW:HIGH", help="a number in meta")
    parser.add_argument("--difficulty-field", default="difficulty", help="its name in meta")
    parser.add_argument("--max-tokens", type=int, help="longest prompt; needs --settings, and --probe for media")
    parser.add_argument("--probe", type=Path, nargs="*", help="OUT files of `probe`")
    add_settings_argument(parser)
    add_pass_arguments(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _bounds(text: str) -> Bounds:
    low, colon, high = text.partition(":")
    try:
        found = (float(low) if low else ANY[0], float(high) if high else ANY[1])
    except ValueError:
        found = (1.0, 0.0)
    if not colon or not found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: write LOW:HIGH, either of which may be left out")
    return found


def _main(chosen: argparse.Namespace) -> int:
    check_kind(chosen.out)
    check_manifests(chosen.manifests)
    if chosen.max_tokens is not None and not chosen.settings:
        raise VisdError("--max-tokens: give --settings, the arguments of the run whose prompts are meant")
    for path in chosen.quarantine:
        check_input(path)
    rates = [ask_policy(chosen, path) for path in chosen.manifests] if chosen.policy else []
    rates += [chosen.pass_rate] if chosen.pass_rate else []
    for path in rates:
        check_input(path)
    task = Filter(
        rates=tuple(rates),
        keep_rate=chosen.keep_rate,
        quarantine=tuple(chosen.quarantine),
        question=chosen.question_chars,
        rationale=chosen.rationale_chars,
        seconds=chosen.seconds,
        difficulty=chosen.difficulty,
        difficulty_field=chosen.difficulty_field,
        max_tokens=chosen.max_tokens,
        settings=tuple(chosen.settings),
        probe=probed_arguments(chosen.probe),
    )
    if task == Filter(difficulty_field=task.difficulty_field, probe=task.probe, settings=task.settings):
        raise VisdError("nothing to filter by: give --pass-rate, --quarantine, --max-tokens or another choice")
    return run_pass(
        chosen.out,
        [*chosen.manifests],
        task,
        Pass.chosen(chosen),
        lambda work, report: _finish(work, report, chosen.out),
        name="filter",
        also=(*rates, *chosen.quarantine, *task.probe),
    )


def ask_policy(chosen: argparse.Namespace, manifest: Path) -> Path:
    """Have the policy answer every record of a manifest; the file of its answers.

    Raises:
        VisdError: the evaluation failed, which has then said why.
    """
    if chosen.root is None:
        raise VisdError("--policy: give --root, the data root")
    folder = beside(chosen.out, "answers") / manifest.stem
    fields = {
        "model": chosen.policy,
        "data": manifest.resolve(),
        "root": chosen.root.resolve(),
        "out": folder,
        "samples": chosen.samples,
        "greedy": "false",
    }
    command = [sys.executable, "-m", "eval.run", *(f"{name}={value}" for name, value in fields.items()), *chosen.eval]
    if status := subprocess.run(command, stdout=sys.stderr).returncode:
        raise VisdError(f"--policy: the evaluation of {manifest} ended with status {status}; what it said stands above")
    return folder / "samples.jsonl"


@lru_cache(maxsize=4)
def pass_rates(paths: tuple[Path, ...]) -> dict[str, float]:
    """The share of right answers among the sampled ones, by id.

    Raises:
        ManifestError: a line is no result of an evaluation, or a question was not sampled.
    """
    rates: dict[str, float] = {}
    for path in paths:
        for where, row in read_rows(path):
            try:
                name, right = row["sample_id"], [bool(attempt["correct"]) for attempt in row["sampled"]]
            except (TypeError, KeyError) as error:
                raise ManifestError(f"{where}: is no result of eval.run ({error!r}); give its samples.jsonl") from error
            if not right:
                raise ManifestError(f"{where}: {name!r} has no sampled answer; evaluate with samples=k, k at least 2")
            rates[name] = sum(right) / len(right)
    return rates


@lru_cache(maxsize=4)
def quarantined(paths: tuple[Path, ...]) -> dict[str, str]:
    """Reason by path of the media.

    Raises:
        ManifestError: a line is not of a quarantine list.
    """
    reasons: dict[str, str] = {}
    for path in paths:
        for where, row in read_rows(path):
            try:
                reasons[row["path"]] = f"{row['reason']}: {row['message']}"
            except (TypeError, KeyError) as error:
                raise ManifestError(f"{where}: is no line of a quarantine list of `probe` ({error!r})") from error
    return reasons


@dataclass(frozen=True)
class Filter:
    """The task of a shard, and all that decides which records stay."""

    rates: tuple[Path, ...] = ()
    keep_rate: Bounds | None = None  # None: above 0 and below 1
    quarantine: tuple[Path, ...] = ()
    question: Bounds = ANY  # characters
    rationale: Bounds = ANY  # characters
    seconds: Bounds = ANY
    difficulty: Bounds = ANY
    difficulty_field: str = "difficulty"
    max_tokens: int | None = None
    settings: tuple[str, ...] = ()
    probe: tuple[Path, ...] = field(default=())

    def __call__(self, chunk: Chunk) -> ShardResult:
        result, reasons = ShardResult([], ShardReport()), Counter[str]()
        for where, sample in chunk_samples(chunk):
            result.report.rows += 1
            why = next(self.objections(sample, where), None)
            if why is None:
                result.lines.append(dumps(sample_to_record(sample)))
                result.ids.append(sample.id)
                continue
            reasons[why[0]] += 1
            result.dropped.append({"where": where, "id": sample.id, "reason": why[0], "message": why[1]})
        result.report.written, result.report.dropped = len(result.lines), dict(reasons)
        return result

    def objections(self, sample: Sample, where: str) -> Iterator[tuple[str, str]]:
        """Reasons, with the numbers behind them, why a record goes."""
        bad = quarantined(self.quarantine) if self.quarantine else {}
        yield from (("quarantine", f"{m.path}: {bad[m.path]}") for m in sample.media if m.path in bad)
        if self.rates:
            yield from self._by_rate(sample, where)
        lengths = (
            ("question_chars", sum(len(message.content) for message in sample.messages), self.question),
            ("rationale_chars", len(sample.rationale or ""), self.rationale),
        )
        yield from (_outside(name, value, bounds) for name, value, bounds in lengths if not _within(value, bounds))
        if self.difficulty != ANY:
            yield from self._by_difficulty(sample)
        if self.seconds != ANY:
            yield from self._by_seconds(sample, where)
        if self.max_tokens is not None:
            yield from self._by_tokens(sample)

    def _by_rate(self, sample: Sample, where: str) -> Iterator[tuple[str, str]]:
        rate = pass_rates(self.rates).get(sample.id)
        if rate is None:
            raise VisdError(f"{where}: sample {sample.id!r} is not among the answers of {self.rates[0]}; ask it too")
        if self.keep_rate is None:
            if rate in (0.0, 1.0):
                yield "pass_rate", f"{'all' if rate else 'none'} of the sampled answers are right"
        elif not _within(rate, self.keep_rate):
            yield _outside("pass_rate", rate, self.keep_rate)

    def _by_difficulty(self, sample: Sample) -> Iterator[tuple[str, str]]:
        value = sample.meta.get(self.difficulty_field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            yield "difficulty", f"meta.{self.difficulty_field} holds no number"
        elif not _within(value, self.difficulty):
            yield _outside("difficulty", value, self.difficulty)

    def _by_seconds(self, sample: Sample, where: str) -> Iterator[tuple[str, str]]:
        probed = load_probed(self.probe) if self.probe else None
        for item in sample.media:
            if item.kind != "video":
                continue
            file = probed.get(item.path) if probed is not None else None
            end = item.end if item.end is not None else file.duration if file else sample.meta.get("duration")
            if end is None:
                raise VisdError(f"{where}: sample {sample.id!r}: how long {item.path!r} is, is not known; give --probe")
            seconds = end - (item.start or 0.0)
            if not _within(seconds, self.seconds):
                yield _outside("seconds", seconds, self.seconds)

    def _by_tokens(self, sample: Sample) -> Iterator[tuple[str, str]]:
        from data_tools.tokens import token_counter  # loads a tokenizer, and torch

        try:
            budget = token_counter(self.settings).count(sample, load_probed(self.probe) if self.probe else None)
        except DecodeError as error:
            yield error.reason, str(error)
            return
        if budget.tokens > (self.max_tokens or 0):
            yield "tokens", f"its prompt has {budget.tokens} tokens, {budget.visual} of them of media"


def _within(value: float, bounds: Bounds) -> bool:
    return bounds[0] <= value <= bounds[1]


def _outside(name: str, value: float, bounds: Bounds) -> tuple[str, str]:
    return name, f"{name} {value:g} is not within {bounds[0]:g}:{bounds[1]:g}"


def _finish(work: ShardedWork, report: ShardReport, out: Path) -> int:
    write_kept(work, report, out)
    about = {"rows": report.rows, "written": report.written, "dropped": report.dropped}
    write_atomic(beside(out, "report.json"), strict_json.dumps(about, indent=2) + "\n")
    print(f"{out}: {summary(report)}")
    return 0
