"""A stand-in for the Hugging Face hub on the loopback.

It answers the calls by which a data set's commit, list of files and files are had, and those by which a folder becomes a
model: small files in the commit itself, safetensors by git-lfs before it.
"""

from __future__ import annotations

import base64
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
        self.models: dict[str, dict[str, bytes]] = {}  # files of what was pushed, by name
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()  # of all that wrote
        self.refusing = ""  # writing to an address that holds this is refused
        self._large: dict[str, bytes] = {}  # by SHA-256

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

    def take(self, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """The answer to what is written."""
        if self.refusing and self.refusing in path:
            return 403, {}, json.dumps({"error": "you may not"}).encode()
        if match := re.fullmatch(r"/large/([0-9a-f]{64})", path):  # no token: the address itself is the permission
            assert hashlib.sha256(body).hexdigest() == match[1]
            self._large[match[1]] = body
            return 200, {}, b""
        self.tokens.add(token)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.models:
                return 409, {}, json.dumps({"error": "exists", "url": f"{self.url}/{name}"}).encode()
            self.models[name], self.private[name] = {}, asked["visibility"] == "private"
            return self._json({"url": f"{self.url}/{name}"})
        if re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": self._mode(file["path"])}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.url}/large/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if (match := re.fullmatch(r"/api/models/(.+)/commit/main", path)) and match[1] in self.models:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.models[match[1]][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    self.models[match[1]][item["value"]["path"]] = self._large[item["value"]["oid"]]
            return self._json({"commitUrl": f"{self.url}/{match[1]}/commit/{'1' * 40}", "commitOid": "1" * 40})
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    @staticmethod
    def _mode(name: str) -> str:
        return "lfs" if name.endswith(".safetensors") else "regular"

    @staticmethod
    def _json(value: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve data sets; the hub's library asks here while it lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self, body: bool, written: bytes | None = None) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("Authorization")
            status, headers, data = hub.answer(path) if written is None else hub.take(path, written, token)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.respond(True)

        def do_POST(self) -> None:
            self.respond(True, self._body())

        def do_PUT(self) -> None:
            self.respond(True, self._body())

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

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
