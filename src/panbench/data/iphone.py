"""The iPhone's files of a ScanNet++ scene: video, depth, poses. Nothing is unpacked onto the disk.

::

    <scene>/iphone/rgb.mkv                    the video; its n-th picture, in the order of display, is frame n
                   rgb_mask.mkv               the same of what is hidden, optional: bright where nothing is
                   depth.bin                  256x192 of every frame
                   pose_intrinsic_imu.json    {"frame_000012": {"aligned_pose": 4x4 camera to world, OpenCV axes, world
                                              of the mesh; "intrinsic": 3x3 at the video's size; ...}, ...}

``depth.bin`` is one of three: ``u32 length, block`` of each frame, little endian, with blocks of LZ4 (u16 millimetres)
or of raw deflate (f32 metres); or a single stream of raw deflate, f32 metres of all frames. 0 = none.
"""

from __future__ import annotations

import io
import os
import re
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panbench.data.images import MAX_PIXELS, MAX_SIDE
from panbench.data.json_file import read_json
from panbench.data.scannet_files import Pinhole, rigid
from panbench.errors import UserError

DEPTH_SIZE = (256, 192)
_VALUES = DEPTH_SIZE[0] * DEPTH_SIZE[1]
_MILLIMETRES = 1000.0
_MOST_FRAMES = 1 << 20  # nearly five hours at 60 a second
_LONGEST_BLOCK = 4 * _VALUES + (1 << 16)  # what a codec could not make smaller, and its headers
_CHUNK = 1 << 14
_EVERY = 64  # frames between two places that a stream of deflate can be entered at: about 60 kB each
_KEY = re.compile(r"frame_(\d{1,9})")
_AGAIN = "the file is cut off or damaged, download it again"


def frame_stem(number: int) -> str:
    """As the release names a frame: ``frame_000012``."""
    return f"frame_{number:06d}"


# ------------------------------------------------------------------------------------------------------------- poses


@dataclass(frozen=True, eq=False)
class IphonePose:
    """Camera to world [4, 4] with OpenCV axes, in the mesh's world, and intrinsics at the video's size."""

    camera_to_world: NDArray[np.float64]
    pinhole: Pinhole


def read_poses(path: Path, size: tuple[int, int]) -> dict[int, IphonePose | None]:
    """Pose and intrinsics by frame number, ascending; None where a pose is missing or not finite (tracking was lost).

    Args:
        path: ``pose_intrinsic_imu.json``.
        size: (width, height) of the video. The principal point counts from the image's outer corner.

    Raises:
        UserError: the file is missing or damaged, a pose is no rigid transform, or intrinsics do not fit the size.
    """
    remedy = "download the scene's iphone folder again"
    data = read_json(path, remedy)
    if not isinstance(data, Mapping) or not data:
        raise UserError(f"{path}: is no object with the frames by name: {remedy}")
    found: dict[int, IphonePose | None] = {}
    for key, entry in data.items():
        match = _KEY.fullmatch(key)
        if match is None or int(match[1]) in found:
            raise UserError(f"{path}: {key!a} is no name of a frame like frame_000012, or there twice: {remedy}")
        try:
            found[int(match[1])] = _pose(entry, size)
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise UserError(f"{path}: aligned_pose or intrinsic of {key} cannot be used ({error}): {remedy}") from error
    if all(pose is None for pose in found.values()):
        raise UserError(
            f"{path}: no frame has a finite aligned_pose; `pose` is that of the phone's own world, which is not the "
            f"mesh's: {remedy}"
        )
    return dict(sorted(found.items()))


def _pose(entry: Any, size: tuple[int, int]) -> IphonePose | None:
    """Raises: ValueError, TypeError, KeyError: the entry is not what it should be."""
    if not isinstance(entry, Mapping):
        raise TypeError("not an object")
    if entry.get("aligned_pose") is None:
        return None
    matrix = np.array(entry["aligned_pose"], dtype=np.float64).reshape(4, 4)
    if not np.isfinite(matrix).all():
        return None
    pose = rigid(matrix) if np.abs(matrix[3] - (0, 0, 0, 1)).max() <= 1e-3 else None
    if pose is None:
        raise ValueError("the pose is no rotation and translation")
    k = np.array(entry["intrinsic"], dtype=np.float64).reshape(3, 3)
    fx, fy, cx, cy = (float(v) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    centred = 0.25 < cx / size[0] < 0.75 and 0.25 < cy / size[1] < 0.75
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0 and centred):
        raise ValueError(f"intrinsics {fx:g} {fy:g} {cx:g} {cy:g} do not fit pictures of {size[0]}x{size[1]}")
    return IphonePose(pose, Pinhole(*size, fx, fy, cx, cy))


# ------------------------------------------------------------------------------------------------------------- depth


class _Packed(Protocol):
    """The frames of a depth file."""

    frames: int

    def take(self, file: BinaryIO, frame: int) -> NDArray[np.uint16]:
        """Depth of a frame [H · W], mm.

        Raises:
            ValueError: it is damaged.
        """
        ...


class DepthFile:
    """The index of a ``depth.bin``. Any thread may read from it.

    Attributes:
        path: the file.
        packing: "lz4", "deflate" or "one stream".
    """

    def __init__(self, path: Path, wanted: int) -> None:
        """Args: the file; how many frames, from the first, are of use: a stream is looked through no farther.

        Raises:
            UserError: the file is missing, cut off, or packed in none of the three ways; or lz4 is not installed.
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            with path.open("rb") as file:
                self.packing, self._packed = _open_packed(file, path, min(wanted, _MOST_FRAMES))
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file: download the scene's iphone folder again") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}): download it again") from error

    def __len__(self) -> int:
        return self._packed.frames

    def frame(self, number: int) -> IphoneDepth:
        """The depth image of a frame."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return IphoneDepth(self, number)

    def read(self, number: int) -> NDArray[np.uint16]:
        """z-depth [192, 256] of a frame, millimetres, 0 = none.

        Raises:
            UserError: it is damaged.
        """
        try:
            with self._lock, self.path.open("rb") as file:
                flat = self._packed.take(file, number)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: depth of frame {number} cannot be read ({error}): {_AGAIN}") from error
        return flat.reshape(DEPTH_SIZE[1], DEPTH_SIZE[0])


@dataclass(frozen=True, eq=False)
class IphoneDepth:
    """The depth image of a frame (a :class:`panbench.data.depth_image.DepthImage`)."""

    source: DepthFile
    number: int

    @property
    def name(self) -> str:
        return frame_stem(self.number)

    @property
    def stem(self) -> str:
        return frame_stem(self.number)

    @property
    def size(self) -> tuple[int, int]:
        return DEPTH_SIZE

    def __str__(self) -> str:
        return f"{self.source.path} frame {self.number}"

    def read_bytes(self) -> bytes:
        """Its values, row by row, 16 bit, little endian."""
        return self.read_depth().astype("<u2").tobytes()

    def read_depth(self) -> NDArray[np.uint16]:
        """z-depth [192, 256], millimetres, 0 = none.

        Raises:
            UserError: it is damaged.
        """
        return self.source.read(self.number)


def _open_packed(file: BinaryIO, path: Path, wanted: int) -> tuple[str, _Packed]:
    """The first block tells how the file is packed."""
    length = int.from_bytes(file.read(4), "little")
    block = file.read(length) if 0 < length <= _LONGEST_BLOCK else b""
    for name, unpack in (("lz4", _unpack_lz4), ("deflate", _unpack_deflate)):
        try:
            if length and len(block) == length:
                unpack(block)
                return name, _Blocks(file, path, unpack)
        except ValueError:
            continue
    file.seek(0)
    return "one stream", _Stream(file, path, wanted)


def _unpack_lz4(block: bytes) -> NDArray[np.uint16]:
    try:
        import lz4.block as lz4_block
    except ImportError as error:
        raise UserError("the iPhone's depth.bin needs lz4: pip install 'panbench[data]'") from error
    try:
        # Never more than this is unpacked, whatever the block would swell to.
        values = lz4_block.decompress(block, uncompressed_size=2 * _VALUES)
    except lz4_block.LZ4BlockError as error:
        raise ValueError(str(error)) from error
    if len(values) != 2 * _VALUES:
        raise ValueError(f"{len(values)} bytes instead of {2 * _VALUES}")
    return np.frombuffer(values, dtype="<u2").astype(np.uint16)


def _unpack_deflate(block: bytes) -> NDArray[np.uint16]:
    try:
        # One byte more than wanted tells a block that holds too much.
        values = zlib.decompressobj(-zlib.MAX_WBITS).decompress(block, 4 * _VALUES + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return _as_millimetres(values)


def _as_millimetres(values: bytes) -> NDArray[np.uint16]:
    if len(values) != 4 * _VALUES:
        raise ValueError(f"not {4 * _VALUES} bytes of {DEPTH_SIZE[0]}x{DEPTH_SIZE[1]} values")
    metres = np.frombuffer(values, dtype="<f4")
    known = np.where(np.isfinite(metres), metres, np.float32(0)).astype(np.float64)
    return np.round(np.clip(known * _MILLIMETRES, 0, 65535)).astype(np.uint16)


class _Blocks:
    """A file of one block for each frame."""

    def __init__(self, file: BinaryIO, path: Path, unpack: Any) -> None:
        """Raises: UserError: the lengths do not lead to the file's end."""
        end = os.fstat(file.fileno()).st_size
        places: list[tuple[int, int]] = []
        at = 0
        while at < end:
            head = os.pread(file.fileno(), 4, at)
            length = int.from_bytes(head, "little")
            if len(head) < 4 or at + 4 + length > end:
                raise UserError(f"{path}: ends within frame {len(places)}: it is cut off, download it again")
            if not 0 < length <= _LONGEST_BLOCK or len(places) >= _MOST_FRAMES:
                raise UserError(f"{path}: claims {length} bytes for frame {len(places)}: {_AGAIN}")
            places.append((at + 4, length))
            at += 4 + length
        self.frames = len(places)
        self._places = np.array(places, dtype=np.int64)
        self._unpack = unpack

    def take(self, file: BinaryIO, frame: int) -> NDArray[np.uint16]:
        offset, length = self._places[frame].tolist()
        block = os.pread(file.fileno(), length, offset)
        if len(block) != length:
            raise ValueError("it has become shorter")
        return self._unpack(block)


class _Stream:
    """A file that is one stream of deflate. It is read in order; places to enter it again are kept on the way."""

    def __init__(self, file: BinaryIO, path: Path, wanted: int) -> None:
        """Looks through the stream up to the frames wanted. Raises: UserError: it is damaged or cut off."""
        self._state = zlib.decompressobj(-zlib.MAX_WBITS)
        self._offset = 0
        self._next = 0
        self._entries: list[tuple[Any, int]] = []
        self.frames = 0
        while self.frames < wanted:
            if self.frames % _EVERY == 0:
                self._entries.append((self._state.copy(), self._offset))
            try:
                values = self._inflate(file)
            except zlib.error as error:
                if self.frames == 0:
                    raise UserError(
                        f"{path}: holds neither blocks of LZ4 or deflate nor a stream of deflate ({error}): {_AGAIN}"
                    ) from error
                raise UserError(f"{path}: frame {self.frames} cannot be unpacked ({error}): {_AGAIN}") from error
            if len(values) < 4 * _VALUES:
                if values or not self._state.eof or self.frames == 0:
                    raise UserError(f"{path}: ends within frame {self.frames}: it is cut off, download it again")
                break
            self.frames += 1
            self._next += 1

    def take(self, file: BinaryIO, frame: int) -> NDArray[np.uint16]:
        entry = frame // _EVERY
        if not entry * _EVERY <= self._next <= frame:
            state, self._offset = self._entries[entry]
            self._state, self._next = state.copy(), entry * _EVERY
        try:
            while True:
                values = self._inflate(file)
                self._next += 1
                if self._next > frame:
                    return _as_millimetres(values)
        except (zlib.error, ValueError) as error:
            self._next = 1 << 62  # whatever is wanted next, it is entered anew
            raise ValueError(str(error)) from error

    def _inflate(self, file: BinaryIO) -> bytes:
        """The next frame's values; fewer at the end."""
        out = bytearray()
        while len(out) < 4 * _VALUES and not self._state.eof:
            packed = self._state.unconsumed_tail
            if not packed:
                packed = os.pread(file.fileno(), _CHUNK, self._offset)
                self._offset += len(packed)
            more = self._state.decompress(packed, 4 * _VALUES - len(out))
            if not packed and not more:
                break
            out += more
        return bytes(out)


# ------------------------------------------------------------------------------------------------------------- video


class VideoFile:
    """The index of a video: when each picture is shown, and where decoding can begin. Any thread may read from it.

    Opening it goes through the packets and decodes nothing. Pictures asked for in order are decoded in one go; another
    one is decoded from the key picture before it.

    Attributes:
        path: the file.
        size: (width, height).
    """

    def __init__(self, path: Path) -> None:
        """Raises: UserError: the file is missing, no video, damaged, of an absurd size; or PyAV is not installed."""
        try:
            import av
            from av.error import FFmpegError
        except ImportError as error:
            raise UserError("the iPhone's video needs PyAV: pip install 'panbench[data]'") from error
        self.path = path
        self._av = av
        self._broken = (FFmpegError, ValueError, OverflowError)
        self._lock = threading.Lock()
        self._container: Any = None
        self._shown: Iterator[Any] = iter(())
        self._next = -1
        if not path.is_file():
            raise UserError(f"{path}: no such file: download the scene's iphone folder again")
        times: list[tuple[int, bool]] = []
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                if stream.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison]
                    raise ValueError("its codec is not known")
                self.size = (int(stream.width), int(stream.height))
                if not 0 < min(self.size) <= max(self.size) <= MAX_SIDE or self.size[0] * self.size[1] > MAX_PIXELS:
                    raise UserError(f"{path}: claims pictures of {self.size[0]}x{self.size[1]}: {_AGAIN}")
                for packet in container.demux(stream):
                    if packet.size and packet.pts is not None:
                        times.append((int(packet.pts), bool(packet.is_keyframe)))
                    if len(times) > _MOST_FRAMES:
                        raise UserError(f"{path}: has more than {_MOST_FRAMES} pictures: {_AGAIN}")
        except (*self._broken, IndexError) as error:
            raise UserError(f"{path}: is no video that can be read ({error}): {_AGAIN}") from error
        times.sort()
        self._times = [time for time, _ in times]
        self._keys = [place for place, (_, key) in enumerate(times) if key]
        if len(set(self._times)) != len(times) or not self._keys or self._keys[0] != 0:
            raise UserError(f"{path}: does not begin with a key picture, or shows two at a time: {_AGAIN}")

    def __len__(self) -> int:
        return len(self._times)

    def frame(self, number: int) -> VideoFrame:
        """The picture of a frame; it is not decoded yet."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return VideoFrame(self, number)

    def read(self, number: int) -> NDArray[np.uint8]:
        """The picture of a frame [H, W, 3]. Colours are those that the video's tags say, BT.601 without any.

        Raises:
            UserError: it cannot be decoded.
        """
        with self._lock:
            try:
                picture = self._find(number)
                if (picture.width, picture.height) != self.size:
                    raise ValueError(f"it is {picture.width}x{picture.height}, not {self.size[0]}x{self.size[1]}")
                return np.ascontiguousarray(picture.to_ndarray(format="rgb24"))
            except self._broken as error:
                self.close()
                raise UserError(f"{self.path}: picture {number} cannot be decoded ({error}): {_AGAIN}") from error

    def close(self) -> None:
        """Let go of the decoder; the next picture opens it again."""
        if self._container is not None:
            self._container.close()
        self._container, self._shown, self._next = None, iter(()), -1

    def _find(self, number: int) -> Any:
        if self._container is None:
            self._container = self._av.open(str(self.path))
            stream = self._container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        key = self._keys[bisect_right(self._keys, number) - 1]
        # Going on is cheaper than going back to a key picture that lies behind.
        if not key <= self._next <= number:
            stream = self._container.streams.video[0]
            self._container.seek(self._times[key], stream=stream, backward=True)
            self._shown = self._container.decode(stream)
        wanted = self._times[number]
        for picture in self._shown:
            # Pictures that were only needed to decode this one come first.
            if picture.pts is not None and picture.pts >= wanted:
                if picture.pts > wanted or picture.is_corrupt:
                    break
                self._next = number + 1
                return picture
        raise ValueError("it is not there, or what it is coded from is not")


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """A picture of a video (a :class:`panbench.data.images.ColorImage`)."""

    source: VideoFile
    number: int

    @property
    def name(self) -> str:
        return f"{frame_stem(self.number)}.png"

    @property
    def stem(self) -> str:
        return frame_stem(self.number)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.source.size

    def __str__(self) -> str:
        return f"{self.source.path} frame {self.number}"

    def read_color(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3].

        Raises:
            UserError: it cannot be decoded.
        """
        return self.source.read(self.number)

    def read_bytes(self) -> bytes:
        """As a PNG file."""
        stream = io.BytesIO()
        Image.fromarray(self.read_color()).save(stream, "PNG")
        return stream.getvalue()
