"""ScanNet's ``.sens`` streams, version 4: an index that is made without reading images, and a writer.

::

    u32 version = 4    u64 n, char[n] sensor name
    f32[16] each of    colour intrinsic, colour extrinsic, depth intrinsic, depth extrinsic     4x4, row-major
    i32 colour codec   i32 depth codec    u32 colour width, height, depth width, height         f32 depth shift
    u64 frames
    frame:             f32[16] camera to world, u64 colour time, depth time, colour bytes, depth bytes; the two payloads
    u64 n, n x 128     measurements of the inertial unit, which nothing here needs

All little endian, packed. A depth payload is H x W u16, row-major, 0 = none, metres = value / depth shift; the pose of
a frame at which the tracker was lost is filled with -inf.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from panbench.data.images import MAX_PIXELS, MAX_SIDE
from panbench.errors import UserError

VERSION = 4
COLOR_CODECS = {-1: "unknown", 0: "raw", 1: "png", 2: "jpeg"}
DEPTH_CODECS = {-1: "unknown", 0: "raw_ushort", 1: "zlib_ushort", 2: "occi_ushort"}
_READ_COLOR, _READ_DEPTH = ("png", "jpeg"), ("raw_ushort", "zlib_ushort")

_SHAPE = struct.Struct("<ii4IfQ")
_HEAD = struct.Struct("<64s4Q")
_MATRICES = 4 * 64
_MILLIMETRES = 1000.0
_LONGEST_NAME = 4096
_MOST_FRAMES = 1 << 20  # nine hours
# What a payload may take beyond its pixels: headers, and blocks that a codec could not make smaller.
_SLACK = 1 << 16


@dataclass(frozen=True, eq=False)
class SensHeader:
    """What holds for all frames.

    Attributes:
        color_intrinsic, depth_intrinsic: [4, 4], pixels, with the centre of pixel (i, j) at (i, j).
        color_extrinsic, depth_extrinsic: [4, 4], from the camera to the common frame of both.
        color_size, depth_size: (width, height).
        color_codec, depth_codec: names out of COLOR_CODECS and DEPTH_CODECS.
        depth_shift: stored units of depth in a metre.
    """

    color_intrinsic: NDArray[np.float64]
    depth_intrinsic: NDArray[np.float64]
    color_extrinsic: NDArray[np.float64]
    depth_extrinsic: NDArray[np.float64]
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    color_codec: str = "jpeg"
    depth_codec: str = "zlib_ushort"
    depth_shift: float = 1000.0
    sensor: str = "StructureSensor"


@dataclass(frozen=True)
class SensPayload:
    """A colour image inside a stream (a :class:`panbench.data.file.File`)."""

    path: Path
    frame: int
    offset: int
    length: int
    suffix: str

    @property
    def name(self) -> str:
        """As the exported file is called: ``12.jpg``."""
        return f"{self.frame}{self.suffix}"

    @property
    def stem(self) -> str:
        return str(self.frame)

    def __str__(self) -> str:
        return f"{self.path} frame {self.frame}"

    def read_bytes(self) -> bytes:
        """The payload and nothing else of the stream. The file is opened each time, so any process may call it."""
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), self.length, self.offset)
        if len(data) != self.length:
            raise OSError(f"the stream has ended {self.length - len(data)} bytes too early")
        return data


@dataclass(frozen=True)
class SensDepth(SensPayload):
    """A depth image inside a stream (a :class:`panbench.data.depth_image.DepthImage`)."""

    size: tuple[int, int]
    codec: str
    shift: float

    def __str__(self) -> str:
        return f"{self.path} depth of frame {self.frame}"

    def read_depth(self) -> NDArray[np.uint16]:
        """z-depth [H, W], millimetres, 0 = none.

        Raises:
            UserError: the payload cannot be read, or holds more or less than the image.
        """
        width, height = self.size
        expected = 2 * width * height
        try:
            data = self.read_bytes()
            if self.codec == "zlib_ushort":
                # One byte more than needed tells a payload that is too long, whatever it would swell to.
                data = zlib.decompressobj().decompress(data, expected + 1)
        except (OSError, zlib.error) as error:
            raise UserError(f"{self}: cannot be decoded ({error}): the file is damaged, download it again") from error
        if len(data) != expected:
            held = "more" if len(data) > expected else f"{len(data)} bytes"
            raise UserError(
                f"{self}: holds {held} instead of the {expected} bytes of {width}x{height} values: the file is "
                "damaged, download it again"
            )
        stored = np.frombuffer(data, dtype="<u2").reshape(height, width)
        if self.shift == _MILLIMETRES:
            return stored.astype(np.uint16)
        return np.round(np.minimum(stored * (_MILLIMETRES / self.shift), 65535)).astype(np.uint16)


class SensFile:
    """The index of a stream. Opening seeks from frame to frame and reads their heads only.

    Attributes:
        path: the file.
        header: what holds for all frames.
        poses: camera to world [F, 4, 4]; not finite where the tracker was lost.
    """

    def __init__(self, path: Path) -> None:
        """Raises: UserError: there is no such file, it is cut off or damaged, or of a kind that is not read."""
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self.header, frames, start = _read_header(file, path)
                self.poses, self._color, self._depth = _read_index(file, path, self.header, frames, start)
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file: download the scene's .sens") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}): download it again") from error

    def __len__(self) -> int:
        return len(self.poses)

    def color(self, frame: int) -> SensPayload:
        """The colour image of a frame, encoded."""
        offset, length = self._color[frame].tolist()
        return SensPayload(self.path, frame, offset, length, ".png" if self.header.color_codec == "png" else ".jpg")

    def depth(self, frame: int) -> SensDepth | None:
        """The depth image of a frame; None where it has none."""
        offset, length = self._depth[frame].tolist()
        if not length:
            return None
        h = self.header
        return SensDepth(self.path, frame, offset, length, "", h.depth_size, h.depth_codec, h.depth_shift)


def _read_header(file: BinaryIO, path: Path) -> tuple[SensHeader, int, int]:
    """The header, the number of frames, and where the first begins."""

    def take(count: int) -> bytes:
        data = file.read(count)
        if len(data) != count:
            raise UserError(f"{path}: ends within its header: the file is cut off, download it again")
        return data

    version, length = struct.unpack("<IQ", take(12))
    if version != VERSION:
        raise UserError(f"{path}: is version {version}, not {VERSION}: it is no .sens of ScanNet-V2, download it again")
    if length > _LONGEST_NAME:
        raise UserError(f"{path}: its sensor's name has {length} bytes: the file is damaged, download it again")
    sensor = take(length).decode(errors="replace")
    matrices = _as_float64(np.frombuffer(take(_MATRICES), dtype="<f4"))
    color_code, depth_code, *sizes, shift, frames = _SHAPE.unpack(take(_SHAPE.size))
    color_codec = _codec(path, "colour", COLOR_CODECS, color_code, _READ_COLOR)
    depth_codec = _codec(path, "depth", DEPTH_CODECS, depth_code, _READ_DEPTH)
    for width, height in (sizes[:2], sizes[2:]):
        if not 0 < min(width, height) <= max(width, height) <= MAX_SIDE or width * height > MAX_PIXELS:
            raise UserError(f"{path}: claims images of {width}x{height}: the file is damaged, download it again")
    if not (np.isfinite(shift) and shift > 0):
        raise UserError(f"{path}: its depth shift is {shift:g}, not positive: the file is damaged, download it again")
    header = SensHeader(
        color_intrinsic=matrices[0],
        color_extrinsic=matrices[1],
        depth_intrinsic=matrices[2],
        depth_extrinsic=matrices[3],
        color_size=(sizes[0], sizes[1]),
        depth_size=(sizes[2], sizes[3]),
        color_codec=color_codec,
        depth_codec=depth_codec,
        depth_shift=shift,
        sensor=sensor,
    )
    return header, frames, 12 + length + _MATRICES + _SHAPE.size


def _codec(path: Path, what: str, names: dict[int, str], code: int, read: tuple[str, ...]) -> str:
    name = names.get(code, f"number {code}")
    if name not in read:
        raise UserError(
            f"{path}: its {what} images are packed as {name}; {' and '.join(read)} are read: export the scene with "
            "ScanNet's SensReader into color/, depth/, pose/ and intrinsic/"
        )
    return name


def _read_index(
    file: BinaryIO, path: Path, header: SensHeader, frames: int, start: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Poses [F, 4, 4]; offset and length of the colour and of the depth payloads [F, 2]."""
    end = os.fstat(file.fileno()).st_size
    if frames > min(_MOST_FRAMES, (end - start) // _HEAD.size):
        raise UserError(
            f"{path}: claims {frames} frames, which its {end} bytes cannot hold: the file is cut off, download it again"
        )
    largest = [4 * w * h + _SLACK for w, h in (header.color_size, header.depth_size)]
    poses = np.empty((frames, 16), dtype="<f4")
    places = np.empty((2, frames, 2), dtype=np.int64)
    at = start
    for frame in range(frames):
        head = os.pread(file.fileno(), _HEAD.size, at)
        if len(head) != _HEAD.size:
            raise UserError(f"{path}: ends before frame {frame} of {frames}: the file is cut off, download it again")
        pose, _, _, *lengths = _HEAD.unpack(head)
        poses[frame] = np.frombuffer(pose, dtype="<f4")
        at += _HEAD.size
        for kind, length in enumerate(lengths):
            if length > largest[kind]:
                raise UserError(
                    f"{path}: claims {length} bytes for one image of frame {frame}: the file is damaged, download it "
                    "again"
                )
            places[kind, frame] = at, length
            at += length
    if at > end:
        raise UserError(f"{path}: ends within frame {frames - 1} of {frames}: the file is cut off, download it again")
    return _as_float64(poses), places[0], places[1]


def _as_float64(matrices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Matrices [N, 4, 4]. Damaged files hold NaNs that numpy would warn of."""
    with np.errstate(invalid="ignore"):
        return matrices.reshape(-1, 4, 4).astype(np.float64)


@dataclass(frozen=True, eq=False)
class SensFrame:
    """A frame to write.

    Attributes:
        color: the encoded image.
        depth: [H, W] in stored units; None: an empty payload.
        camera_to_world: [4, 4]; filled with -inf where the tracker was lost.
        time: microseconds, of both images.
    """

    color: bytes
    depth: NDArray[np.uint16] | None
    camera_to_world: NDArray[np.float64]
    time: int = 0


def write_sens(path: Path, header: SensHeader, frames: Iterable[SensFrame]) -> int:
    """Write a stream, frame by frame as they come, with depth packed by zlib; returns the number of frames.

    Args:
        header: its ``depth_codec`` must be ``zlib_ushort``.

    Raises:
        ValueError: the header asks for another codec, or a depth image is not of the header's size.
        OSError: the file cannot be written.
    """
    if header.depth_codec != "zlib_ushort":
        raise ValueError(f"depth is written as zlib_ushort, not {header.depth_codec}")
    sensor = header.sensor.encode()
    codes = [next(c for c, n in names.items() if n == name) for names, name in (
        (COLOR_CODECS, header.color_codec), (DEPTH_CODECS, header.depth_codec),
    )]  # fmt: skip
    shape = (*codes, *header.color_size, *header.depth_size, header.depth_shift)
    matrices = (header.color_intrinsic, header.color_extrinsic, header.depth_intrinsic, header.depth_extrinsic)
    count = 0
    with path.open("wb") as file:
        file.write(struct.pack("<IQ", VERSION, len(sensor)) + sensor)
        file.write(b"".join(np.asarray(m, dtype="<f4").tobytes() for m in matrices))
        place = file.tell()
        file.write(_SHAPE.pack(*shape, 0))
        for frame in frames:
            depth = b""
            if frame.depth is not None:
                if frame.depth.shape != header.depth_size[::-1]:
                    raise ValueError(f"depth is {frame.depth.shape}, the header says {header.depth_size[::-1]}")
                depth = zlib.compress(np.ascontiguousarray(frame.depth, dtype="<u2").tobytes(), 6)
            pose = np.asarray(frame.camera_to_world, dtype="<f4").tobytes()
            file.write(_HEAD.pack(pose, frame.time, frame.time, len(frame.color), len(depth)))
            file.write(frame.color)
            file.write(depth)
            count += 1
        file.write(struct.pack("<Q", 0))  # the C++ readers need the number of inertial measurements
        file.seek(place)
        file.write(_SHAPE.pack(*shape, count))
    return count
