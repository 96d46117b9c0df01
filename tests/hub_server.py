"""A stand-in for the Hugging Face hub on the loopback: the calls by which a data set's commit, list of files and files are had."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


class Hub:
    """Data sets by name, each a folder with a commit."""

    def __init__(self) -> None:
        self.sets: dict[str, tuple[str, Path]] = {}
        self.asked: list[str] = []
        self.lost: set[str] = set()  # files that are listed and then not there
        self.extra: list[str] = []  # names listed besides
        self.url = ""

    def put(self, name: str, folder: Path, state: str = "1") -> str:
        """Publish a folder as a data set; its commit."""
        commit = hashlib.sha1(f"{name} {state}".encode()).hexdigest()
        self.sets[name] = commit, folder
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append(path)
        if match := re.fullmatch(r"/api/datasets/(.+?)(?:/revision/(.+))?", path):
            if (about := re.fullmatch(r"/api/datasets/(.+)/tree/([0-9a-f]+)/?", path)) and about[1] in self.sets:
                commit, folder = self.sets[about[1]]
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                names = [file.relative_to(folder).as_posix() for file in files] + self.extra
                rows = [{"type": "file", "path": n, "size": self._size(folder / n), "oid": "0" * 40} for n in names]
                return 200, {}, json.dumps(rows).encode()
            if match[1] in self.sets:
                commit, _ = self.sets[match[1]]
                if match[2] in (None, "main", commit):
                    return 200, {}, json.dumps({"id": match[1], "sha": commit, "siblings": []}).encode()
                return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if match := re.fullmatch(r"/datasets/(.+?)/resolve/([0-9a-f]+)/(.+)", path):
            commit, folder = self.sets[match[1]]
            if match[3] not in self.lost and (folder / match[3]).is_file():
                data = (folder / match[3]).read_bytes()
                return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}, data
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve data sets; the hub's library asks here while it lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self, body: bool) -> None:
            status, headers, data = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.respond(True)

        def do_HEAD(self) -> None:
            self.respond(False)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
