"""Reading image files into arrays, with errors that name the file; nearest-neighbour resampling of label-like maps."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panbench.data.file import File
from panbench.errors import UserError

# What Pillow raises for files that are cut off, mangled or no images at all.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error)
_INTEGER_MODES = ("L", "P", "I", "I;16", "I;16B", "I;16L")


def image_size(file: File) -> tuple[int, int]:
    """Width and height from the header.

    Raises:
        UserError: the file is missing or no image.
    """
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            return image.size
    except _BROKEN as error:
        raise _unreadable(file, error) from error


def read_color(file: File, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Colour image, uint8 [H, W, 3]; ``size`` = (width, height) resamples it (Lanczos).

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            rgb = image.convert("RGB")
            if size is not None and rgb.size != size:
                rgb = rgb.resize(size, Image.Resampling.LANCZOS)
            return np.array(rgb)
    except _BROKEN as error:
        raise _unreadable(file, error) from error


def read_integers(file: File) -> NDArray[np.uint8 | np.uint16 | np.int32]:
    """Single-channel integer image [H, W] (8 or 16 bit: ids, depth in millimetres).

    Raises:
        UserError: the file is missing, truncated, no image, or has colour channels.
    """
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as image:
            if image.mode not in _INTEGER_MODES:
                raise UserError(
                    f"{file}: has mode {image.mode}; ids and depth need one 8- or 16-bit channel: export it again"
                )
            return np.array(image)
    except _BROKEN as error:
        raise _unreadable(file, error) from error


def nearest_index(count: int, source: int) -> NDArray[np.int64]:
    """For ``count`` output pixels the index 0 … source − 1 of the input pixel that holds each one's centre."""
    return ((np.arange(count) + 0.5) * (source / count)).astype(np.int64)


def resize_nearest(image: NDArray[np.generic], width: int, height: int) -> NDArray[np.generic]:
    """Map [H, W] at another size; every output value is an input value (ids and depths are never mixed)."""
    if image.shape == (height, width):
        return image
    return image[nearest_index(height, image.shape[0])[:, None], nearest_index(width, image.shape[1])]


def _unreadable(file: File, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{file}: no such file: the export is incomplete, export the scene again")
    return UserError(f"{file}: cannot be decoded ({error}): the file is cut off or damaged, copy or export it again")
