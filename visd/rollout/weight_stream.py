"""Weights over a socket: the trainer listens, every worker of a server connects, and all are sent the same tensors.

On the wire: the worker sends a secret of the sync; then come the tensors one by one, each a head and its bytes as they lie in memory. A
head is 8 bytes of length (big-endian) and so much JSON: name, type and shape. The length 0 ends the stream. Nothing is copied on the way
but by the network itself.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from visd.types import VisdError

LENGTH = 8
TOKEN = 32
"""Bytes of a head's length and of the secret."""


class WeightSender:
    """The trainer's end, for the workers of one server."""

    def __init__(self, host: str, timeout: float):
        """Listen at one of this machine's addresses; `timeout` (s) is the longest wait for the other end."""
        self.token = secrets.token_hex(TOKEN // 2)
        self.timeout = timeout
        self._listener = socket.create_server((host, 0))
        self._workers: list[socket.socket] = []

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def accept(self, wait: float) -> bool:
        """Wait up to `wait` seconds for one worker; False where none came or a stranger did."""
        self._listener.settimeout(wait)
        try:
            worker, _ = self._listener.accept()
        except TimeoutError:
            return False
        worker.settimeout(self.timeout)
        try:
            said = bytes(_read(worker, TOKEN))
        except (OSError, VisdError):
            said = b""
        if not secrets.compare_digest(said, self.token.encode()):
            worker.close()
            return False
        self._workers.append(worker)
        return True

    def send(self, name: str, value: Tensor) -> None:
        """One tensor."""
        data = value.detach().cpu().contiguous()
        head = json.dumps({"name": name, "dtype": str(data.dtype).removeprefix("torch."), "shape": list(data.shape)})
        for worker in self._workers:
            worker.sendall(len(head).to_bytes(LENGTH, "big") + head.encode())
            worker.sendall(_memory(data))

    def end(self) -> None:
        """There are no more."""
        for worker in self._workers:
            worker.sendall(bytes(LENGTH))

    def close(self) -> None:
        for end in (*self._workers, self._listener):
            end.close()


@contextmanager
def receive_weights(host: str, port: int, token: str, timeout: float = 600.0) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The other end: tensors by name, as they come.

    Raises:
        VisdError: the stream broke off.
    """
    with socket.create_connection((host, port), timeout=timeout) as trainer:
        trainer.sendall(token.encode())
        yield _tensors(trainer)


def _tensors(trainer: socket.socket) -> Iterator[tuple[str, Tensor]]:
    while length := int.from_bytes(_read(trainer, LENGTH), "big"):
        head = json.loads(_read(trainer, length))
        value = torch.empty(head["shape"], dtype=getattr(torch, head["dtype"]))
        _fill(trainer, _memory(value))
        yield head["name"], value


def _memory(value: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    return value.reshape(-1).view(torch.uint8).numpy().data


def _read(end: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    _fill(end, memoryview(data))
    return data


def _fill(end: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        got = end.recv_into(view[done:])
        if not got:
            raise VisdError(f"a stream of weights broke off after {done} of {len(view)} bytes.")
        done += got
