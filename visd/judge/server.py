"""Asking a server from the side of the main thread: the answers on disk first, then the network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from visd.config import ConfigError
from visd.judge.cache import AnswerCache, CacheWriter
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
    proxy: str | None
    cache: str  # read_write, read_only, off
    cache_file: Path


class Server:
    """A thread that asks, and a file of answers."""

    def __init__(self, address: Address):
        """Raises VisdError where the file of answers cannot be used."""
        self._read_only = address.cache == "read_only"
        self._cache = None if address.cache == "off" else AnswerCache(address.cache_file, self._read_only)
        self._writer = CacheWriter(self._cache) if self._cache else None
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
        if self._writer is not None:
            self._writer.put(key, outcome)
        return outcome

    def flush(self) -> None:
        """Returns when all outcomes that are known are on disk. Raises VisdError where they cannot be written."""
        if self._writer is not None:
            self._worker.start(self._writer.flush()).result()

    def close(self) -> None:
        """Give up what is under way; what was answered is written. Raises VisdError where it cannot be."""
        try:
            self._worker.close(self._end())
        finally:
            if self._cache is not None:
                self._cache.close()

    async def _end(self) -> None:
        await self._client.close()
        if self._writer is not None:
            await self._writer.flush()


def done(outcome: Outcome) -> Future[Outcome]:
    """A future that is there already."""
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def proxy_of(url: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in capitals or not, name for a URL.

    aiohttp would look there as well, but send what ~/.netrc holds with it.

    Raises:
        ConfigError: it is no HTTP proxy.
    """
    parts, named = urlsplit(url), getproxies()
    proxy = None if proxy_bypass(parts.netloc) else named.get(parts.scheme) or named.get("all")
    if proxy and urlsplit(proxy).scheme not in ("http", "https"):
        raise ConfigError(
            f"judge.base_url: is asked through the proxy that {parts.scheme.upper()}_PROXY or ALL_PROXY names, which must be an http:// or https:// one."
        )
    return proxy


async def _client(address: Address) -> ChatClient:
    # Not above: it takes a quarter of a second, and a run that is only checked asks nothing.
    from visd.judge.transport import HttpTransport

    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    headers |= {"authorization": f"Bearer {address.key}"} if address.key else {}
    return ChatClient(
        transport=HttpTransport(address.base_url.rstrip("/") + "/chat/completions", headers, address.proxy),
        concurrency=address.concurrency,
        retry=address.retry,
        limiter=address.limiter,
        may_retry=address.may_retry,
        secret=address.key,
    )
