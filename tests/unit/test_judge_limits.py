"""Rate limits, budgets, waits between tries, and the window of the last judgements."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visd.judge.client import MAX_WAIT, Retry, retry_after
from visd.judge.limits import Budget, RateLimiter, Spent, estimated_tokens
from visd.judge.watch import Watch
from visd.types import JudgeReport, VisdError


def starts(limiter: RateLimiter, tokens: list[int]) -> list[float]:
    """When each request may go, all asked at once."""
    found: list[float] = []

    async def one(size: int) -> None:
        await limiter.acquire(size)
        found.append(time.monotonic())

    async def every() -> None:
        await asyncio.gather(*(one(size) for size in tokens))

    asyncio.run(every())
    return found


@pytest.mark.parametrize(("limits", "size"), [((4, 0), 1), ((0, 40), 10), ((4, 1000), 10)])
def test_no_window_holds_more_than_allowed(limits: tuple[int, int], size: int) -> None:
    found = starts(RateLimiter(*limits, window=0.15), [size] * 10)
    assert all(found[i + 4] - found[i] >= 0.149 for i in range(6))
    assert found[3] - found[0] < 0.1  # and no fewer


def test_a_request_above_the_limit_goes_alone() -> None:
    found = starts(RateLimiter(0, 10, window=0.1), [5, 50, 5])
    assert found[1] - found[0] >= 0.099 and found[2] - found[1] >= 0.099


def test_without_limits_nothing_waits() -> None:
    found = starts(RateLimiter(0, 0), [10**9] * 50)
    assert found[-1] - found[0] < 0.1


@given(
    st.integers(0, 20),
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.floats(0, 1)), max_size=30),
)
@settings(max_examples=100, deadline=None)
def test_a_budget_is_never_broken(calls: int, tokens: int, judgements: list[tuple[int, int, float]]) -> None:
    """Whatever is asked, in flight or settled, as long as no answer takes more than its estimate."""
    budget = Budget(calls, tokens, usd=0.001, prompt_price=1.0, completion_price=2.0)
    for prompt, completion, share in judgements:
        estimate = Spent(1, prompt, completion)
        before = budget.spent
        if not budget.admit(estimate):
            assert budget.spent == before
            continue
        spent = budget.spent
        assert not calls or spent.calls <= calls
        assert not tokens or spent.prompt_tokens + spent.completion_tokens <= tokens
        assert budget.cost(spent) <= 0.001
        budget.settle(estimate, Spent(1, int(prompt * share), int(completion * share)))


def test_images_and_bytes_are_estimated() -> None:
    assert estimated_tokens(0, 0) == 0
    assert estimated_tokens(101, 2) == 51 + 2000


def test_waits_double_are_jittered_and_repeat() -> None:
    retry = Retry(timeout=1, retries=5, backoff=1.0)
    waits = [retry.wait(attempt, "key", None) for attempt in range(1, 9)]
    assert all(0.5 * 2**i <= wait <= 2**i for i, wait in enumerate(waits[:6]))
    assert waits == [retry.wait(attempt, "key", None) for attempt in range(1, 9)]
    assert waits != [retry.wait(attempt, "other", None) for attempt in range(1, 9)]
    assert max(waits) <= MAX_WAIT
    assert retry.wait(1, "key", 7.0) == 7.0 and retry.wait(1, "key", 1e9) == MAX_WAIT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("3", 3.0), ("0.5", 0.5), ("-1", None), ("soon", None), ("nan", None), ("inf", None),
        ("Wed, 01 Jan 2025 00:00:10 GMT", 10.0), ("Wed, 01 Jan 2020 00:00:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, datetime(2025, 1, 1, tzinfo=UTC)) == seconds


def test_over_budget_is_no_failure() -> None:
    watch = Watch(window=4, max_failure_rate=0.0, max_disagreement=1.0)
    watch.update([(JudgeReport("over_budget"), None), (JudgeReport("ok"), None), (JudgeReport("repaired"), None)], "")
    with pytest.raises(VisdError, match="parse_failure: 1, skipped: 1"):
        watch.update([(JudgeReport("parse_failure"), None), (JudgeReport("skipped"), None)], "why")


def test_old_failures_are_forgotten() -> None:
    watch = Watch(window=4, max_failure_rate=0.5, max_disagreement=1.0)
    for _ in range(3):
        watch.update([(JudgeReport("timeout"), None)] * 2 + [(JudgeReport("ok"), None)] * 2, "")
