"""The engine for many machines: every task is a task of Ray, which finds a node with room for it.

What travels is a :class:`Task` there and an :class:`Outcome` back, a few hundred bytes each. Everything a task reads
and writes lies on storage that all nodes see under the same path, or is sent up by the task's own commands
(:mod:`panbench.bench.artifacts`). Retries are counted here and not by Ray, so that a lost node and a killed process
are the same thing, as with the local engine.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from panbench.bench.engine import Outcome, Resources, Stop, Task, run_task
from panbench.errors import UserError

if TYPE_CHECKING:
    from types import FrameType

GPU_MEMORY = "gpu_memory_gb"
"""Ray resource that nodes declare, and tasks with ``Resources.gpu_memory_gb`` take a part of."""

_AHEAD = 100  # tasks that are handed to Ray before there is room for them
_POLL = 0.2  # seconds between looks at whether to stop
_LOOK = 2.0  # seconds between looks at what the nodes offer
_DRAIN = 40.0  # seconds that ending tasks are waited for: the grace of run_task, and the way to its node and back


class RayEngine:
    """Runs tasks on the nodes of a Ray cluster.

    Args:
        address: ``HOST:PORT`` of a cluster, or ``auto`` for the one this machine is a node of. None starts one on this
            machine alone, closed to others, and ends it afterwards.
        retries: how often a task is tried again that was killed, or whose worker or node was lost. One that ends by
            itself with an error is not: it would do so again.
        patience: seconds that a task waits while no node is large enough for it (one may be about to join) before it
            fails.
    """

    def __init__(self, address: str | None = None, retries: int = 2, patience: float = 60.0) -> None:
        if address is not None and "://" in address:
            raise UserError(f"{address}: not supported: start on a node of the cluster, with address auto")
        self._address = address
        self._retries = retries
        self._patience = patience
        self._stop = Stop()

    def stop(self) -> None:
        """End what runs, and start nothing more. Safe in a signal handler."""
        self._stop.set()

    def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
        """Yield the outcome of every task as it ends. Left early, by an exception too, it ends what runs first.

        Raises:
            UserError: Ray is not installed, there is no such cluster, or a node cannot run panbench.
            OSError: if a log or a lock cannot be written on a node.
        """
        with _cluster(self._address):
            yield from _Run(self._stop, self._retries, self._patience).run(tasks, started)


@dataclass
class _Entry:
    """A task in the hands of Ray."""

    task: Task
    attempt: int = 1
    host: str = ""  # "" until it begins
    told: bool = False
    unfit_since: float | None = None  # since when no node is large enough


class _Run:
    def __init__(self, stop: Stop, retries: int, patience: float) -> None:
        import ray

        self._stop = stop
        self._retries = retries
        self._patience = patience
        self._entries: dict[Any, _Entry] = {}  # by Ray's stream of what the task reports
        self._cancelled = False
        self._looked = -math.inf
        # Ray's own retries are off: ours count them all.
        self._remote: Any = ray.remote(num_returns="streaming", max_retries=0)(_work)

    def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
        import ray

        waiting = iter(tasks)
        try:
            while True:
                room = 0 if self._stop else _AHEAD - sum(not entry.host for entry in self._entries.values())
                for task in islice(waiting, max(room, 0)):
                    self._submit(_Entry(_absolute(task)))
                if not self._entries:
                    return
                if self._stop:
                    self._cancel()
                ready, _ = ray.wait(list(self._entries), num_returns=1, timeout=_POLL, fetch_local=False)
                for stream in ready:
                    if outcome := self._take(stream, started):
                        yield outcome
                if not self._stop:
                    yield from self._unfit()
        finally:
            # An exception, or the caller wants no more.
            self._stop.set()
            self._cancel()
            deadline = time.monotonic() + _DRAIN
            while self._entries and time.monotonic() < deadline:
                ready, _ = ray.wait(list(self._entries), num_returns=1, timeout=_POLL, fetch_local=False)
                for stream in ready:
                    self._take(stream, lambda _: None)

    def _submit(self, entry: _Entry) -> None:
        self._entries[self._remote.options(**_options(entry.task.resources)).remote(entry.task)] = entry

    def _cancel(self) -> None:
        """Have Ray forget the tasks that wait and interrupt those that run, once."""
        import ray

        if not self._cancelled:
            self._cancelled = True
            for stream in self._entries:
                ray.cancel(stream)

    def _take(self, stream: Any, started: Callable[[Task], None]) -> Outcome | None:
        """Take in the next report of a task; gives its outcome if that is settled."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        entry = self._entries[stream]
        try:
            report = cast("str | Outcome", ray.get(next(stream)))
        except TaskCancelledError:
            # Comes when the task has ended; of one that had not begun there is nothing to tell.
            del self._entries[stream]
            stopped = Outcome(entry.task.key, -signal.SIGTERM, 0.0, entry.host, entry.attempt, "stopped")
            return stopped if entry.host else None
        except RayTaskError as problem:
            del self._entries[stream]
            raise _explained(problem, entry) from problem
        except (RayError, StopIteration) as problem:
            # The stream's end comes here only if a signal cut off the reading of the report before it.
            error = "stopped" if self._stop else f"worker lost: {_first_line(problem)}"
            report = Outcome(entry.task.key, -signal.SIGKILL, 0.0, entry.host, entry.attempt, error)
        if isinstance(report, str):
            entry.host, entry.unfit_since = report, None
            if not entry.told:
                entry.told = True
                started(entry.task)
            return None
        del self._entries[stream]
        if report.status < 0 and not self._stop and entry.attempt <= self._retries:
            self._submit(dataclasses.replace(entry, attempt=entry.attempt + 1, host=""))
            return None
        return dataclasses.replace(report, attempts=entry.attempt)

    def _unfit(self) -> Iterator[Outcome]:
        """Give up on tasks that no node has been large enough for, for as long as the patience lasts."""
        import ray

        now = time.monotonic()
        waiting = [stream for stream, entry in self._entries.items() if not entry.host]
        if not waiting or now < self._looked + _LOOK:
            return
        self._looked = now
        offers: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for stream in waiting:
            entry = self._entries[stream]
            needs = _needs(entry.task.resources)
            if any(all(offer.get(name, 0.0) >= amount for name, amount in needs.items()) for offer in offers):
                entry.unfit_since = None
                continue
            entry.unfit_since = entry.unfit_since or now
            if now >= entry.unfit_since + self._patience:
                del self._entries[stream]
                ray.cancel(stream)
                wanted = ", ".join(f"{name} {amount:g}" for name, amount in needs.items())
                error = f"no node of the Ray cluster is large enough ({wanted}): ask for less or add a node"
                yield Outcome(entry.task.key, 127, 0.0, "", entry.attempt, error)


def _work(task: Task) -> Generator[str | Outcome, None, None]:
    """On the node: report that the task begins, run it, report how it ended."""
    yield platform.node()
    stop = Stop()

    def interrupted(number: int, frame: FrameType | None) -> None:
        stop.set()

    # Ray cancels a running task with an interrupt of the main thread, where this runs. As an exception it could fall
    # anywhere; as a flag it ends the command in good order.
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield run_task(task, stop)
    finally:
        signal.signal(signal.SIGINT, before)


def _needs(resources: Resources) -> dict[str, float]:
    """Amounts by Ray's names of them. Ray counts more than one GPU, and GB, in whole numbers."""
    gpus = resources.gpus if resources.gpus <= 1 else float(math.ceil(resources.gpus))
    needs = {"CPU": resources.cpus, "GPU": gpus, GPU_MEMORY: float(math.ceil(resources.gpu_memory_gb))}
    return {name: amount for name, amount in needs.items() if amount > 0}


def _options(resources: Resources) -> dict[str, Any]:
    needs = _needs(resources)
    memory = needs.get(GPU_MEMORY)
    return {
        "num_cpus": needs.get("CPU", 0),
        "num_gpus": needs.get("GPU", 0),
        "resources": {GPU_MEMORY: memory} if memory else None,
    }


def _absolute(task: Task) -> Task:
    """Workers have another working folder."""
    return dataclasses.replace(task, log=task.log.absolute(), lock=task.lock.absolute(), folder=task.folder.absolute())


def _explained(problem: Any, entry: _Entry) -> Exception:
    """What went wrong outside the commands of a task, on its node."""
    cause: BaseException = problem.cause
    if isinstance(cause, OSError):
        where = f"{entry.host}: " if entry.host else ""
        return OSError(cause.errno, f"{where}{cause.strerror or cause}", cause.filename)
    return UserError(
        f"{entry.host or 'a node'} cannot run panbench: {_first_line(cause)}: "
        "install the same panbench, with the extra ray, on every node"
    )


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(problem).__name__


@contextmanager
def _cluster(address: str | None) -> Generator[None, None, None]:
    """Be connected to a cluster; one that was connected to before is used and left as it is."""
    own: dict[str, Any] = {}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "ray" not in sys.modules:
            # Read when Ray is imported. The first keeps it on the loopback interface, as on systems where it knows no
            # clusters; a token keeps other users of the machine out. What the environment says already is obeyed.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        own = {
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
            "resources": _gpu_memory(),
            # Ray would kill the worker and not the process that takes the memory.
            "_system_config": {"memory_monitor_refresh_ms": 0},
        }
    try:
        import ray
    except ImportError as missing:
        raise UserError("the engine ray needs Ray: pip install 'panbench[ray]'") from missing
    if ray.is_initialized():
        yield
        return
    try:
        if address is not None and ":" in address:
            # Ray itself tries for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _signals_kept():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError, AssertionError) as problem:
        remedy = "is there a cluster (ray start --head), of the same Ray and Python?" if address else "see /tmp/ray"
        raise UserError(f"Ray at {address or 'this machine'}: {_first_line(problem)}: {remedy}") from problem
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Generator[None, None, None]:
    """Ray puts its own answer to SIGTERM in place of the caller's; put it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _gpu_memory() -> dict[str, float]:
    """What this machine declares: GB of all its GPUs."""
    import torch

    if not torch.cuda.is_available():
        return {}
    devices = range(torch.cuda.device_count())
    return {GPU_MEMORY: float(sum(torch.cuda.get_device_properties(i).total_memory // 2**30 for i in devices))}
