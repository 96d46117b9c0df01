"""A process that dies ends the others with the reason; one that leaves properly ends nobody. Real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.dist.spawn import ENVIRONMENT
from tests.tree import ROOT
from visd.cli import compose_config
from visd.config import ConfigError, load
from visd.parallel import lifeline
from visd.parallel.place import Place
from visd.types import VisdError

KILLED = -signal.SIGKILL
CASES = ("die:1:3", "die:0:2", "raise:1:2", "close:1:3", "agree:0:2")
LIMIT = 50.0
"""Seconds; who is not told waits longer."""


Ends = dict[str, list[tuple[int, str]]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """Exit code and output of each process, by case."""
    folder = tmp_path_factory.mktemp("ends")
    command = [sys.executable, "-m", "tests.dist.lifeline_worker", str(folder), *CASES]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=True, timeout=LIMIT)
    codes = json.loads((folder / "codes.json").read_text())
    return {
        case: [(code, (folder / f"{case}:{rank}.log").read_text()) for rank, code in enumerate(of_ranks)]
        for case, of_ranks in codes.items()
    }


def test_the_death_of_one_ends_all_and_is_named(ends: Ends) -> None:
    """The first process passes the news on; a child of the dead one does not keep it alive."""
    first, dead, third = ends["die:1:3"]
    assert [first[0], dead[0], third[0]] == [3, KILLED, 3]
    assert all("error: process 1 died without a word" in said for _, said in (first, third))


def test_the_death_of_the_first_ends_the_others(ends: Ends) -> None:
    dead, other = ends["die:0:2"]
    assert dead[0] == KILLED and other[0] == 3 and "error: process 0 died without a word" in other[1]


def test_what_a_process_fails_of_arrives(ends: Ends) -> None:
    other, own = ends["raise:1:2"]
    assert own[0] == 2 and "process" not in own[1]
    assert other[0] == 3
    assert "error: process 1 stopped, and so do the others: VisdError: the shelf is full\n" in other[1]


def test_who_leaves_properly_ends_nobody(ends: Ends) -> None:
    """The second process leaves before the first, the third after it."""
    assert [code for code, _ in ends["close:1:3"]] == [0, 0, 0]
    assert not any("error" in said for _, said in ends["close:1:3"])


def test_processes_with_the_same_error_end_by_themselves(ends: Ends) -> None:
    assert [code for code, _ in ends["agree:0:2"]] == [2, 2]
    assert all("the same for all" in said and "process" not in said for _, said in ends["agree:0:2"])


@pytest.mark.parametrize(("place", "seconds"), [(Place(0, 2), 0), (Place(), 30)])
def test_nobody_is_watched_without_it_or_alone(place: Place, seconds: int) -> None:
    lifeline.start(place, seconds)  # would ask the process group, which there is not
    assert lifeline._current is None


def test_silent_machines_are_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as peer:
        lifeline._probe(peer, 20)
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        idle = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        between = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        assert idle + between * peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) <= 20


def test_strangers_are_shown_out_and_missing_processes_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "JOINING", 0.5)
    with lifeline._listen() as listening:
        port = listening.getsockname()[1]
        stranger = socket.create_connection(("127.0.0.1", port))
        stranger.sendall(b"guess 1\n")
        own = lifeline._connected("127.0.0.1", port, "word", 2)
        with pytest.raises(VisdError, match=r"processes \[1\] did not connect.*parallel\.lifeline_seconds=0"):
            lifeline._accepted(listening, 3, "word")
        assert stranger.recv(1) == b""
        stranger.close()
        own.close()
    with pytest.raises(VisdError, match=r"process 2 cannot reach process 0.*parallel\.lifeline_seconds=0"):
        lifeline._connected("127.0.0.1", port, "word", 2)


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.lifeline_seconds: must not be negative"):
        load(compose_config(["parallel.lifeline_seconds=-1"]))
