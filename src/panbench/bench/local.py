"""The default engine: processes on this machine, a few at a time."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice

from panbench.bench.engine import Outcome, Stop, Task, run_task


class LocalEngine:
    """Runs up to ``workers`` tasks side by side.

    Args:
        workers: at least 1.
        retries: how often a task is tried again whose process was killed (by the system, out of memory, …). One that
            ends by itself with an error is not: it would do so again.
        devices: GPUs (CUDA's numbers), of which a task gets the one that fewest others use; (): tasks see all.
    """

    def __init__(self, workers: int = 1, retries: int = 2, devices: Sequence[str] = ()) -> None:
        if workers < 1:
            raise ValueError("workers must be at least 1")
        self._workers = workers
        self._retries = retries
        self._users = dict.fromkeys(devices, 0)
        self._lock = threading.Lock()
        self._stop = Stop()

    def stop(self) -> None:
        """End what runs, and start nothing more."""
        self._stop.set()

    def run(self, tasks: Iterable[Task], started: Callable[[Task], None]) -> Generator[Outcome, None, None]:
        """Yield the outcome of every task as it ends. Left early, by an exception too, it ends what runs first.

        Raises:
            OSError: if a log or a lock cannot be written.
        """
        waiting = iter(tasks)
        running: set[Future[Outcome]] = set()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="task") as pool:
            try:
                while True:
                    for task in islice(waiting, 0 if self._stop else self._workers - len(running)):
                        started(task)
                        running.add(pool.submit(self._run, task))
                    if not running:
                        return
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        yield future.result()
            finally:
                # The pool waits for what runs; after the last task there is nothing to stop.
                self._stop.set()

    def _run(self, task: Task) -> Outcome:
        if not self._users:
            return self._try(task)
        with self._lock:
            device = min(self._users, key=lambda d: self._users[d])
            self._users[device] += 1
        try:
            return self._try(
                dataclasses.replace(task, environment={**task.environment, "CUDA_VISIBLE_DEVICES": device})
            )
        finally:
            with self._lock:
                self._users[device] -= 1

    def _try(self, task: Task) -> Outcome:
        attempt = 1
        while True:
            outcome = dataclasses.replace(run_task(task, self._stop), attempts=attempt)
            if outcome.status >= 0 or self._stop or attempt > self._retries:
                return outcome
            attempt += 1


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by CUDA's number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
