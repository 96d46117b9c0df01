"""Judges on a scripted server, for the tests of what they ask and what they keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.judge_server import JudgeServer, Reply, Script
from tests.unit.reward_data import group, response, sample
from visd.judge.base import JudgeServices
from visd.judge.openai import OpenAIJudge
from visd.types import Answer, Frames, JudgeReport, Media, RolloutGroup

OF = sample(Answer("word", "right"))
FAST: dict[str, Any] = {"model": "judge-1", "backoff": 0.01, "timeout": 2.0, "max_failure_rate": 1.0}
Make = Callable[..., OpenAIJudge]


def opened_judges(tmp_path: Path) -> Iterator[Make]:
    """For a fixture: builds opened judges and closes them."""
    made = []

    def judge(server: JudgeServer | None, frames: Callable[[Media], Frames] | None = None, **settings: Any) -> Any:
        url = {"base_url": server.url} if server else {}
        found = OpenAIJudge(**{**FAST, **url, **settings})
        found.open(JudgeServices(tmp_path / "judge", frames or no_frames))
        made.append(found)
        return found

    yield judge
    for each in made:
        each.close()


def no_frames(media: Media) -> Frames:
    raise AssertionError("a judge that sees the evidence asked for frames")


def texts(count: int) -> RolloutGroup:
    return group(OF, *(response(f"number {i} so right", "right") for i in range(count)))


def statuses(reports: list[tuple[JudgeReport, ...]]) -> list[str]:
    return [report.status for of in reports for report in of]


def replies(*script: Reply) -> Script:
    """The given replies, then the last one for ever."""
    return lambda number, body: script[min(number, len(script) - 1)]
