"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes], None, None]:
    """Open a temporary sibling to write to; it takes the place of ``path`` once it is complete and on disk.

    The file at ``path`` stays as it was if the block raises (the sibling is removed) or the process is killed (the
    sibling, ``NAME.part``, is overwritten by the next try).

    Raises:
        OSError: no space, read-only, no permission.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one piece (UTF-8)."""
    with replacing(path) as stream:
        stream.write(text.encode())
