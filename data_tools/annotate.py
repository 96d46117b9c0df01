"""`python -m data_tools annotate`: reasoning traces and key-frame evidence from a vision model, for sets that have none.

    python -m data_tools annotate train.jsonl --root /data/videos --out annotated.jsonl \\
        --base-url http://127.0.0.1:8000/v1 --model Qwen2.5-VL-72B-Instruct --samples 4 --agree 2

Each record without a trace is put to an OpenAI-compatible server, with frames and their times and without its answer, --samples
times. It is kept if --agree of the answers are well formed and right by its own verified answer. Its trace is the answer with the
most boxes that another right answer confirms: the same thing, at about the same time and place. Other boxes are taken out of
the trace; where a record has no boxes, the confirmed ones and their times become its evidence. Records that have a trace stay
as they are.

OUT.dropped.jsonl lists the records without agreement. Answers are kept in OUT.answers.sqlite: a restart asks nothing twice.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.annotation import agreed, annotated
from data_tools.io.cli import guarded, summary, tool_parser
from data_tools.io.manifests import check_kind, chunk_samples, dumps
from data_tools.io.passes import (
    Pass,
    add_pass_arguments,
    beside,
    check_manifests,
    run_pass,
    write_kept,
)
from data_tools.io.rows import Chunk
from data_tools.io.shards import ShardedWork, ShardReport, ShardResult
from visd.config import FramesSection, VideoSection
from visd.data.manifest import sample_to_record
from visd.data.prompts import instruction
from visd.judge.client import Outcome, Retry
from visd.judge.limits import RateLimiter, estimated_tokens
from visd.judge.prompt import pictures_of
from visd.judge.server import Address, Server, proxy_of
from visd.media.cache import FrameCache
from visd.media.errors import DecodeError
from visd.seeding import derive_seed
from visd.types import Sample, VisdError

SHARD = 64
FACTOR = 28
"""Both sides of a frame become multiples of this many pixels."""
SYSTEM = (
    "You look at frames of a video, or at images, and answer a question about them. Reason step by step from what is to be "
    "seen. Point at each thing you rely on, with the time of a frame that shows it and its box as shares of the frame's width "
    "and height, from its left and top edge. Say only what you see."
)


def main(arguments: list[str]) -> int:
    parser = tool_parser("annotate", __doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests to annotate")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    parser.add_argument("--root", type=Path, required=True, help="data root")
    parser.add_argument("--model", required=True, help="as the server names it")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="of the server")
    parser.add_argument("--api-key-env", default="", help="name of the environment variable that holds the key")
    parser.add_argument("--samples", type=int, default=4, help="answers a record")
    parser.add_argument("--agree", type=int, default=2, help="how many of them must be right")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--max-answer-tokens", type=int, default=1024, help="longest answer")
    parser.add_argument("--max-frames", type=int, default=16, help="frames sent of a video")
    parser.add_argument("--max-pixels", type=int, default=448 * 448, help="pixels of a frame that is sent")
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way")
    parser.add_argument("--requests-per-minute", type=float, default=0.0, help="0 sets no limit")
    parser.add_argument("--timeout", type=float, default=120.0, help="s, of one try")
    parser.add_argument("--retries", type=int, default=4, help="further tries")
    parser.add_argument(
        "--backoff", type=float, default=1.0, help="s before the first of them, doubled before each next one"
    )
    add_pass_arguments(parser, SHARD, engine=False)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: _main(chosen))


def _main(chosen: argparse.Namespace) -> int:
    check_kind(chosen.out)
    check_manifests(chosen.manifests)
    if not chosen.root.is_dir():
        raise VisdError(f"--root {chosen.root}: is no folder")
    if not 1 <= chosen.agree <= chosen.samples:
        raise VisdError(f"--agree {chosen.agree}: must be at least 1 and at most --samples = {chosen.samples}")
    asking = Asking(chosen.model, chosen.samples, chosen.agree, chosen.temperature, chosen.max_answer_tokens)
    video = VideoSection(fps=2.0, min_frames=2, max_frames=chosen.max_frames, max_pixels=chosen.max_pixels)
    means = Means(chosen, video)
    try:
        return run_pass(
            chosen.out,
            [*chosen.manifests],
            Annotate(asking, str(chosen.root), video, means),
            Pass(1, chosen.shard_rows, chosen.overwrite),  # requests go out together, frames are decoded in processes
            lambda work, report: _finish(work, report, chosen.out),
            name="annotate",
        )
    finally:
        means.close()


@dataclass(frozen=True)
class Asking:
    """All that decides what is asked."""

    model: str
    samples: int
    agree: int
    temperature: float
    max_tokens: int

    def body(self, sample: Sample, pictures: Sequence[dict[str, Any]], number: int) -> bytes:
        """The request for answer `number` of a sample."""
        question = sample.question()
        text = "\n\n".join(message.content for message in question.messages if message.role != "system")
        for placeholder in ("<video>", "<image>"):
            text = text.replace(placeholder, "")
        options = "".join(f"\n{chr(ord('A') + i)}. {option}" for i, option in enumerate(sample.answer.options))
        asked = f"{text.strip()}{'' if _lists_options(sample) else options}\n\n{instruction(question)}"
        request = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": [*pictures, {"type": "text", "text": asked}]},
            ],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": derive_seed("annotate", sample.id, number) % 2**31,
        }
        return json.dumps(request, ensure_ascii=False).encode()


def _lists_options(sample: Sample) -> bool:
    """Whether the question names its options itself."""
    text = sample.messages[-1].content
    return all(option in text for option in sample.answer.options)


class Means:
    """What asking needs, made when it is first needed."""

    def __init__(self, chosen: argparse.Namespace, video: VideoSection):
        self._chosen, self._video = chosen, video
        self._server: Server | None = None
        self._frames: FrameCache | None = None

    @property
    def url(self) -> str:
        return str(self._chosen.base_url)

    @property
    def server(self) -> Server:
        if self._server is None:
            chosen = self._chosen
            key = os.environ.get(chosen.api_key_env, "") if chosen.api_key_env else ""
            if chosen.api_key_env and not key:
                raise VisdError(f"--api-key-env {chosen.api_key_env}: is not set in the environment")
            self._server = Server(
                Address(
                    base_url=chosen.base_url,
                    key=key,
                    proxy=proxy_of(chosen.base_url),
                    concurrency=chosen.concurrency,
                    retry=Retry(chosen.timeout, chosen.retries, chosen.backoff),
                    limiter=RateLimiter(chosen.requests_per_minute, 0),
                    may_retry=lambda: True,
                    cache="read_write",
                    cache_file=beside(chosen.out, "answers.sqlite"),
                )
            )
        return self._server

    @property
    def frames(self) -> FrameCache:
        if self._frames is None:
            section = FramesSection(workers=self._chosen.num_workers, cache_mb=256)
            self._frames = FrameCache(self._chosen.root, self._video, FACTOR, section)
        return self._frames

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


@dataclass(frozen=True)
class Annotate:
    """The task of a shard."""

    asking: Asking
    root: str
    video: VideoSection
    means: Means = field(repr=False)  # decides no result

    def __call__(self, chunk: Chunk) -> ShardResult:
        samples = list(chunk_samples(chunk))
        new = [sample for _, sample in samples if sample.rationale is None]
        self.means.frames.prefetch(item for sample in new for item in sample.media)
        waiting: dict[str, list[Future[Outcome]] | DecodeError] = {}
        for sample in new:
            try:
                waiting[sample.id] = self._ask(sample)
            except DecodeError as error:
                waiting[sample.id] = error
        result, reasons = ShardResult([], ShardReport(rows=len(samples))), Counter[str]()
        outcomes = {
            name: [future.result() for future in asked] for name, asked in waiting.items() if isinstance(asked, list)
        }
        self._check_server([outcome for of in outcomes.values() for outcome in of])
        for where, sample in samples:
            problem = waiting.get(sample.id)
            made = problem if isinstance(problem, DecodeError) else self._made(sample, outcomes.get(sample.id))
            if isinstance(made, Sample):
                result.lines.append(dumps(sample_to_record(made)))
                result.ids.append(made.id)
                continue
            reason, message = (made.reason, str(made)) if isinstance(made, DecodeError) else made
            reasons[reason] += 1
            result.dropped.append({"where": where, "id": sample.id, "reason": reason, "message": message})
        result.report.written, result.report.dropped = len(result.lines), dict(reasons)
        return result

    def _ask(self, sample: Sample) -> list[Future[Outcome]]:
        frames = [self.means.frames.get(item) for item in sample.media]
        pictures = pictures_of(frames, self.video.max_frames)
        bodies = [self.asking.body(sample, pictures, number) for number in range(self.asking.samples)]
        return [self.means.server.ask(body, estimated_tokens(2000, len(pictures) // 2)) for body in bodies]

    def _check_server(self, outcomes: Sequence[Outcome]) -> None:
        """Raise VisdError if a whole shard has had no answer: then it is not the records that are at fault."""
        if outcomes and not any(outcome.status in ("ok", "parse_failure") for outcome in outcomes):
            last = outcomes[-1]
            raise VisdError(
                f"{self.means.url}: gave no answer to {len(outcomes)} requests, the last one because of "
                f"{last.status} ({last.note}); check --base-url, --model and the server"
            )

    def _made(self, sample: Sample, outcomes: Sequence[Outcome] | None) -> Sample | tuple[str, str]:
        """The annotated sample, or why there is none."""
        if outcomes is None:
            return sample  # it has a trace
        texts = [outcome.text for outcome in outcomes if outcome.status == "ok"]
        found = agreed(sample, texts, self.asking.agree)
        if found is not None:
            return annotated(sample, found, self.asking.model, self.asking.samples)
        failed = [f"{outcome.status} ({outcome.note})" for outcome in outcomes if outcome.status != "ok"]
        told = f"; {len(failed)} requests failed, as by {failed[-1]}" if failed else ""
        reason = "no_answer" if len(texts) < self.asking.agree else "no_agreement"
        return reason, f"fewer than {self.asking.agree} of {len(outcomes)} answers are well formed and right{told}"


def _finish(work: ShardedWork, report: ShardReport, out: Path) -> int:
    write_kept(work, report, out)
    print(f"{out}: {summary(report)}")
    return 0
