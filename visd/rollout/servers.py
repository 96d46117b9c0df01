"""Several servers that can all do the same: the least busy is asked, and another when one dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from visd.types import VisdError

log = logging.getLogger(__name__)

HEALTH_SECONDS = 30.0
"""Longest answer to the question whether a server is well."""


@dataclass
class Server:
    """One server."""

    url: str
    in_flight: int = 0
    lost: str = ""  # why it is not asked; empty while it is


class ServerPool:
    """Asks servers over HTTP. Its methods may be called by several threads."""

    def __init__(self, urls: Sequence[str], timeout: float):
        """`timeout` (s) is the longest that a server may take over one request before it counts as dead."""
        self.servers = [Server(url.rstrip("/")) for url in urls]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.Client(timeout=timeout, limits=limits, trust_env=False)
        self._lock = threading.Lock()

    @property
    def alive(self) -> list[Server]:
        return [server for server in self.servers if not server.lost]

    def ask(self, path: str, body: Any, problem: Callable[[Any], str] = lambda answer: "") -> Any:
        """The answer of the least busy server, or of another if that one dies.

        Args:
            problem: what makes an answer unusable, and its server with it; empty for nothing.

        Raises:
            VisdError: no server is left, or one refused the request.
        """
        while True:
            server = self._take()
            try:
                answer = self.post(server, path, body)
            except httpx.HTTPError as error:
                self.lose(server, f"{type(error).__name__}: {error}")
                continue
            finally:
                with self._lock:
                    server.in_flight -= 1
            if why := problem(answer):
                self.lose(server, why)
                continue
            return answer

    def post(self, server: Server, path: str, body: Any = None, **options: Any) -> Any:
        """One server's answer.

        Raises:
            httpx.HTTPError: the server has failed, or cannot be reached.
            VisdError: it refused the request.
        """
        response = self._client.post(server.url + path, json=body, **options)
        if 400 <= response.status_code < 500:
            raise VisdError(f"{server.url}{path} refused a request ({response.status_code}): {response.text[:500]}")
        response.raise_for_status()
        return response.json() if response.content else None

    def get(self, server: Server, path: str) -> Any:
        """One server's answer; raises as `post`."""
        response = self._client.get(server.url + path, timeout=HEALTH_SECONDS)
        response.raise_for_status()
        return response.json() if response.content else None

    def check_health(self, wait: float = 0.0) -> None:
        """Ask every server, lost ones too, whether it is well; for up to `wait` seconds until all are."""
        until = time.monotonic() + wait
        while True:
            for server in self.servers:
                try:
                    self.get(server, "/health")
                except httpx.HTTPError as error:
                    self.lose(server, f"{type(error).__name__}: {error}")
                else:
                    server.lost = ""
            if len(self.alive) == len(self.servers) or time.monotonic() >= until:
                return
            time.sleep(1.0)

    def lose(self, server: Server, why: str) -> None:
        """Ask it no more, until it is found well again."""
        with self._lock:
            if not server.lost:
                log.warning("rollout server %s is lost: %s", server.url, why)
            server.lost = why

    def no_server(self) -> VisdError:
        """What to say when none is left."""
        said = "; ".join(f"{server.url}: {server.lost}" for server in self.servers)
        return VisdError(
            f"no rollout server is left ({said}). Start them again with scripts/serve_rollout.sh, then the run, which "
            "resumes from its newest checkpoint."
        )

    def _take(self) -> Server:
        with self._lock:
            alive = self.alive
            if not alive:
                raise self.no_server()
            server = min(alive, key=lambda one: one.in_flight)
            server.in_flight += 1
            return server
