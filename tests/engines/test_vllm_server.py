"""Two vLLM servers on this machine: the same answers as in process, new weights over the network, and one that dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.engines.agree import BOUND, largest_difference
from tests.runs import groups_with_advantages, small_config, small_run
from visd.config import RewardSection
from visd.rollout.servers import Server, ServerPool
from visd.rollout.vllm_server import VLLMServerEngine
from visd.seeding import derive_seed
from visd.train import loop
from visd.train.launch import run_stage
from visd.types import Rewards, Sample, VisdError

pytestmark = pytest.mark.timeout(1200)  # starting two servers is most of it

ROOT = Path(__file__).parents[2]


class Servers:
    """Those that scripts/serve_rollout.sh has started."""

    def __init__(self, script: subprocess.Popen[str], port: int):
        self.script = script
        self.urls = [f"http://127.0.0.1:{port + number}" for number in range(2)]

    def kill(self, number: int) -> None:
        """As a machine that loses power: the server and all its processes."""
        port = self.urls[number].rpartition(":")[2]
        for process in psutil.Process(self.script.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # of the server that was killed before
                if port in process.cmdline():
                    for part in (*process.children(recursive=True), process):
                        part.send_signal(signal.SIGKILL)

    def settings(self) -> tuple[str, ...]:
        return ("rollout=vllm_server", f"rollout.engine.urls=[{','.join(self.urls)}]", "+rollout.engine.start_wait=300")


def two_free_ports() -> int:
    """The first of two ports in a row."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture(scope="module")
def servers(tiny_qwen2_5_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    port = two_free_ports()
    environment = os.environ | {
        "SERVERS": "2", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }  # fmt: skip
    options = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--kv-cache-memory-bytes", "64M"]
    said = tmp_path_factory.mktemp("servers") / "log"
    with said.open("w") as errors:
        script = subprocess.Popen(
            [ROOT / "scripts" / "serve_rollout.sh", str(tiny_qwen2_5_vl), str(port), *options],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            assert script.stdout is not None
            ready = next((line for line in script.stdout if line.startswith("ready")), "")
            assert ready, said.read_text()[-3000:]
            found = Servers(script, port)
            assert ready.strip() == f"ready: rollout=vllm_server rollout.engine.urls=[{','.join(found.urls)}]"
            yield found
        finally:
            os.killpg(script.pid, signal.SIGTERM)
            script.wait(60)


@pytest.mark.parametrize("layout", ["native", "timestamped_frames"])
def test_servers_agree_with_the_trainer(
    layout: str, servers: Servers, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path
) -> None:
    settings = (f"prompt.layout={layout}", "data.train=[train.jsonl,text_train.jsonl]", "train.prompts_per_step=6")
    run = small_run(small_world, tiny_qwen2_5_vl, tmp_path, *servers.settings(), *settings)
    run.engine.sync(run.backend, 0)
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        post = ServerPool.post

        def counted(self: ServerPool, server: Server, path: str, *rest: Any, **options: Any) -> Any:
            asked.append(server.url)
            return post(self, server, path, *rest, **options)

        patch.setattr(ServerPool, "post", counted)
        groups = groups_with_advantages(run)
    assert len(asked) == 6 and set(asked) == set(servers.urls)
    assert any(group.prompt.kinds for group in groups) and any(not group.prompt.kinds for group in groups)
    assert 0 < largest_difference(run, groups) < BOUND


def test_a_step_completes_on_the_other_server_when_one_dies(
    servers: Servers, small_world: Path, tiny_qwen2_5_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the third step, one server is killed when its first request is about to be sent; then the other, and no step is done.

    Steps are so large that a server with the weights of the step before would be far off.
    """

    def score(sample: Sample, text: str, section: RewardSection, progress: float) -> Rewards:
        right = derive_seed(text) % 2
        return Rewards(float(right), {"accuracy": float(right)}, bool(right), float(right))

    monkeypatch.setattr(loop, "score", score)
    asked: dict[str, int] = dict.fromkeys(servers.urls, 0)
    post = ServerPool.post

    def deadly(self: ServerPool, server: Server, path: str, *rest: Any, **options: Any) -> Any:
        if path == "/inference/v1/generate":
            asked[server.url] += 1
            if server.url == servers.urls[0] and asked[server.url] == 5:
                servers.kill(0)
        return post(self, server, path, *rest, **options)

    monkeypatch.setattr(ServerPool, "post", deadly)
    settings = ("method=grpo", "optim.lr=1e-2", "train.prompts_per_step=4", f"rollout.max_mismatch={BOUND}")
    config = small_config(
        small_world, tiny_qwen2_5_vl, tmp_path, *servers.settings(), *settings, "train.steps=6", "train.stop_after=5"
    )
    assert run_stage(config) == 0
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 5 and steps[-1]["policy/version"] == 5
    assert all(0 < step["engine/logp_diff_max"] < BOUND for step in steps)
    assert 5 <= asked[servers.urls[0]] <= 8 and sum(asked.values()) > 20  # those that failed were asked again

    config.rollout.engine["start_wait"] = 1.0
    with pytest.raises(VisdError, match=r"no answer within 1 s from http://.*serve_rollout\.sh"):
        run_stage(config)
    config.rollout.engine["urls"] = servers.urls[1:]
    sample = loop.sample_rollouts

    def dies(*arguments: Any) -> Any:
        servers.kill(1)
        return sample(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "sample_rollouts", dies)
        with pytest.raises(VisdError, match=r"no rollout server is left .* resumes from its newest checkpoint"):
            run_stage(config)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_server_without_its_weights_is_not_used(tmp_path: Path) -> None:
    engine = VLLMServerEngine(None, None, urls=["http://127.0.0.1:1"])  # type: ignore[arg-type]
    engine._label = "a-3"
    said = {"choices": [{"weight_versions": [{"version": "default", "start": 0, "end": 4}]}]}
    assert "answers with weights ['default'], not 'a-3'" in engine._other_weights(said)
    said["choices"][0]["weight_versions"][0]["version"] = "a-3"
    assert not engine._other_weights(said)
