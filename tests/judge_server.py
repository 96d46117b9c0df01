"""A judge's server on loopback whose every answer is scripted, and which counts what it sees."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

GOOD = {
    "answer": 1.0,
    "logic": 0.5,
    "temporal": None,
    "spatial": None,
    "feedback": "The answer is right. The reasoning is thin.",
    "spans": [],
}


def completion(content: Any, **message: Any) -> bytes:
    """A chat completion with this content; anything but a string is written as JSON."""
    text = content if isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode()


@dataclass
class Reply:
    """What the server does with one request."""

    body: bytes = completion(GOOD)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0  # s before the first byte
    drip: float = 0.0  # s between single bytes
    cut: int | None = None  # close the connection after so many bytes of the body


Script = Callable[[int, dict[str, Any]], Reply]
"""From the number of a request, in order of arrival, and its body to the reply."""


class JudgeServer:
    """Use as a context manager; `url` is what `judge.base_url` must be."""

    def __init__(self, script: Script = lambda number, body: Reply()):
        self.script = script
        self.requests: list[dict[str, Any]] = []  # bodies in order of arrival
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []  # of arrival, monotonic
        self.under_way = 0
        self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body would otherwise be two packets, and the second would wait for the first's receipt.
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, address: Any) -> None:
                pass  # a client that gave up

            def server_bind(self) -> None:
                socketserver.TCPServer.server_bind(self)  # no look-up of the host's name
                self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            reply = self.script(number, body)
            time.sleep(reply.delay)
        finally:
            with self._lock:
                self.under_way -= 1
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(reply.body)))
        handler.end_headers()
        data = reply.body if reply.cut is None else reply.body[: reply.cut]
        for piece in [bytes([byte]) for byte in data] if reply.drip else [data]:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(reply.drip)
        if reply.cut is not None:
            handler.close_connection = True


def judged_by(server: JudgeServer, *overrides: str) -> list[str]:
    """Overrides for a run that is judged by this server and is not stopped for what it says."""
    limits = ["judge.max_disagreement=1.0", "judge.max_failure_rate=1.0", "judge.backoff=0.01"]
    return ["judge=openai", "judge.model=judge-1", f"judge.base_url={server.url}", *limits, *overrides]
