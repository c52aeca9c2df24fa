"""What a training run shows while it works: loss, PSNR, number of Gaussians, speed, time left."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sized
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from torch import Tensor

from panbench.cli.console import stderr

log = logging.getLogger(__name__)


class TrainingProgress(ProgressBar):
    """A rich progress bar on a terminal; elsewhere a line now and then.

    The module is asked for ``latest``, a mapping of names to scalar tensors or numbers (``loss``, ``psnr``), and for
    ``gaussians``, whose length is N; both may be absent. Tensors are read only when the bar is drawn, never in a step
    between, so that a GPU is not waited for.

    Args:
        per_second: how often the bar is drawn.
        line_every: seconds between two lines where there is no terminal.
    """

    def __init__(self, per_second: float = 5.0, line_every: float = 20.0) -> None:
        super().__init__()
        self.per_second = per_second
        self.line_every = line_every
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._drawn = 0.0
        self._marks: deque[tuple[float, int]] = deque(maxlen=50)
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._marks.clear()
        self._marks.append((time.monotonic(), trainer.global_step))
        self._open("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        now = time.monotonic()
        interval = 1.0 / self.per_second if stderr().is_terminal else self.line_every
        if not self._enabled or (now - self._drawn < interval and trainer.global_step != trainer.max_steps):
            return
        self._drawn = now
        self._marks.append((now, trainer.global_step))
        status = describe(pl_module, self._speed(), trainer.max_steps - trainer.global_step)
        self._show(trainer.global_step, trainer.max_steps, status)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open("test frames", _total(trainer.num_test_batches), 0)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=batch_idx + 1)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _speed(self) -> float:
        (t0, s0), (t1, s1) = self._marks[0], self._marks[-1]
        return (s1 - s0) / (t1 - t0) if t1 > t0 else 0.0

    def _open(self, title: str, total: int, done: int) -> None:
        self._drawn = time.monotonic()
        if not self._enabled or not stderr().is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=stderr(),
            refresh_per_second=self.per_second,
        )
        self._task = self._bar.add_task(title, total=total if total >= 0 else None, completed=done, status="")
        self._bar.start()

    def _show(self, step: int, total: int, status: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, status=status)
        else:
            log.info("step %d/%d  %s", step, total, status)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def describe(module: object, speed: float, left: int) -> str:
    """One line on a module's state: ``loss 0.0412  PSNR 27.1  N 48,211  21.3 it/s  1:58 left``."""
    latest: Mapping[str, Any] = getattr(module, "latest", None) or {}
    parts: list[str] = []
    if "loss" in latest:
        parts.append(f"loss {_number(latest['loss']):.4f}")
    if "psnr" in latest:
        parts.append(f"PSNR {_number(latest['psnr']):.1f}")
    gaussians = getattr(module, "gaussians", None)
    if isinstance(gaussians, Sized):
        parts.append(f"N {len(gaussians):,}")
    if speed > 0:
        parts.append(f"{speed:.1f} it/s")
        parts.append(f"{clock(left / speed)} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """``1:58`` or ``2:03:07``."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _total(counts: list[int | float]) -> int:
    total = sum(counts)
    return int(total) if total != float("inf") else -1
