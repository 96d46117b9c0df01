"""Answers of a judge on disk: replayed, written together, never lost once a step has them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.judge_server import GOOD, JudgeServer, Reply, completion
from tests.unit.judge_data import Make, opened_judges, replies, statuses, texts
from visd.judge.cache import AnswerCache
from visd.judge.client import Outcome
from visd.types import VisdError


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from opened_judges(tmp_path)


def test_answers_are_replayed_without_the_server(make: Make) -> None:
    with JudgeServer(lambda number, body: Reply(completion({**GOOD, "answer": number / 8}))) as server:
        first = make(server, concurrency=1)
        told, counted = first.judge([texts(4)]), first.take_counts()
    again = make(None, cache="read_only")
    assert again.judge([texts(4)]) == told
    assert again.take_counts() == {**counted, "replayed": 4}
    assert again.state_dict() == first.state_dict()
    missing = make(None, cache="read_only").judge([texts(5)])
    assert statuses(missing) == ["ok"] * 4 + ["skipped"]


def test_what_failed_on_the_way_is_asked_again_but_replayed_as_it_was(make: Make) -> None:
    with JudgeServer(replies(Reply(status=500), Reply())) as server:
        assert statuses(make(server, retries=0).judge([texts(1)])) == ["timeout"]
        assert statuses(make(None, cache="read_only").judge([texts(1)])) == ["timeout"]
        assert statuses(make(server, retries=0).judge([texts(1)])) == ["ok"]
    assert statuses(make(None, cache="read_only").judge([texts(1)])) == ["ok"]


def test_answers_are_written_together_and_before_the_step_goes_on(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put, batches = AnswerCache.put, []

    def counted(cache: AnswerCache, outcomes: Mapping[str, Outcome]) -> None:
        batches.append(len(outcomes))
        put(cache, outcomes)

    monkeypatch.setattr(AnswerCache, "put", counted)
    with JudgeServer() as server:
        make(server).judge([texts(40)])
    with sqlite3.connect(tmp_path / "judge" / "answers-00000.sqlite") as other:
        assert other.execute("SELECT COUNT(*) FROM answers WHERE status = 'ok'").fetchone() == (40,)
    assert len(batches) < 20


def test_what_was_answered_is_kept_when_a_run_ends_before_its_step(make: Make) -> None:
    with JudgeServer(lambda number, body: Reply(delay=60.0 if number else 0.0)) as server:
        judge = make(server, concurrency=1)
        judge.submit([texts(3)])
        while len(server.requests) < 2:
            time.sleep(0.01)
        judge.close()
    assert statuses(make(None, cache="read_only").judge([texts(3)])) == ["ok", "skipped", "skipped"]


def test_a_full_disk_stops_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer() as server:
        judge = make(server)
        judge.submit([])
        judge._server._cache._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(VisdError, match=r"answers-00000\.sqlite.*free space"):
            judge.judge([texts(40)])
        with pytest.raises(VisdError, match="free space"):
            judge.close()


def test_without_a_cache_everything_is_asked(make: Make, tmp_path: Path) -> None:
    with JudgeServer() as server:
        for _ in range(2):
            make(server, cache="off").judge([texts(1)])
    assert len(server.requests) == 2 and not list(tmp_path.rglob("*.sqlite"))


def test_the_answers_may_lie_elsewhere(make: Make, tmp_path: Path) -> None:
    with JudgeServer() as server:
        make(server, cache_dir=str(tmp_path / "shared")).judge([texts(1)])
    assert [path.name for path in (tmp_path / "shared").glob("*.sqlite")] == ["answers-00000.sqlite"]


def test_a_damaged_file_of_answers_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "answers-00000.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(VisdError, match=r"answers-00000\.sqlite"):
        make(None).judge([texts(1)])
