"""How fast a language-model judge is asked, and how much of its time a step sees.

    python scripts/bench/judge.py [--judgements 256] [--latency 0.05]

The judge's server is a process of its own that answers every request after a fixed time. First: the time for many
judgements, against the bound that the concurrency gives, judgements / concurrency * latency. Second: steps that sample
64 rollouts in batches, while the process is busy as generation on a GPU is (it sleeps), with a judge of 200 ms that is
given each batch as it is done, or all at the end, 16 at once. Exposed is the time that the step spends on sending requests
and waiting for reports. Best of three.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from visd.judge.base import JudgeServices
from visd.judge.openai import OpenAIJudge
from visd.types import Answer, Evidence, Media, Message, Prompt, Rollout, RolloutGroup, Sample

REPORT: dict[str, Any] = {
    "answer": 1.0,
    "logic": 0.5,
    "temporal": 0.5,
    "spatial": None,
    "feedback": "The answer is right. The reasoning is thin.",
    "spans": [],
}
ROLLOUTS, GROUP = 64, 8
"""Of a step, and of a prompt."""


def serve(latency: float, pipe: Connection) -> None:
    """Answer everything after `latency` seconds; the port goes through the pipe."""
    message = {"message": {"content": json.dumps(REPORT)}, "finish_reason": "stop"}
    body = json.dumps({"choices": [message], "usage": {"prompt_tokens": 900, "completion_tokens": 60}}).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                await asyncio.sleep(latency)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def judge(latency: float, concurrency: int, folder: str) -> Iterator[OpenAIJudge]:
    """An opened judge whose connections are warm, and its server."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(latency, theirs), daemon=True)
    process.start()
    found = OpenAIJudge(base_url=f"http://127.0.0.1:{ours.recv()}/v1", model="bench", concurrency=concurrency)
    found.open(JudgeServices(Path(folder) / str(process.pid), lambda media: (_ for _ in ()).throw(AssertionError)))
    found.judge(groups(concurrency, "warm"))
    try:
        yield found
    finally:
        found.close()
        process.terminate()
        process.join()


def groups(rollouts: int, name: str) -> list[RolloutGroup]:
    """Groups of distinct rollouts of about 1,500 characters."""
    evidence = Evidence(((1.0, 3.0),), (1.0, 2.0))
    prompt: Prompt = None  # type: ignore[assignment]  # no judge reads it
    found = []
    for start in range(0, rollouts, GROUP):
        sample = Sample(
            f"{name}{start}", "bench", "which", (Media("video", "x.mp4"),), (Message("user", "Which way?"),),
            Answer("word", "right"), evidence,
        )  # fmt: skip
        texts = [
            f"<think>{i}: {'it moves at <t>1.5</t>s to the right. ' * 40}</think><answer>right</answer>"
            for i in range(min(GROUP, rollouts - start))
        ]
        found.append(
            RolloutGroup(sample, prompt, tuple(Rollout((), (), text, (), "eos", i, 0) for i, text in enumerate(texts)))
        )
    return found


def throughput(asked: OpenAIJudge, judgements: int, run: int) -> tuple[float, float]:
    """Seconds for so many judgements at once, and seconds of a processor that all threads of this process took."""
    work = groups(judgements, f"run{run}-")
    began, used = time.perf_counter(), time.process_time()
    reports = asked.judge(work)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    assert all(report.status == "ok" for of in reports for report in of)
    return seconds, used


def exposed(asked: OpenAIJudge, batches: int, busy: float, early: bool, run: int) -> float:
    """Seconds that one step spends on its reports, those for sending requests included."""
    work = groups(ROLLOUTS, f"step{batches}-{early}-{run}-")
    size, waited = len(work) // batches, 0.0
    for start in range(0, len(work), size):
        time.sleep(busy / batches)
        if early:
            began = time.perf_counter()
            asked.submit(work[start : start + size])
            waited += time.perf_counter() - began
    began = time.perf_counter()
    asked.judge(work)
    return waited + time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judgements", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.05, help="s of one judgement")
    parser.add_argument("--busy", type=float, default=2.4, help="s of generation a step")
    args = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        table = Table("at once", f"{args.judgements} judgements, s", "bound, s", "ratio", "processor, ms each")
        for concurrency in (4, 8, 16, 32):
            with judge(args.latency, concurrency, folder) as asked:
                best, used = min(throughput(asked, args.judgements, run) for run in range(3))
            bound = args.judgements / concurrency * args.latency
            table.add_row(
                str(concurrency),
                f"{best:.3f}",
                f"{bound:.3f}",
                f"{best / bound:.2f}",
                f"{used / args.judgements * 1e3:.2f}",
            )
        console.print(table)
        table = Table("batches a step", "exposed, asked at the end, s", "exposed, asked as batches end, s", "ratio")
        with judge(0.2, 16, folder) as asked:
            for batches in (1, 2, 4, 8):
                late, early = (
                    min(exposed(asked, batches, args.busy, when, run) for run in range(3)) for when in (False, True)
                )
                table.add_row(str(batches), f"{late:.3f}", f"{early:.3f}", f"{early / late:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
