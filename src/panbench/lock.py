"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from panbench.errors import UserError


@contextmanager
def held(folder: Path, doing: str) -> Generator[None, None, None]:
    """Hold a folder for this process. The kernel drops the lock with the process, however it ends.

    Args:
        folder: is there.
        doing: what another process that has it is said to do: "process 12 DOING; wait for it or stop it".

    Raises:
        UserError: if another process has it.
        OSError: if the lock file cannot be written.
    """
    with (folder / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read().strip() or "unknown"
            raise UserError(f"{folder}: process {owner} {doing}; wait for it or stop it") from None
        stream.seek(0)
        stream.truncate()
        stream.write(str(os.getpid()))
        stream.flush()
        yield


@contextmanager
def in_turn(folder: Path) -> Generator[None, None, None]:
    """Hold a folder as soon as no other process does: what two want is made once, and the other finds it.

    Args:
        folder: made if missing.

    Raises:
        OSError: if the folder or the lock file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
