"""scripts/serve_judge.sh with a server of a few lines in the place of vLLM: what it waits for, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "serve_judge.sh"

PYTHON = """#!{python}
import http.server, pathlib, sys, time

_, module, model, *options = sys.argv[1:]
assert module == "visd.judge.serve"
port = int(options[options.index("--port") + 1])
pathlib.Path("options").write_text(" ".join([model, *options]))
if model == "broken":
    sys.exit("no such model")
if model == "slow":
    time.sleep(60)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, *arguments: str, wait: int = 30) -> subprocess.Popen[str]:
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "WAIT": str(wait)}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_says_the_settings_once_the_server_answers_and_takes_it_along(tmp_path: Path) -> None:
    port = free_port()
    process = start(tmp_path, "some/model", str(port), "--max-model-len", "4096")
    assert process.stdout is not None
    ready = process.stdout.readline().strip()
    assert ready == f"ready: judge=openai judge.model=some/model judge.base_url=http://127.0.0.1:{port}/v1"
    assert (tmp_path / "options").read_text() == (f"some/model --host 127.0.0.1 --port {port} --max-model-len 4096")
    assert answers(port)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not answers(port)


@pytest.mark.parametrize(
    ("model", "says"), [("broken", "vllm ended before it answered"), ("slow", "does not answer on port")]
)
def test_a_server_that_never_answers_is_an_error(tmp_path: Path, model: str, says: str) -> None:
    process = start(tmp_path, model, str(free_port()), wait=1)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and says in errors


def test_without_a_model_it_says_how_it_is_called(tmp_path: Path) -> None:
    process = start(tmp_path)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and "serve_judge.sh MODEL [PORT]" in output
