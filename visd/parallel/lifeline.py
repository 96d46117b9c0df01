"""A process that dies ends the others at once and with its reason, instead of leaving them to wait in a collective.

The first process listens and every other one holds a connection to it. The kernel closes a dead process's connections
and asks a silent machine for a sign of life, so nothing here waits for an interpreter that is busy. A process that
leaves properly says goodbye, one that fails says of what; the first passes on what it hears.

A process may be inside a collective that never returns. What ends it is therefore a thread, by `os._exit`.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from visd.parallel.place import Place
from visd.types import VisdError

EXIT_STATUS = 3
"""Of a process that ends because another one did."""
GRACE = 5.0
"""Seconds that a process has to fail by itself after another one said why it fails: all may have the same reason."""
NEWS = 1.0
"""Seconds that a process whose own error may only be a collective's waits to hear that another one has died."""
JOINING = 60.0
"""Seconds that the connections may take at the start."""
HELLO = 5.0
"""Seconds in which a connection has to say whose it is."""
LONGEST = 2000
"""Characters of an error's text that are passed on."""


@dataclass(frozen=True)
class Notice:
    """What a process says at its end, or what the first process says of it."""

    rank: int
    proper: bool = False  # it leaves because its work is done
    why: str = ""  # what it fails of; empty where it could not say

    @property
    def sentence(self) -> str:
        if self.why:
            return f"process {self.rank} stopped, and so do the others: {self.why}"
        return (
            f"process {self.rank} died without a word, and so the others stop: it was killed (for memory, or by a "
            "signal) or its machine is gone; start again to go on from the newest checkpoint."
        )


class Lifeline:
    """This process's connections to others, and the thread that watches them."""

    def __init__(self, rank: int, peers: dict[int, socket.socket]):
        """`peers`: by rank; all others for the first process, the first for all others."""
        self._rank, self._peers = rank, peers
        self._sending = threading.Lock()
        self._left, self._told = threading.Event(), threading.Event()
        self._notice: Notice | None = None
        os.register_at_fork(after_in_child=self._close)  # or a child would keep the connection of its dead parent
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def leave(self, error: BaseException | None = None) -> None:
        """Say goodbye, or what this process fails of; nobody's end ends this process from here on.

        An error that may only be how a collective answers another process's death ends it as that death does.
        """
        if self._left.is_set():
            return
        own = error is None or isinstance(error, VisdError) or not isinstance(error, Exception)
        if not own and self._told.wait(NEWS):
            self._exit()
        self._left.set()
        why = "" if error is None else " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        self._send(Notice(self._rank, error is None, why))
        for peer in self._peers.values():
            with suppress(OSError):  # who has gone need not be told
                peer.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Read what the others say until all have gone or one of them has died."""
        said = {rank: b"" for rank in self._peers}
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    rank, peer = key.data, self._peers[key.data]
                    part = _received(peer)
                    said[rank] += part
                    if b"\n" not in said[rank] and part:
                        continue
                    notice = Notice(**json.loads(said[rank])) if b"\n" in said[rank] else Notice(rank)
                    if not notice.proper:
                        return self._another_ended(notice)
                    selector.unregister(peer)

    def _another_ended(self, notice: Notice) -> None:
        """Pass it on, and end, unless this process is about to leave by itself."""
        self._notice = notice
        self._told.set()
        if self._rank == 0:
            self._send(notice)
        if not self._left.wait(GRACE if notice.why else 0):
            self._exit()

    def _exit(self) -> None:
        assert self._notice is not None
        # Not by `sys.stderr` or a logger: the thread that is stuck may hold their locks.
        with suppress(OSError):
            os.write(2, f"error: {self._notice.sentence}\n".encode())
        os._exit(EXIT_STATUS)

    def _send(self, notice: Notice) -> None:
        line = json.dumps(vars(notice)).encode() + b"\n"
        with self._sending:
            for peer in self._peers.values():
                with suppress(OSError):  # who has gone need not be told
                    peer.sendall(line)

    def _close(self) -> None:
        for peer in self._peers.values():
            peer.close()


_current: Lifeline | None = None
"""Of this process, as its process group is one; None where there is no other process to watch."""


def start(place: Place, seconds: int) -> None:
    """Connect to the others. All ranks call it, once the process group exists.

    Args:
        seconds: a machine that answers nothing for so long counts as dead; 0 watches nobody.

    Raises:
        VisdError: the processes cannot reach the first one.
    """
    global _current
    if place.world_size == 1 or not seconds:
        return
    listening = _listen() if place.rank == 0 else None
    offer: list[Any] = [(listening.getsockname()[1], secrets.token_hex(16)) if listening else None]
    dist.broadcast_object_list(offer, src=0)
    port, token = offer[0]
    if listening is not None:
        with listening:
            peers = _accepted(listening, place.world_size, token)
    else:
        peers = {0: _connected(os.environ["MASTER_ADDR"], port, token, place.rank)}
    for peer in peers.values():
        _probe(peer, seconds)
    _current = Lifeline(place.rank, peers)


def leave(error: BaseException | None = None) -> None:
    """`Lifeline.leave` of this process, if it has one."""
    if _current is not None:
        _current.leave(error)


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=1024)


def _accepted(listening: socket.socket, world_size: int, token: str) -> dict[int, socket.socket]:
    """A connection of every other process; strangers, who do not know the token, are shown out."""
    end, peers = time.monotonic() + JOINING, dict[int, socket.socket]()
    while len(peers) < world_size - 1:
        listening.settimeout(max(0.1, end - time.monotonic()))
        try:
            peer, _ = listening.accept()
        except TimeoutError:
            missing = sorted(set(range(1, world_size)) - set(peers))
            raise _unreachable(f"processes {missing} did not connect to process 0 in {JOINING:g} s") from None
        hello = _hello(peer)
        if len(hello) == 2 and secrets.compare_digest(hello[0], token):
            peers[int(hello[1])] = peer
        else:
            peer.close()
    return peers


def _hello(peer: socket.socket) -> list[str]:
    """The words that a new connection begins with; none where it is silent."""
    peer.settimeout(HELLO)
    try:
        # Unbuffered: what follows the line is the watching thread's.
        return peer.makefile("rb", buffering=0).readline(100).decode(errors="replace").split()
    except OSError:
        return []


def _connected(host: str, port: int, token: str, rank: int) -> socket.socket:
    try:
        peer = socket.create_connection((host, port), timeout=JOINING)
        peer.sendall(f"{token} {rank}\n".encode())
    except OSError as error:
        raise _unreachable(f"process {rank} cannot reach process 0 at {host}:{port} ({error})") from error
    return peer


def _unreachable(what: str) -> VisdError:
    return VisdError(f"{what}: let the machines reach each other's ports, or set parallel.lifeline_seconds=0.")


def _probe(peer: socket.socket, seconds: int) -> None:
    """Have the kernel ask the other machine for a sign of life, and give it up after `seconds`."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    step = max(1, seconds // 4)
    probes = {"TCP_KEEPIDLE": step, "TCP_KEEPINTVL": step, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 1000 * seconds}
    for name, value in probes.items():
        if hasattr(socket, name):  # not every system has all of them
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _received(peer: socket.socket) -> bytes:
    """What has come; nothing where the other side is gone."""
    try:
        return peer.recv(4 * LONGEST)
    except OSError:
        return b""
