"""New weights for vLLM servers: every worker of a server fetches them from the trainer, all at the same time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import methodcaller
from typing import Any
from urllib.parse import urlsplit

import httpx
from torch import Tensor

from visd.rollout.servers import HEALTH_SECONDS, Server, ServerPool
from visd.rollout.weight_stream import WeightSender
from visd.types import VisdError

FAILURES = (httpx.HTTPError, OSError, VisdError)
"""What a server that is lost meanwhile shows up as."""


@dataclass
class _Way:
    server: Server
    sender: WeightSender
    received: Future[Any]  # what the server says when its workers have everything


def transfer(
    pool: ServerPool,
    servers: Sequence[Server],
    weights: Iterable[tuple[str, Tensor]],
    label: str,
    keep_features: bool,
    timeout: float,
    address: str = "",
) -> None:
    """Send weights to servers, empty the caches that rest on old ones, and have them called `label`.

    A server that fails is lost; `weights` are gone through to their end in any case.

    Args:
        address: of this machine, to listen at; empty takes the one that a server is reached from.
    """
    with ThreadPoolExecutor(2 * len(servers) + 1) as threads:
        begun = [_begin(pool, server, threads, keep_features, timeout, address) for server in servers]
        ways = [way for way in begun if way is not None]
        for name, value in weights:
            ways = _sent(pool, threads, ways, methodcaller("send", name, value))
        for way in _sent(pool, threads, ways, WeightSender.end):
            _end(pool, way, label)


def _begin(
    pool: ServerPool, server: Server, threads: ThreadPoolExecutor, keep_features: bool, timeout: float, address: str
) -> _Way | None:
    sender = None
    try:
        sender = WeightSender(address or own_address(server.url), timeout)
        workers = pool.get(server, "/get_world_size")["world_size"]
        host, port = sender.address
        arguments = [host, str(port), sender.token, "keep" if keep_features else "empty"]
        body = {"method": "visd_receive_weights", "args": arguments}
        received = threads.submit(pool.post, server, "/collective_rpc", body, timeout=None)
        until = time.monotonic() + timeout
        while workers:
            workers -= sender.accept(1.0)
            if received.done():
                received.result()
                raise VisdError("its workers did not fetch the weights.")
            if time.monotonic() > until:
                raise VisdError(f"{workers} of its workers did not fetch the weights within {timeout:g} s.")
        return _Way(server, sender, received)
    except FAILURES as error:
        pool.lose(server, f"{type(error).__name__}: {error}")
        if sender is not None:
            sender.close()
        return None


def _sent(
    pool: ServerPool, threads: ThreadPoolExecutor, ways: Sequence[_Way], send: Callable[[WeightSender], None]
) -> list[_Way]:
    """The servers that took what was sent; the others are lost."""
    sent = [(way, threads.submit(send, way.sender)) for way in ways]
    good = []
    for way, done in sent:
        try:
            done.result()
            good.append(way)
        except FAILURES as error:
            _drop(pool, way, error)
    return good


def _end(pool: ServerPool, way: _Way, label: str) -> None:
    try:
        said = way.received.result()["results"]
        if set(said) != {"kept"}:
            pool.post(way.server, "/reset_encoder_cache")
        if not pool.post(way.server, "/reset_prefix_cache")["success"]:
            raise VisdError("it did not empty its prefix cache.")
        pool.post(way.server, "/update_weight_version", {"new_version": label})
        way.sender.close()
    except FAILURES as error:
        _drop(pool, way, error)


def _drop(pool: ServerPool, way: _Way, error: BaseException) -> None:
    pool.lose(way.server, f"{type(error).__name__}: {error}")
    way.sender.close()


def own_address(url: str) -> str:
    """This machine's address on the way to a server."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), timeout=HEALTH_SECONDS) as line:
        return str(line.getsockname()[0])
