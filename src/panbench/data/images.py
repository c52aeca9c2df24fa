"""Reading image files into arrays, with errors that name the file; nearest-neighbour resampling of label-like maps.

Files are PNG or JPEG, told apart by their first bytes. Sizes are judged by the header, before anything is decoded.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from panbench.data.file import File
from panbench.errors import UserError

MAX_SIDE = 1 << 14
MAX_PIXELS = 1 << 26
# What Pillow raises for files that are cut off or mangled.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, zlib.error, struct.error)
# Deflate packs at most 1032 bytes into one, and a block of 64 pixels takes at least a bit of a JPEG.
_DENSEST = 1032
_INTEGER_MODES = ("1", "L", "P", "I", "I;16")
_STRETCH = {2: 85, 4: 17}  # Pillow spreads grey of 2 and 4 bit over 0 ... 255


@runtime_checkable
class ColorImage(File, Protocol):
    """A colour image that is no file of its own, such as a picture of a video."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        ...

    def read_color(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3].

        Raises:
            UserError: it cannot be read or decoded.
        """
        ...


def image_size(file: File) -> tuple[int, int]:
    """Width and height from the header.

    Raises:
        UserError: the file is missing, no PNG or JPEG, or of an absurd size.
    """
    return file.size if isinstance(file, ColorImage) else _open(file)[0].size


def read_color(file: File, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Colour image, uint8 [H, W, 3]; ``size`` = (width, height) resamples it (Lanczos). 16-bit grey is scaled down.

    Raises:
        UserError: the file is missing, truncated, no PNG or JPEG, or of an absurd size.
    """
    if isinstance(file, ColorImage):
        color = file.read_color()
        if size is None or color.shape[1::-1] == size:
            return color
        return np.array(Image.fromarray(color).resize(size, Image.Resampling.LANCZOS))
    image, _ = _open(file)
    try:
        if image.mode in ("I", "I;16"):  # 16-bit grey: Pillow's own conversion clips at 255
            rgb = Image.fromarray((np.array(image) >> 8).astype(np.uint8)).convert("RGB")
        else:
            rgb = image.convert("RGB")
        if size is not None and rgb.size != size:
            rgb = rgb.resize(size, Image.Resampling.LANCZOS)
        return np.array(rgb)
    except _BROKEN as error:
        raise _damaged(file, error) from error


def read_integers(file: File) -> NDArray[np.uint8 | np.uint16 | np.int32]:
    """Single-channel integer image [H, W] (ids, depth in millimetres), as stored in 1 to 16 bit.

    Of an image with a palette these are the indices into it.

    Raises:
        UserError: the file is missing, truncated, no PNG, of an absurd size, or has colour channels.
    """
    image, bits = _open(file)
    if isinstance(image, JpegImageFile):
        raise UserError(f"{file}: is a JPEG, which garbles ids and depth: export it again as PNG")
    if image.mode not in _INTEGER_MODES:
        raise UserError(f"{file}: has mode {image.mode}; ids and depth need one 8- or 16-bit channel: export it again")
    try:
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        return np.array(image) // _STRETCH[bits] if image.mode == "L" and bits in _STRETCH else np.array(image)
    except _BROKEN as error:
        raise _damaged(file, error) from error


def read_packed_ids(file: File) -> NDArray[np.int32]:
    """Ids [H, W] of a colour image that packs them as R + 256 G + 65536 B, as COCO's panoptic format does.

    Raises:
        UserError: the file is missing, truncated, no PNG, of an absurd size, or has no three channels of 8 bit.
    """
    image, _ = _open(file)
    if isinstance(image, JpegImageFile):
        raise UserError(f"{file}: is a JPEG, which garbles ids: export it again as PNG")
    if image.mode != "RGB":
        raise UserError(f"{file}: has mode {image.mode}; packed ids need three channels of 8 bit: export it again")
    try:
        channels = np.array(image)
    except _BROKEN as error:
        raise _damaged(file, error) from error
    ids = channels[..., 0].astype(np.int32)
    for place in (1, 2):
        ids |= channels[..., place].astype(np.int32) << 8 * place
    return ids


def nearest_index(count: int, source: int) -> NDArray[np.int64]:
    """For ``count`` output pixels the index 0 … source − 1 of the input pixel that holds each one's centre."""
    return ((np.arange(count) + 0.5) * (source / count)).astype(np.int64)


def resize_nearest(image: NDArray[np.generic], width: int, height: int) -> NDArray[np.generic]:
    """Map [H, W] at another size; every output value is an input value (ids and depths are never mixed)."""
    if image.shape == (height, width):
        return image
    return image[nearest_index(height, image.shape[0])[:, None], nearest_index(width, image.shape[1])]


def _open(file: File) -> tuple[PngImageFile | JpegImageFile, int]:
    """The image, of which only the header has been read, and the bits per value of a PNG (8 of a JPEG)."""
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file: the export is incomplete, export the scene again") from error
    except OSError as error:
        raise _damaged(file, error) from error
    png = data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
    if not png and data[:3] != b"\xff\xd8\xff":
        raise _damaged(file, ValueError("neither PNG nor JPEG"))
    try:
        # Not Image.open: it would try all formats that Pillow knows, and has a limit of its own that only warns.
        image = PngImageFile(io.BytesIO(data)) if png else JpegImageFile(io.BytesIO(data))
    except _BROKEN as error:
        raise _damaged(file, error) from error
    width, height = image.size
    bits = data[24] if png else 8
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UserError(
            f"{file}: claims to be {width}x{height}; at most {MAX_SIDE} pixels a side and {MAX_PIXELS} in all are "
            "read: copy the file again if that is wrong, else scale the image down"
        )
    if width * height * (bits if png else 1) > _DENSEST * 8 * len(data):
        raise _damaged(file, ValueError(f"{len(data)} bytes cannot hold {width}x{height} pixels"))
    return image, bits


def _damaged(file: File, error: BaseException) -> UserError:
    return UserError(f"{file}: cannot be decoded ({error}): the file is cut off or damaged, copy or export it again")
