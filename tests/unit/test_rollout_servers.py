"""What holds of rollout servers without vLLM: who is asked when one dies, and how weights and frames travel."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

from visd.rollout.servers import ServerPool
from visd.rollout.transfer import transfer
from visd.rollout.vllm_media import pack, unpack
from visd.rollout.weight_stream import WeightSender, receive_weights
from visd.types import VisdError

Route = Callable[[str, Any], tuple[int, Any]]


@contextmanager
def server(route: Route) -> Iterator[str]:
    """A server on this machine that answers (status, JSON) by path and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["content-length"])) or "null"))

        def answer(self, body: Any) -> None:
            status, said = route(self.path, body)
            if status == 0:
                return self.connection.close()
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *said: Any) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, address: Any) -> None:
            pass  # a connection that was closed on purpose

    listener = Listener(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


@pytest.mark.parametrize("status", [0, 500], ids=["connection lost", "failed"])
def test_another_server_is_asked_when_one_dies(status: int) -> None:
    with server(lambda path, body: (status, {})) as dead, server(lambda path, body: (200, {"sum": sum(body)})) as well:
        pool = ServerPool([dead, well], timeout=5.0)
        assert [pool.ask("/add", [i, 1])["sum"] for i in range(3)] == [1, 2, 3]
        assert [one.url for one in pool.alive] == [well] and pool.servers[0].in_flight == 0


def test_what_is_refused_or_not_usable() -> None:
    with server(lambda path, body: (400, {"error": "too long"})) as strict:
        pool = ServerPool([strict], timeout=5.0)
        with pytest.raises(VisdError, match=r"refused a request \(400\).*too long"):
            pool.ask("/add", [])
        assert pool.alive  # the request was bad, not the server
    with server(lambda path, body: (200, {"weights": "old"})) as old:
        pool = ServerPool([old], timeout=5.0)
        with pytest.raises(VisdError, match=r"no rollout server is left .*has old weights.*serve_rollout\.sh"):
            pool.ask("/add", [], lambda answer: "has old weights")


def test_requests_are_spread_and_a_hanging_server_is_left() -> None:
    """Two at once go to two servers; the one that does not answer in time is lost and its request asked again."""
    held, counts = threading.Event(), [0, 0]

    def route(number: int, wait: bool) -> Route:
        def answer(path: str, body: Any) -> tuple[int, Any]:
            counts[number] += 1
            if wait:
                held.wait(10)
            return 200, {"by": number}

        return answer

    with ExitStack() as stack:
        urls = [stack.enter_context(server(route(number, number == 0))) for number in range(2)]
        pool = ServerPool(urls, timeout=0.5)
        said: list[Any] = []
        threads = [threading.Thread(target=lambda: said.append(pool.ask("/x", None)["by"])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held.set()
        assert said == [1, 1, 1, 1] and counts[0] in (1, 2) and [one.url for one in pool.alive] == urls[1:]


def test_a_lost_server_is_found_again() -> None:
    healthy = [False]
    with server(lambda path, body: (200 if healthy[0] else 503, {})) as url:
        pool = ServerPool([url], timeout=5.0)
        pool.check_health()
        assert not pool.alive
        threading.Timer(0.3, lambda: healthy.__setitem__(0, True)).start()
        pool.check_health(wait=5.0)
        assert pool.alive


WEIGHTS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c.weight": torch.randn(3, 1000).t(),  # not as it lies in memory
    "d.scale": torch.tensor(2.0),
    "e.empty": torch.empty(0, 4),
}


class Workers:
    """The endpoints of a vLLM server with two workers that the transfer uses."""

    def __init__(self, breaks: bool = False):
        self.breaks = breaks
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.calls: list[str] = []

    def route(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/get_world_size":
            return 200, {"world_size": 2}
        self.calls.append(path)
        if path == "/collective_rpc":
            host, port, token, keep = body["args"]
            workers = [threading.Thread(target=self.fetch, args=(host, int(port), token)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            return (500, {}) if self.breaks else (200, {"results": ["kept" if keep == "keep" else "emptied"] * 2})
        if path == "/update_weight_version":
            self.calls.append(body["new_version"])
        return 200, {"success": True}

    def fetch(self, host: str, port: int, token: str) -> None:
        with receive_weights(host, port, token) as weights:
            if self.breaks:
                next(weights)
                return
            self.loaded.append(dict(weights))


@pytest.mark.parametrize("keep", [True, False])
def test_weights_reach_every_worker_of_every_server(keep: bool) -> None:
    servers = [Workers(), Workers(), Workers(breaks=True)]
    with ExitStack() as stack:
        pool = ServerPool([stack.enter_context(server(one.route)) for one in servers], timeout=5.0)
        transfer(pool, pool.servers, iter(WEIGHTS.items()), "run-1", keep, timeout=5.0)
    assert [not one.lost for one in pool.servers] == [True, True, False]
    for one in servers[:2]:
        assert len(one.loaded) == 2
        for loaded in one.loaded:
            assert loaded.keys() == WEIGHTS.keys()
            assert all(
                torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype
                for name, value in WEIGHTS.items()
            )
        emptied = [] if keep else ["/reset_encoder_cache"]
        assert one.calls == ["/collective_rpc", *emptied, "/reset_prefix_cache", "/update_weight_version", "run-1"]


def test_weights_go_one_by_one_and_a_stranger_gets_none() -> None:
    sender = WeightSender("127.0.0.1", timeout=5.0)
    with receive_weights(*sender.address, "x" * 32) as stranger:
        assert not sender.accept(1.0)
        with pytest.raises((VisdError, ConnectionError)):
            next(stranger)
    assert not sender.accept(0.01)
    with receive_weights(*sender.address, sender.token) as weights:
        assert sender.accept(1.0)
        for pair in list(WEIGHTS.items())[:2]:
            sender.send(*pair)
        assert [next(weights)[0], next(weights)[0]] == ["a.weight", "b.weight"]
        sender.close()
        with pytest.raises(VisdError, match="broke off"):
            next(weights)


def test_frames_arrive_as_they_were_sent() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    facts = {"fps": 25.0, "frames_indices": [0, 7, 9], "do_sample_frames": False}
    arrived, said = unpack(pack(frames, facts))
    assert np.array_equal(arrived, frames) and said == facts
