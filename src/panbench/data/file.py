"""What the readers ask of a file, wherever its bytes lie: on disk, in a ZIP archive, inside a ``.sens`` stream."""

from __future__ import annotations

from typing import Protocol


class File(Protocol):
    """A file of a data set. ``pathlib.Path`` is one; ``str`` of it is what an error message names it by."""

    @property
    def name(self) -> str:
        """The last part of its place, with suffix."""
        ...

    @property
    def stem(self) -> str:
        """``name`` without suffix."""
        ...

    def read_bytes(self) -> bytes:
        """Its content.

        Raises:
            OSError: it cannot be read; FileNotFoundError: it is not there.
        """
        ...
