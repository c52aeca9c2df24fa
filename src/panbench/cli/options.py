"""What the command lines of several verbs share."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from panbench.errors import Interrupted


def positive(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


@contextmanager
def stoppable() -> Generator[None, None, None]:
    """Within the block Ctrl-C and SIGTERM raise :class:`Interrupted`, which says that the same command continues."""
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("the same command continues") from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted("the same command continues")
