"""What an engine runs and what it says of it; and the part every engine shares: running one task on this machine.

An engine only decides where and when. A task is a few commands in a row; that it is not started twice, that it survives
whoever started it, and how it ended is settled here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

PYTHON = "{python}"

_GRACE = 20.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Resources:
    """What a task takes of a machine.

    Attributes:
        cpus: cores.
        gpus: GPUs, or a share of one.
        gpu_memory_gb: GPU memory, GB; 0 asks for none in particular.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    gpu_memory_gb: float = 0.0


@dataclass(frozen=True)
class Task:
    """Commands to run one after another; the first that fails ends the task.

    Attributes:
        key: unique among the tasks of a run, and safe as a file name.
        commands: argument lists; ``{python}`` as first word is the interpreter of the machine that runs it.
        log: gets what the commands write to stdout and stderr, after what it holds already.
        lock: file that is locked while the task runs, by whoever runs it and by the commands themselves. A task that is
            still running, left behind by a runner that was killed, is waited for.
        folder: working folder.
        environment: added to the environment.
        resources: for engines that place tasks.
    """

    key: str
    commands: tuple[tuple[str, ...], ...]
    log: Path
    lock: Path
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    resources: Resources = Resources()


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        key: the task's.
        status: exit status of the last command; negative: the signal that ended it.
        seconds: that the commands ran, in the last attempt.
        host: where.
        attempts: how often it was started.
        error: one line on what went wrong, "" if nothing did.
    """

    key: str
    status: int
    seconds: float
    host: str
    attempts: int = 1
    error: str = ""


class Engine(Protocol):
    """Runs tasks."""

    def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
        """Yield the outcome of every task as it ends, in any order. ``started`` is told of each that begins.

        Closed early, it ends what runs.
        """
        ...

    def stop(self) -> None:
        """End what runs, and start nothing more. May be called from another thread or a signal handler."""
        ...


class Stop:
    """Tells :func:`run_task`, from another thread, to end its command."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """From now on nothing is started, and what runs is ended."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()


def run_task(task: Task, stop: Stop | None = None) -> Outcome:
    """Run a task here, and wait for it.

    Every command gets a process group of its own, no standard input, and the task's open lock, so that the lock is
    held as long as any of its processes lives. When told to stop, the group gets SIGTERM, and SIGKILL after 20 s.

    Raises:
        OSError: if the log or the lock cannot be written. A command that cannot be started is an outcome (status 127).
    """
    stop = Stop() if stop is None else stop
    task.log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    status, error = 0, ""
    with _locked(task.lock, stop) as lock, task.log.open("ab", buffering=0) as output:
        started = time.monotonic()
        for command in task.commands:
            if stop:
                status, error = -signal.SIGTERM, "stopped"
                break
            argv = [sys.executable if i == 0 and word == PYTHON else word for i, word in enumerate(command)]
            output.write(f"$ {' '.join(command)}\n".encode())
            begin = output.seek(0, os.SEEK_END)
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=task.folder,
                    env={**os.environ, **task.environment},
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            except OSError as problem:
                status, error = 127, f"{argv[0]} cannot be started: {problem.strerror}"
                break
            status = _wait(process, stop)
            if status != 0:
                error = "stopped" if stop else _last_error(task.log, begin, status)
                break
    return Outcome(task.key, status, time.monotonic() - started, platform.node(), 1, error)


def _wait(process: subprocess.Popen[bytes], stop: Stop) -> int:
    """Exit status of a process; ends its group when told to stop."""
    deadline = None
    # The first waits are short, so that short commands are not rounded up; later ones cost nothing.
    pause = 0.005
    while True:
        try:
            return process.wait(pause)
        except subprocess.TimeoutExpired:
            pause = min(2 * pause, 0.2)
        if stop and deadline is None:
            _signal_group(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE
        elif deadline is not None and time.monotonic() > deadline:
            _signal_group(process.pid, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(group, number)


@contextmanager
def _locked(path: Path, stop: Stop) -> Generator[int, None, None]:
    """Hold the lock of a task; waits for a process that was left behind with it. Yields the descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop:
                    break
                if not told:
                    log.info("%s still runs, left behind by an earlier start; waiting for it", path.parent.name)
                    told = True
                time.sleep(0.1)
        yield descriptor
    finally:
        os.close(descriptor)


def _last_error(log: Path, begin: int, status: int) -> str:
    """What the log says went wrong since ``begin``: its last ``error:`` line, else its last line."""
    end = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    with log.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(begin, size - 20_000))
        text = stream.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(error:|\w*Error\b)", line)]
    last = (named or lines or [""])[-1].removeprefix("error: ")
    return f"{end}: {last[:500]}" if last else end
