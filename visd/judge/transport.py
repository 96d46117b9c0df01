"""POST requests over connections that stay open, by aiohttp. What a server or a network can do wrong is a `Lost`."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import aiohttp
import httpx

from visd.judge.client import Lost, Reply


class HttpTransport:
    """A `Transport`. To be made, used and closed in one event loop."""

    def __init__(self, url: str, headers: Mapping[str, str], proxy: str | None):
        self._url = url
        self._proxy = proxy
        # httpx's certificates, as for the servers of rollouts; loading them takes a tenth of a second.
        tls: ssl.SSLContext | bool = httpx.create_ssl_context() if url.startswith("https:") else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            # Its clocks start again with every byte that arrives; who waits has one of its own.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def post(self, body: bytes, most: int) -> Reply:
        """The reply to a body, of which not much more than `most` bytes are read. Raises Lost."""
        data = bytearray()
        try:
            async with self._session.post(self._url, data=body, proxy=self._proxy, allow_redirects=False) as response:
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > most:
                        return Reply(response.status, response.headers, bytes(data), whole=False)
                return Reply(response.status, response.headers, bytes(data), whole=True)
        except (aiohttp.ClientError, OSError) as error:
            raise Lost(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        await self._session.close()
