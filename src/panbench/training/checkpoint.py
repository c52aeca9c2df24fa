"""Checkpoints that survive being killed at any moment, and a training run that stops cleanly when asked to."""

from __future__ import annotations

import errno
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from panbench.errors import Interrupted, UserError
from panbench.training.files import replacing
from panbench.training.metrics_csv import MetricsCsv

log = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint beside the old one and swaps them; reads plain data only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; the file that was there stays until the new one is complete.

        Raises:
            OSError: full disk, read-only folder. The previous checkpoint is intact.
        """
        with replacing(Path(path)) as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU. Always ``weights_only``: what needs a pickle to load does not belong in it.

        Raises:
            UserError: if the file is missing, damaged, or holds more than plain data.
        """
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"there is no checkpoint {path}") from None
        except Exception as error:
            # Depending on where a file was cut off, torch raises RuntimeError, UnpicklingError, EOFError or EINVAL.
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
                raise
            cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} cannot be read as a checkpoint ({cause}); --fresh starts the run over") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)


class SaveLast(Checkpoint):
    """Keeps ``RUN/checkpoints/last.ckpt`` fresh, and turns Ctrl-C and SIGTERM into a stop at the end of the step.

    Saving never changes the course of a run, so the time-based cadence does not make runs differ.

    Args:
        every_seconds: longest time between two checkpoints.
        every_n_steps: also save at multiples of this many optimiser steps; null for the time alone.
    """

    def __init__(self, every_seconds: float = 60.0, every_n_steps: int | None = None) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.every_n_steps = every_n_steps
        self.elapsed = 0.0
        """Seconds of training so far, over all parts of an interrupted run."""
        self._resumed = 0.0
        self._started: float | None = None
        self._saved_at = 0.0
        self._just_saved = False
        self._stop: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = self.elapsed = float(state_dict["elapsed"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = self._saved_at = time.monotonic()
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCsv):
                logger.start_at(trainer.global_step)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._asked_to_stop)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        at_step = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if self._stop is not None or at_step or time.monotonic() - self._saved_at >= self.every_seconds:
            self._save(trainer)
            self._just_saved = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        # Lightning's progress counters want checkpoints at the end of a step, but logs its metrics only after that.
        if self._just_saved:
            self._just_saved = False
            for logger in trainer.loggers:
                logger.save()
            if self._stop is not None:
                raise Interrupted(f"at step {trainer.global_step}; the same command continues from there")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
        self._restore_handlers()
        if self._stop is not None:
            raise Interrupted("after the last step of training; the same command continues with the scores")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _save(self, trainer: L.Trainer) -> None:
        self._tick()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        self._saved_at = time.monotonic()

    def _tick(self) -> None:
        if self._started is not None:
            self.elapsed = self._resumed + time.monotonic() - self._started

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop is not None:
            raise Interrupted("at once; the same command continues from the last checkpoint")
        self._stop = signal.Signals(number)
        log.warning("stopping after this step and saving; press Ctrl-C again to stop at once")

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
