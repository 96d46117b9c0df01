"""The watch for leaks: it warns, then stops, and remembers across restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.runs import small_config
from visd.config import TrainSection
from visd.train import record
from visd.train.launch import run_stage
from visd.train.leaks import WINDOW, LeakWatch
from visd.types import VisdError

MENTION, COPIED = "leak/mention_rate", "leak/copied_share"


def test_it_warns_from_half_of_the_limit_on_and_stops_above_it(caplog: pytest.LogCaptureFixture) -> None:
    watch = LeakWatch(TrainSection(max_mention_rate=0.2))
    with caplog.at_level(logging.WARNING):
        watch.update(1, {MENTION: 1.0})  # a mean of 0.1 over ten steps
        assert not caplog.messages
        watch.update(2, {MENTION: 0.5})
        watch.update(3, {MENTION: 0.5, COPIED: 1.0})
        assert [message.split(";")[0] for message in caplog.messages] == [
            "step 2: leak/mention_rate was 0.150 over the last 10 steps"
        ]
        with pytest.raises(VisdError, match=r"step 4: leak/mention_rate was 0\.300 .* train\.max_mention_rate = 0\.2"):
            watch.update(4, {MENTION: 1.0})


def test_old_steps_are_forgotten_and_it_warns_again(caplog: pytest.LogCaptureFixture) -> None:
    watch = LeakWatch(TrainSection(max_mention_rate=0.2, max_copied_share=0.4))
    with caplog.at_level(logging.WARNING):
        for step in range(3 * WINDOW):
            watch.update(step, {MENTION: 0.15 if step % (2 * WINDOW) < WINDOW else 0.0, COPIED: 0.21})
    said = [message.split()[2] for message in caplog.messages]
    assert said.count(MENTION) == 2 and said.count(COPIED) == 1


def test_a_limit_of_0_watches_nothing() -> None:
    watch = LeakWatch(TrainSection(max_mention_rate=0.0))
    for step in range(WINDOW):
        watch.update(step, {MENTION: 1.0, COPIED: 1.0})


def test_it_goes_on_after_a_restart() -> None:
    first, second = LeakWatch(TrainSection()), LeakWatch(TrainSection())
    first.update(1, {MENTION: 1.0})
    first.update(2, {MENTION: 0.9})
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    with pytest.raises(VisdError, match=r"0\.210 over"):
        second.update(3, {MENTION: 0.2})


def test_a_run_stops(small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts of a step each, whose answers are made to leak: the second knows what the first saw."""
    reduce = record.reduce
    monkeypatch.setattr(record, "reduce", lambda *given: reduce(*given) | {MENTION: 1.0})
    settings = ("data.train=[text_train.jsonl]", "method=grpo", "train.max_mention_rate=0.15", "checkpoint.every=1")
    config = small_config(small_world, tiny_qwen2_5_vl, tmp_path, *settings, "train.stop_after=1")
    assert run_stage(config) == 0
    with pytest.raises(VisdError, match=r"step 2: leak/mention_rate was 0\.200"):
        run_stage(config)
