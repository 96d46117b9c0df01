"""Weights over a socket: the trainer listens, every worker of a server connects, and all are sent the same tensors.

On the wire: the worker sends a secret of the sync; then come buckets, each 8 bytes of length (big-endian) and a safetensors
file of so many bytes, and at last the length 0.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from safetensors.torch import load, save
from torch import Tensor

from visd.types import VisdError

LENGTH = 8
TOKEN = 32
"""Bytes of a bucket's length and of the secret."""


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

    def send(self, data: bytes) -> None:
        """One bucket; an empty one ends the stream."""
        for worker in self._workers:
            worker.sendall(len(data).to_bytes(LENGTH, "big"))
            worker.sendall(data)

    def close(self) -> None:
        for end in (*self._workers, self._listener):
            end.close()


def buckets(weights: Iterable[tuple[str, Tensor]], size: int) -> Iterator[bytes]:
    """Tensors as files of about `size` bytes, or of one tensor where it is larger, in the order given."""
    waiting: dict[str, Tensor] = {}
    held = 0
    for name, value in weights:
        own = value.numel() * value.element_size()
        if waiting and held + own > size:
            yield save(waiting)
            waiting, held = {}, 0
        waiting[name] = value.detach().to("cpu", copy=True).contiguous()
        held += own
    if waiting:
        yield save(waiting)


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
        yield from load(bytes(_read(trainer, length))).items()


def _read(end: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    done = 0
    while done < count:
        got = end.recv_into(view[done:])
        if not got:
            raise VisdError(f"a stream of weights broke off after {done} of {count} bytes.")
        done += got
    return data
