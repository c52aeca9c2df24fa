"""The two streams: tables go to stdout, everything that accompanies the work to stderr."""

from __future__ import annotations

import functools
import logging
import warnings

from rich.console import Console
from rich.logging import RichHandler


@functools.cache
def stdout() -> Console:
    """Console for results."""
    return Console()


@functools.cache
def stderr() -> Console:
    """Console for progress and messages."""
    return Console(stderr=True)


class _Formatter(logging.Formatter):
    """Says that a warning is one; the rest needs no level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def set_up_logging(level: int = logging.INFO) -> None:
    """Show panbench's own messages in full, and of the libraries only what needs attention. Call it once a process."""
    handler = RichHandler(console=stderr(), show_time=False, show_level=False, show_path=False, markup=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logger = logging.getLogger("panbench")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # One scene fits in memory and frames are decoded once: worker processes would only cost.
    warnings.filterwarnings("ignore", message=".*does not have many workers which may be a bottleneck.*")
    # The order of frames is a function of the step, so a mid-epoch resume loses nothing.
    warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended.*")
    warnings.filterwarnings("ignore", message=r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*")
