"""The two streams: tables go to stdout, everything that accompanies the work to stderr."""

from __future__ import annotations

import functools
import logging
import warnings

from rich.console import Console


@functools.cache
def stdout() -> Console:
    """Console for results."""
    return Console()


@functools.cache
def stderr() -> Console:
    """Console for progress and messages."""
    return Console(stderr=True)


class _Messages(logging.Handler):
    """Writes messages above a live progress bar. A long line is left to the terminal to wrap: it may hold a path."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        stderr().print(level + self.format(record), soft_wrap=True, markup=False, highlight=False)


def set_up_logging(level: int = logging.INFO) -> None:
    """Show panbench's own messages. Call it once a process."""
    logger = logging.getLogger("panbench")
    logger.handlers[:] = [_Messages()]
    logger.setLevel(level)
    logger.propagate = False


def quieten_lightning() -> None:
    """Keep of Lightning only what needs attention. It sets its own levels when it is imported: call this after that."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # One scene fits in memory and frames are decoded once: worker processes would only cost.
    warnings.filterwarnings("ignore", message=".*does not have many workers which may be a bottleneck.*")
    # The order of frames is a function of the step, so a mid-epoch resume loses nothing.
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended.*")
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
