"""The language-model judge against a scripted server: nothing hangs, nothing is lost, every outcome is counted."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.judge_server import GOOD, JudgeServer, Reply, Script, completion
from tests.unit.judge_data import OF, Make, no_frames, opened_judges, replies, statuses, texts
from tests.unit.reward_data import claim, group, proof, response, sample
from visd.config import ConfigError
from visd.judge.base import JudgeServices
from visd.judge.limits import Spent
from visd.judge.openai import OpenAIJudge
from visd.media.errors import DecodeError
from visd.types import Answer, Frames, JudgeReport, Media, Rewards, VisdError


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    yield from opened_judges(tmp_path)


def shown(body: dict[str, Any]) -> str:
    return body["messages"][1]["content"]


# ---------------------------------------------------------------------------------------------- what is sent


def test_scores_feedback_and_spans_arrive(make: Make) -> None:
    spans = [
        {"quote": claim(), "dimension": "spatial", "verdict": "right"},
        {"quote": "not there", "dimension": "logic", "verdict": "wrong"},
    ]
    answer = {**GOOD, "temporal": 0.25, "spatial": 0.75, "spans": spans}
    text = response(f"I see {claim()} so right", "right")
    with JudgeServer(replies(Reply(completion(answer)))) as server:
        judge = make(server)
        ((report,),) = judge.judge([group(sample(Answer("word", "right"), proof()), text)])
    assert (report.status, report.answer, report.logic, report.temporal, report.spatial) == ("ok", 1, 0.5, 0.25, 0.75)
    assert report.feedback == GOOD["feedback"]
    assert [text[s.start : s.end] for s in report.spans] == [claim()]
    counts = judge.take_counts()
    assert (counts["calls"], counts["spans_dropped"], counts["prompt_tokens"]) == (1, 1, 100)
    assert judge.take_counts()["calls"] == 0


def test_the_request_is_what_the_settings_say(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    with JudgeServer() as server:
        settings = {"temperature": 0.3, "max_tokens": 77, "extra_body": {"seed": 5, "max_tokens": None}}
        make(server, api_key_env="JUDGE_KEY", **settings).judge([texts(1)])
        make(server, structured="json_object", model="judge-2").judge([texts(1)])
        make(server, structured="none", model="judge-3").judge([texts(1)])
    first, second, third = server.requests
    assert (first["model"], first["temperature"], first["seed"]) == ("judge-1", 0.3, 5)
    assert "max_tokens" not in first and second["max_tokens"] == 1024
    schema = first["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["properties"]["temporal"] == {"type": "null"}
    order = ["answer", "logic", "temporal", "spatial", "feedback", "spans"]
    assert list(schema["schema"]["properties"]) == order  # a server holds the model to it
    assert second["response_format"] == {"type": "json_object"} and "response_format" not in third
    assert server.headers[0]["authorization"] == "Bearer secret-1"
    assert "authorization" not in server.headers[1]
    assert "number 0 so right" in shown(first)


def test_frames_are_attached_where_the_judge_sees_them(make: Make) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 28, 28, 3), np.uint8)
    frames = Frames(pixels, (0.0, 0.5, 1.0, 1.5, 2.0), (0, 1, 2, 3, 4), 2.0, 2.5)
    of = sample(Answer("word", "right"), proof())
    with JudgeServer() as server:
        for sees in ("frames", "both"):
            make(server, lambda media: frames, sees=sees, max_frames=3).judge([group(of, "x")])
    for body, evidence in zip(server.requests, (False, True), strict=True):
        content = body["messages"][1]["content"]
        assert [part["type"] for part in content] == ["text", "image_url"] * 3 + ["text"]
        assert [part["text"] for part in content[:-1:2]] == [f"Frame at {t} s:" for t in (0.0, 1.0, 2.0)]
        assert all(part["image_url"]["url"].startswith("data:image/jpeg;base64,") for part in content[1::2])
        assert ("verified_boxes" in content[-1]["text"]) == evidence
        assert '"verified_answer": "right"' in content[-1]["text"]


def test_frames_that_cannot_be_read_any_more_are_skipped(make: Make) -> None:
    def gone(media: Media) -> Frames:
        raise DecodeError("missing", media.path, "there is no such file.")

    with JudgeServer() as server:
        judge = make(server, gone, sees="both")
        assert statuses(judge.judge([texts(3)])) == ["skipped"] * 3
    assert not server.requests and judge.take_counts()["calls"] == 0


# -------------------------------------------------------------------------------------------------- faults

BROKEN = {**GOOD, "answer": "high"}


@pytest.mark.parametrize(
    ("script", "status", "calls"),
    [
        (replies(Reply(status=500, body=b"oops"), Reply()), "ok", 2),
        (replies(Reply(status=429, headers={"retry-after": "0.05"}), Reply()), "ok", 2),
        (replies(Reply(cut=20), Reply()), "ok", 2),
        (replies(Reply(cut=0), Reply()), "ok", 2),
        (replies(Reply(delay=0.6), Reply()), "ok", 2),
        (replies(Reply(b"<html>busy</html>"), Reply()), "ok", 2),
        (replies(Reply(b'{"choices": ['), Reply()), "ok", 2),
        (replies(Reply(b'{"error": {"message": "x"}}')), "parse_failure", 3),
        (replies(Reply(completion(GOOD) + b" " * 10_000_000)), "parse_failure", 3),
        (replies(Reply(b"x", headers={"content-encoding": "gzip"})), "parse_failure", 3),
        (replies(Reply(completion(""))), "parse_failure", 3),
        (replies(Reply(status=503)), "timeout", 3),
        (replies(Reply(status=429)), "timeout", 3),
        (replies(Reply(drip=0.05)), "timeout", 3),
        (replies(Reply(status=400, body=b"no such model")), "refused", 1),
        (replies(Reply(status=302, headers={"location": "/elsewhere"})), "refused", 1),
        (replies(Reply(completion(None, refusal="I cannot"))), "refused", 1),
        (replies(Reply(completion(GOOD).replace(b'"stop"', b'"content_filter"'))), "refused", 1),
        (replies(Reply(completion(f"```json\n{json.dumps(GOOD)}\n```"))), "repaired", 1),
        (replies(Reply(completion(BROKEN))), "parse_failure", 1),
        (replies(Reply(completion("I think it is fine."))), "parse_failure", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_fault_has_its_status(make: Make, script: Script, status: str, calls: int) -> None:
    with JudgeServer(script) as server:
        judge = make(server, retries=2, timeout=0.3)
        started = time.monotonic()
        ((report,),) = judge.judge([texts(1)])
        assert time.monotonic() - started < 5
    assert (report.status, len(server.requests), judge.take_counts()["calls"]) == (status, calls, calls)
    if not report.usable:
        assert report == JudgeReport(report.status)  # nothing is made up


def test_a_server_that_is_not_there_is_a_timeout(make: Make) -> None:
    with JudgeServer() as server:
        pass
    assert statuses(make(server, retries=1).judge([texts(2)])) == ["timeout"] * 2


def test_a_proxy_of_the_environment_is_used(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And what ~/.netrc holds for the server is not sent."""
    (tmp_path / "netrc").write_text("default login someone password secret-1\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("no_proxy", raising=False)
    with JudgeServer() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert statuses(make(None, base_url="http://judge.invalid:81/v1", cache="off").judge([texts(1)])) == ["ok"]
        monkeypatch.setenv("no_proxy", "judge.invalid")
        assert statuses(
            make(None, base_url="http://judge.invalid:82/v1", retries=0, cache="off").judge([texts(1)])
        ) == ["timeout"]
    (headers,) = proxy.headers
    assert headers["host"] == "judge.invalid:81" and "authorization" not in headers
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"judge\.base_url.*HTTP_PROXY"):
        make(None)


def test_replies_out_of_order_reach_their_rollouts(make: Make) -> None:
    """Each answer carries the number of its rollout, and the first to be asked is the last to be answered."""

    def script(number: int, body: dict[str, Any]) -> Reply:
        which = int(shown(body).split("number ")[1].split()[0])
        return Reply(completion({**GOOD, "answer": which / 10}), delay=0.02 * (10 - which))

    with JudgeServer(script) as server:
        reports = make(server, concurrency=10).judge([texts(10)])
    assert [report.answer for report in reports[0]] == [i / 10 for i in range(10)]


def test_a_storm_of_faults_loses_nothing(make: Make) -> None:
    """Every request fails up to four times, each time otherwise; one in five is answered with nonsense then."""
    faults = [Reply(status=500), Reply(cut=9), Reply(b"<p>"), Reply(status=429)]
    tries: Counter[str] = Counter()

    def script(number: int, body: dict[str, Any]) -> Reply:
        text = shown(body)
        tries[text] += 1
        which = int(text.split("number ")[1].split()[0])
        if tries[text] <= which % 5:
            return faults[(which + tries[text]) % 4]
        return Reply(completion(BROKEN if which % 5 == 0 else GOOD))

    with JudgeServer(script) as server:
        judge = make(server, retries=4, concurrency=8)
        reports = judge.judge([texts(20), replace(texts(20), sample=replace(OF, id="s2"))])
    expected = ["parse_failure" if i % 5 == 0 else "ok" for i in range(20)]
    assert statuses(reports) == expected * 2
    assert judge.take_counts()["calls"] == len(server.requests) == 40 + 2 * 4 * (1 + 2 + 3 + 4)
    assert judge.state_dict()["spent"]["calls"] == len(server.requests)
    assert server.most_under_way <= 8


# ------------------------------------------------------------------------------------- limits and budgets


def test_no_more_requests_are_under_way_than_allowed(make: Make) -> None:
    with JudgeServer(replies(Reply(delay=0.03))) as server:
        make(server, concurrency=3).judge([texts(12)])
    assert server.most_under_way == 3


def test_equal_rollouts_are_asked_about_once(make: Make) -> None:
    with JudgeServer() as server:
        reports = make(server).judge([group(OF, "same", "same", "other")])
    assert statuses(reports) == ["ok"] * 3 and len(server.requests) == 2


@pytest.mark.parametrize(
    "budget",
    [
        {"budget_calls": 5},
        {"budget_tokens": 3000},
        {"budget_usd": 0.003, "usd_per_million_prompt": 1.0, "usd_per_million_completion": 1.0},
    ],
)
def test_a_budget_ends_the_asking_politely(make: Make, budget: dict[str, Any], caplog: Any) -> None:
    """One judgement takes 120 tokens; before it is asked there must be room for its estimate, which is more."""
    with JudgeServer() as server:
        judge = make(server, max_tokens=100, **budget)
        found = [statuses(judge.judge([group(OF, f"rollout {i}")]))[0] for i in range(25)]
    asked = len(server.requests)
    assert found == ["ok"] * asked + ["over_budget"] * (25 - asked)
    assert asked == 5 if "budget_calls" in budget else asked >= 2 and asked * 120 < 3000
    assert asked < 25 and caplog.text.count("budget is spent") == 1


def test_retries_cannot_break_the_budget(make: Make) -> None:
    with JudgeServer(replies(Reply(status=500))) as server:
        reports = make(server, budget_calls=4, retries=9).judge([texts(3)])
    assert len(server.requests) == 4
    assert set(statuses(reports)) == {"timeout"}


def test_ranks_share_limits_and_budget(tmp_path: Path) -> None:
    judge = OpenAIJudge(model="m", concurrency=16, budget_calls=10, budget_usd=4.0, usd_per_million_prompt=1.0)
    judge.open(JudgeServices(tmp_path, no_frames, rank=1, ranks=4))
    assert judge._address.concurrency == 4
    assert (judge._budget.calls, judge._budget.usd) == (3, 1.0)


def test_another_number_of_ranks_shares_what_was_spent_and_seen(tmp_path: Path) -> None:
    def spent(*judges: OpenAIJudge) -> list[int]:
        return [judge._budget.spent.calls for judge in judges]

    def opened(rank: int, ranks: int) -> OpenAIJudge:
        judge = OpenAIJudge(model="m", budget_calls=100, window=10, max_failure_rate=1.0)
        judge.open(JudgeServices(tmp_path, no_frames, rank, ranks))
        return judge

    before = [opened(rank, 2) for rank in range(2)]
    for judge, calls in zip(before, (5, 8), strict=True):
        judge._budget.spent = Spent(calls)
        judge._watch.update([(JudgeReport("timeout"), None)] * calls, "")
    states = [json.loads(json.dumps(judge.state_dict())) for judge in before]
    for ranks, expected, seen in ((1, [13], [10]), (2, [5, 8], [5, 8]), (3, [5, 4, 4], [5, 8, 5])):
        after = [opened(rank, ranks) for rank in range(ranks)]
        for judge in after:
            judge.load_state_dicts(states)
        assert spent(*after) == expected
        assert [len(judge.state_dict()["statuses"]) for judge in after] == seen


# ------------------------------------------------------------------------------------------- stop thresholds


def test_too_many_failures_stop_the_run_and_say_why(make: Make) -> None:
    reply = Reply(status=401, body=b"bad key")
    with JudgeServer(replies(reply)) as server, pytest.raises(VisdError, match=r"refused: 6.*HTTP 401: bad key"):
        make(server, window=10, max_failure_rate=0.5).judge([texts(6)])
    with JudgeServer(replies(reply)) as server:
        assert statuses(make(server, window=10, max_failure_rate=0.5).judge([texts(5)])) == ["refused"] * 5


def test_the_window_of_failures_survives_a_restart(make: Make) -> None:
    with JudgeServer(replies(Reply(status=400))) as server:
        first = make(server, window=10, max_failure_rate=0.5)
        first.judge([texts(5)])
        second = make(server, window=10, max_failure_rate=0.5)
        second.load_state_dicts([json.loads(json.dumps(first.state_dict()))])
        with pytest.raises(VisdError, match="failed 6 of the last 6"):
            second.judge([group(OF, "one more")])


def test_a_judge_that_contradicts_the_reward_stops_the_run(make: Make) -> None:
    wrong = Rewards(0.0, {}, correct=False, accuracy=0.0)
    with JudgeServer() as server:
        judge = make(server, window=8, max_disagreement=0.5)
        judge.judge([replace(texts(4), rewards=(wrong,) * 4)])
        with pytest.raises(VisdError, match="contradicted the verifiable reward 8 of the last 8"):
            judge.judge([replace(group(OF, *"abcd"), rewards=(wrong,) * 4)])
        judge = make(server, window=8, max_disagreement=0.5)
        judge.judge([replace(texts(8), rewards=(replace(wrong, correct=True),) * 8)])


def test_a_failed_judgement_takes_the_teacher_away_only_if_asked_to() -> None:
    failed, fine = JudgeReport("timeout"), JudgeReport("ok")
    assert not OpenAIJudge().removes_target(failed)
    asked = OpenAIJudge(on_failure="teacher")
    assert asked.removes_target(failed) and not asked.removes_target(fine)


# ------------------------------------------------------------------------------------------------ overlap


def test_submitted_groups_are_judged_meanwhile(make: Make) -> None:
    with JudgeServer(replies(Reply(delay=0.2))) as server:
        judge = make(server, cache="off")
        judge.submit([texts(4)])
        ends = time.monotonic() + 30
        while not all(pending.outcome.done() for pending in judge._pending.values()):
            assert time.monotonic() < ends
            time.sleep(0.05)  # the main thread does something else
        reports = judge.judge([texts(4)])
    assert statuses(reports) == ["ok"] * 4 and len(server.requests) == 4


def test_closing_gives_up_what_is_under_way(make: Make) -> None:
    with JudgeServer(replies(Reply(delay=5.0))) as server:
        judge = make(server, timeout=60)
        judge.submit([texts(4)])
        started = time.monotonic()
        judge.close()
        assert time.monotonic() - started < 4


def test_a_key_is_not_repeated_by_what_the_server_says(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    with JudgeServer(replies(Reply(status=401, body=b"bad key secret-1"))) as server:
        make(server, api_key_env="JUDGE_KEY").judge([texts(1)])
    assert "bad key ***" in caplog.text and "secret-1" not in caplog.text
