"""Depth images: PNG files, and whatever else keeps depth and can decode itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from panbench.data.file import File
from panbench.data.images import image_size, read_integers
from panbench.errors import UserError


@runtime_checkable
class DepthImage(File, Protocol):
    """A file of depth that is no PNG, such as a payload of a ``.sens`` stream."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        ...

    def read_depth(self) -> NDArray[np.uint16]:
        """z-depth [H, W], millimetres, 0 = none.

        Raises:
            UserError: it cannot be read or decoded.
        """
        ...


def depth_size(file: File) -> tuple[int, int]:
    """Width and height of a depth image.

    Raises:
        UserError: the file is missing or no image.
    """
    return file.size if isinstance(file, DepthImage) else image_size(file)


def read_depth(file: File) -> NDArray[np.integer]:
    """z-depth [H, W], millimetres, 0 = none.

    Raises:
        UserError: the file is missing, damaged, or an image of 8 bits.
    """
    if isinstance(file, DepthImage):
        return file.read_depth()
    depth = read_integers(file)
    if depth.dtype == np.uint8:
        raise UserError(f"{file}: is an 8-bit image; depth must be 16-bit PNG in millimetres: export it again")
    return depth
