"""scripts/serve_rollout.sh with servers of a few lines in the place of vLLM: what it waits for, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "serve_rollout.sh"

PYTHON = """#!{python}
import http.server, os, pathlib, signal, subprocess, sys

_, module, model, *options = sys.argv[1:]
assert module == "visd.rollout.serve"
port = int(options[options.index("--port") + 1])
if model == "broken":
    sys.exit("no such model")
if model == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
engine = subprocess.Popen(["sleep", "60"])
pathlib.Path(f"server{{options[-1]}}-{{port}}").write_text(f"{{os.getpid()}} {{engine.pid}}")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def two_free_ports() -> int:
    """The first of two ports in a row."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            if port < 65535 and two.connect_ex(("127.0.0.1", port + 1)):
                return port


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "SERVERS": "2", "WAIT": "20", "GRACE": "1"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def processes(folder: Path, port: int) -> list[int]:
    """A server and its engine."""
    return [int(number) for number in (folder / f"server7-{port}").read_text().split()]


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("model", ["some/model", "deaf"])
def test_it_goes_on_without_a_server_that_ends_and_takes_all_processes_along(tmp_path: Path, model: str) -> None:
    port = two_free_ports()
    script = start(tmp_path, model, str(port), "--seed", "7")
    assert script.stdout is not None and script.stderr is not None
    urls = f"http://127.0.0.1:{port},http://127.0.0.1:{port + 1}"
    assert script.stdout.readline().strip() == f"ready: rollout=vllm_server rollout.engine.urls=[{urls}]"
    first, second = processes(tmp_path, port), processes(tmp_path, port + 1)
    os.kill(first[0], signal.SIGKILL)
    while "ended with status 137" not in (said := script.stderr.readline()):
        assert said
    assert f"port {port} " in said and script.poll() is None and runs(second[0])
    script.send_signal(signal.SIGTERM)
    script.communicate(timeout=30)
    assert script.returncode == 130
    deadline = time.monotonic() + 20  # a killed process is there until the kernel has taken it down
    while any(runs(process) for process in (*first, *second)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_never_answers_is_an_error(tmp_path: Path) -> None:
    script = start(tmp_path, "broken", str(two_free_ports()))
    _, errors = script.communicate(timeout=30)
    assert script.returncode == 1 and "ended before it answered" in errors and "no such model" in errors


def test_without_a_model_it_says_how_it_is_called(tmp_path: Path) -> None:
    script = start(tmp_path)
    output, _ = script.communicate(timeout=30)
    assert script.returncode == 2 and "serve_rollout.sh MODEL [PORT]" in output and "GRACE" in output
