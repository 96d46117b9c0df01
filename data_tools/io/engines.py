"""Who does shards: processes of this machine, or the tasks of a Ray cluster. Both are given functions and give futures."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from visd.types import VisdError

Submit = Callable[..., Future[Any]]
"""Takes a function and its arguments."""


@contextmanager
def processes(workers: int) -> Iterator[Submit]:
    """Processes that end with this one, however it ends."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, context, _die_with_parent) as pool:
        try:
            yield pool.submit
        except BrokenProcessPool as error:
            raise VisdError("a process was ended from outside; give the same command again") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _die_with_parent() -> None:
    """In a new process: end when the one that asked for it is gone, however it went (Linux)."""
    # 1 is PR_SET_PDEATHSIG. The parent is the fork server, which ends with its own parent.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)


@contextmanager
def ray_tasks(workers: int) -> Iterator[Submit]:
    """Tasks of the cluster that RAY_ADDRESS names, or of a Ray started here with one CPU a worker.

    Raises:
        VisdError: Ray is not installed or cannot be reached, or a task raised it.
    """
    try:
        import ray
    except ImportError as error:
        raise VisdError("--engine ray: Ray is not installed; pip install visd[ray]") from error
    started = not ray.is_initialized()
    if started:
        local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:  # Ray raises it bare where a part of it does not start
            raise VisdError(f"--engine ray: no Ray can be had ({error}); check RAY_ADDRESS") from error
    try:
        yield lambda function, *arguments: ray.remote(function).remote(*arguments).future()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VisdError):
            raise error.cause from None  # the error's own text is a whole traceback
        raise
    finally:
        if started:
            ray.shutdown()


ENGINES: dict[str, Callable[[int], AbstractContextManager[Submit]]] = {"processes": processes, "ray": ray_tasks}
"""By the values of --engine; given the number of workers."""
