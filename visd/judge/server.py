"""Asking a server from the side of the main thread: the answers on disk first, then the network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from visd.judge.cache import AnswerCache
from visd.judge.client import ChatClient, Outcome, Retry
from visd.judge.limits import RateLimiter
from visd.judge.worker import LoopThread


@dataclass(frozen=True)
class Address:
    """Which server, and how it may be asked."""

    base_url: str
    key: str  # empty sends none
    concurrency: int
    retry: Retry
    limiter: RateLimiter
    may_retry: Callable[[], bool]
    cache: str  # read_write, read_only, off
    cache_file: Path


class Server:
    """A thread that asks, and a file of answers."""

    def __init__(self, address: Address):
        """Raises VisdError where the file of answers cannot be used."""
        self._read_only = address.cache == "read_only"
        self._cache = None if address.cache == "off" else AnswerCache(address.cache_file, self._read_only)
        self._worker = LoopThread("judge")
        self._client = self._worker.start(_client(address)).result()

    def ask(self, body: bytes, tokens: int) -> Future[Outcome]:
        """The outcome of a request, now or later; requests asked earlier are sent earlier.

        What failed on the way before may succeed now and is asked again; with `read_only` it fails again, and what is
        not on disk is `skipped`.
        """
        key = hashlib.sha256(body).hexdigest()
        known = self._cache.get(key) if self._cache else None
        if known is not None and (known.status in ("ok", "refused") or self._read_only):
            return done(known)
        if self._read_only:
            return done(Outcome("skipped", note="the answers on disk do not hold it", attempts=0))
        return self._worker.start(self._ask(body, key, tokens))

    async def _ask(self, body: bytes, key: str, tokens: int) -> Outcome:
        outcome = await self._client.ask(body, key, tokens)
        if self._cache is not None:
            self._cache.put(key, outcome)  # some 50 us; handing it to another thread would take longer
        return outcome

    def close(self) -> None:
        """Give up what is under way."""
        self._worker.close(self._client.close())
        if self._cache is not None:
            self._cache.close()


def done(outcome: Outcome) -> Future[Outcome]:
    """A future that is there already."""
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


async def _client(address: Address) -> ChatClient:
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    return ChatClient(
        url=address.base_url.rstrip("/") + "/chat/completions",
        headers=headers | ({"authorization": f"Bearer {address.key}"} if address.key else {}),
        concurrency=address.concurrency,
        retry=address.retry,
        limiter=address.limiter,
        may_retry=address.may_retry,
        secret=address.key,
    )
