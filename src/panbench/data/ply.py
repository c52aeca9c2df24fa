"""Reading PLY files that nobody vouches for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plyfile import PlyData

_HEADER = 1 << 16


def read_ply(path: Path, **options: Any) -> PlyData:
    """The file's content, if what its header promises could be in it; ``options`` are those of ``PlyData.read``.

    Raises:
        ValueError: the header promises more than the file has bytes.
        OSError, PlyParseError, OverflowError, MemoryError and what else plyfile raises for damaged files.
    """
    with path.open("rb") as stream:
        head, found, _ = stream.read(_HEADER).partition(b"end_header")
    if not found:
        raise ValueError("its header does not end")
    promised = count = 0
    for line in head.splitlines():
        words = line.split()
        if words[:1] == [b"element"] and len(words) == 3:
            count = int(words[2])
            promised += count
        elif words[:1] == [b"property"]:
            promised += count  # a value takes a byte at least
    size = path.stat().st_size
    if promised > 2 * size:
        raise ValueError(f"its header promises {promised} rows and values in {size} bytes")
    return PlyData.read(str(path), **options)
