"""One chat completion from an OpenAI-compatible server over HTTP, with retries. Nothing here waits without an end."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

from visd.judge.limits import RateLimiter

MAX_BYTES = 1 << 20
"""Most bytes of an answer that are read; a judgement has a few thousand."""
MAX_WAIT = 60.0
"""s, longest wait between two tries, whatever the server asks for."""
NOTE_CHARS = 300

OutcomeStatus = Literal["ok", "parse_failure", "timeout", "refused", "over_budget", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    status: OutcomeStatus  # ok: `text` is the model's answer
    text: str = ""
    note: str = ""  # what went wrong last; empty for ok
    attempts: int = 1  # 0: the server was not asked
    prompt_tokens: int | None = None  # as the server counts them; None where it does not say
    completion_tokens: int | None = None
    replayed: bool = False  # from disk


@dataclass(frozen=True)
class Retry:
    """How often a request is tried, and how long it waits in between."""

    timeout: float  # s, of one try, whatever it is doing
    retries: int  # after the first try
    backoff: float  # s before the first retry, twice as much before each next one
    seed: int = 0  # of the jitter

    def wait(self, attempt: int, key: str, asked: float | None) -> float:
        """Seconds after failed try `attempt` (1-based): a random part, at least half, of the backoff, or what the
        server asked for if that is longer. The same request always waits the same."""
        jitter = random.Random(f"{self.seed}:{key}:{attempt}").uniform(0.5, 1.0)
        return min(max(self.backoff * 2 ** (attempt - 1) * jitter, asked or 0.0), MAX_WAIT)


class Lost(Exception):
    """A connection that could not be made, or broke off."""


@dataclass(frozen=True)
class Reply:
    """What a server said."""

    code: int
    headers: Mapping[str, str]  # names in any case
    data: bytes  # as it was sent, not decompressed
    whole: bool  # False: there is more, which was not read


class Transport(Protocol):
    """Sends requests to one address. It limits neither their time nor how many there are."""

    async def post(self, body: bytes, most: int) -> Reply:
        """The reply to a body, of which not much more than `most` bytes are read. Raises Lost."""

    async def close(self) -> None: ...


@dataclass
class _Failed(Exception):
    """A try without an answer."""

    status: OutcomeStatus  # what the judgement becomes if it was the last try
    note: str
    again: bool = True
    retry_after: float | None = None  # s


@dataclass
class ChatClient:
    """Asks one server. To be used by one event loop.

    Args:
        concurrency: most requests under way; one that waits for its next try is not.
        may_retry: asked before each further try, so that a budget can refuse it.
    """

    transport: Transport
    concurrency: int
    retry: Retry
    limiter: RateLimiter
    may_retry: Callable[[], bool] = lambda: True
    secret: str = ""  # never to appear in a note

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.concurrency)

    async def close(self) -> None:
        await self.transport.close()

    async def ask(self, body: bytes, key: str, tokens: int) -> Outcome:
        """The outcome of a request. Never raises for what a server or a network can do.

        Args:
            key: names the request; decides its jitter.
            tokens: estimated, for the rate limit.
        """
        attempt = 1
        while True:
            try:
                async with self._slots:
                    await self.limiter.acquire(tokens)
                    reply = await self._try(body)
                return replace(reply, attempts=attempt)
            except _Failed as failed:
                note = failed.note.replace(self.secret, "***") if self.secret else failed.note
                last = Outcome(failed.status, note=note[:NOTE_CHARS], attempts=attempt)
                if not failed.again or attempt > self.retry.retries or not self.may_retry():
                    return last
                await asyncio.sleep(self.retry.wait(attempt, key, failed.retry_after))
            attempt += 1

    async def _try(self, body: bytes) -> Outcome:
        try:
            async with asyncio.timeout(self.retry.timeout):
                reply = await self.transport.post(body, MAX_BYTES)
        except TimeoutError:
            raise _Failed("timeout", f"no answer within {self.retry.timeout:g} s") from None
        except Lost as lost:
            raise _Failed("timeout", str(lost)) from None
        _check(reply)
        return read_completion(reply.data)


def _check(reply: Reply) -> None:
    """Raises _Failed unless it is a whole answer, sent as it was asked for."""
    encoding = reply.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise _Failed("parse_failure", f"the answer is {encoding}-encoded, which was not asked for")
    if not reply.whole:
        raise _Failed("parse_failure", f"the answer has more than {MAX_BYTES} bytes")
    if reply.code == 200:
        return
    note = f"HTTP {reply.code}: {' '.join(reply.data[:NOTE_CHARS].decode('utf-8', 'replace').split())}"
    if reply.code in (408, 409, 425, 429) or reply.code >= 500:
        raise _Failed("timeout", note, retry_after=retry_after(reply.headers.get("retry-after")))
    raise _Failed("refused", note, again=False)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date; None where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if 0 <= seconds < float("inf") else None


def read_completion(data: bytes) -> Outcome:
    """The answer in a chat completion.

    Raises:
        _Failed: refused by the model or its filter; or not a chat completion, which is tried again.
    """
    try:
        body: Any = json.loads(data)
        choice = body["choices"][0]
        message = choice["message"]
        content, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        head = data[:80].decode("utf-8", "replace")
        raise _Failed("parse_failure", f"no chat completion ({type(error).__name__}): {head!r}") from None
    if refusal or reason == "content_filter":
        raise _Failed("refused", f"the model refused: {refusal or reason!a}", again=False)
    if not isinstance(content, str) or not content.strip():
        raise _Failed("parse_failure", f"an empty answer (finish_reason {reason!r})")
    usage = body.get("usage") or {}
    text = content.encode("utf-8", "replace").decode()  # JSON can spell half a surrogate pair, nothing else can
    return Outcome(
        "ok", text, prompt_tokens=_count(usage, "prompt_tokens"), completion_tokens=_count(usage, "completion_tokens")
    )


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None
