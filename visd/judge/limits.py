"""How fast a judge may be asked, and how much in all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

BYTES_PER_TOKEN = 2
"""Of UTF-8 text, on the safe side, as digits are often tokens of their own. The answer says how many there were."""
TOKENS_PER_IMAGE = 1000


def estimated_tokens(text_bytes: int, images: int) -> int:
    """Prompt tokens of a request, rather too many than too few."""
    return -(-text_bytes // BYTES_PER_TOKEN) + images * TOKENS_PER_IMAGE


class RateLimiter:
    """At most so many requests and tokens in any window of time, first come, first served. 0 sets no limit.

    A request that alone has more tokens than the limit goes when the window is empty. Used by one event loop.
    """

    def __init__(
        self, requests: float, tokens: float, window: float = 60.0, clock: Callable[[], float] = time.monotonic
    ):
        self.requests = requests
        self.tokens = tokens
        self.window = window
        self._clock = clock
        self._log: deque[tuple[float, int]] = deque()  # when, how many tokens
        self._in_window = 0
        self._turn = asyncio.Lock()

    async def acquire(self, tokens: int) -> None:
        """Wait until a request of so many tokens may go, and count it."""
        if not self.requests and not self.tokens:
            return
        async with self._turn:
            while (wait := self.wait(tokens)) > 0:
                await asyncio.sleep(wait)
            self._log.append((self._clock(), tokens))
            self._in_window += tokens

    def wait(self, tokens: int) -> float:
        """Seconds until the oldest request leaves a window that is full; 0 if it is not."""
        now = self._clock()
        while self._log and now - self._log[0][0] >= self.window:
            self._in_window -= self._log.popleft()[1]
        # Less than one request in a window still means one.
        crowded = bool(self.requests) and len(self._log) >= max(1, int(self.requests))
        heavy = bool(self.tokens) and self._in_window + tokens > self.tokens
        return self._log[0][0] + self.window - now if self._log and (crowded or heavy) else 0.0


@dataclass(frozen=True)
class Spent:
    """What judgements have cost."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Budget:
    """What may be spent. 0 sets no limit. Safe to use from several threads.

    A judgement is admitted only if its estimate still fits, so that the limits hold whatever is under way; when its
    answer is there, the estimate gives way to what it was.
    """

    calls: int = 0
    tokens: int = 0  # prompt and completion
    usd: float = 0.0
    prompt_price: float = 0.0  # USD a million tokens
    completion_price: float = 0.0

    def __post_init__(self) -> None:
        self.spent = Spent()
        self._lock = threading.Lock()

    def admit(self, estimate: Spent) -> bool:
        """Whether a judgement fits; if so, its estimate is spent."""
        with self._lock:
            after = _sum(self.spent, estimate)
            tokens = after.prompt_tokens + after.completion_tokens
            over = (
                (self.calls and after.calls > self.calls)
                or (self.tokens and tokens > self.tokens)
                or (self.usd and self.cost(after) > self.usd)
            )
            if not over:
                self.spent = after
            return not over

    def admit_retry(self) -> bool:
        """Whether one more call fits; if so, it is spent."""
        return self.admit(Spent(calls=1))

    def settle(self, estimate: Spent, actual: Spent) -> None:
        """Put what it was in the place of an estimate."""
        with self._lock:
            self.spent = _sum(self.spent, actual, estimate)

    def cost(self, spent: Spent) -> float:
        """USD."""
        return (spent.prompt_tokens * self.prompt_price + spent.completion_tokens * self.completion_price) / 1e6


def _sum(a: Spent, plus: Spent, minus: Spent | None = None) -> Spent:
    minus = minus or Spent()
    return Spent(
        a.calls + plus.calls - minus.calls,
        a.prompt_tokens + plus.prompt_tokens - minus.prompt_tokens,
        a.completion_tokens + plus.completion_tokens - minus.completion_tokens,
    )


def share_of(spent: Sequence[Spent], rank: int, ranks: int) -> Spent:
    """A rank's share of what was spent in all; the shares of all ranks add up to it."""

    def share(total: int) -> int:
        return total // ranks + (rank < total % ranks)

    return Spent(
        share(sum(one.calls for one in spent)),
        share(sum(one.prompt_tokens for one in spent)),
        share(sum(one.completion_tokens for one in spent)),
    )
