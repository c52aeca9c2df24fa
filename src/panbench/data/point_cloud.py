"""Point clouds of a scanner: reading PLY, LAS, LAZ and PCD files, and the depth that frames get from one."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from plyfile import PlyParseError

from panbench.data.cache import ByteBudgetCache
from panbench.data.ply import read_ply
from panbench.errors import UserError
from panbench.scene import Camera, Frame, FrameSource, Points, Scene

MAX_POINTS = 4_000_000
"""Points that are kept of a file; of more, so many are picked at random, with a fixed seed."""
FARTHEST = 10_000.0
"""Largest coordinate, metres: beyond, single precision loses millimetres."""
_HEADER = 1 << 16  # bytes that a header may take
_LZF_RATIO = 100  # a byte of LZF stands for 88 at most
_PCD_KINDS = {"F": "f", "I": "i", "U": "u"}
_PCD_TYPES = {"<f4", "<f8", *(f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))}
_Columns = tuple[NDArray[np.float64], NDArray[np.float32] | None, NDArray[np.float32] | None]


@np.errstate(all="ignore")  # of damaged floats, numpy would warn
def read_point_cloud(path: Path) -> Points:
    """Read a .ply, .las, .laz or .pcd file. Points that are not finite, as in holes of organised clouds, are left out.

    Raises:
        UserError: the file is missing, damaged, of another kind, empty, or far from the origin.
    """
    readers: Mapping[str, Callable[[Path], _Columns]] = {
        ".ply": _read_ply, ".las": _read_las, ".laz": _read_las, ".pcd": _read_pcd,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: is no point cloud that can be read; give a .ply, .las, .laz or .pcd file")
    if not path.is_file():
        raise UserError(f"{path}: no such file: correct data.point_cloud")
    positions, colors, normals = reader(path)
    # Beyond 1e30 nothing can be measured, nor squared.
    kept = np.flatnonzero((np.abs(positions) < 1e30).all(axis=1))
    if len(kept) > MAX_POINTS:
        kept = np.sort(np.random.default_rng(0).choice(kept, MAX_POINTS, replace=False))
    if not len(kept):
        raise UserError(f"{path}: has no finite points: export the cloud again")
    positions = positions[kept]
    largest = float(np.abs(positions).max())
    if largest > FARTHEST:
        raise UserError(
            f"{path}: has coordinates up to {largest:.6g} m: subtract one offset from the cloud and from all poses, "
            "so that the scene lies near the origin"
        )
    if normals is not None:
        length = np.linalg.norm(normals[kept].astype(np.float64), axis=1, keepdims=True)
        known = bool(np.isfinite(length).all()) and bool((length > 0).all())
        normals = (normals[kept] / length).astype(np.float32) if known else None
    return Points(
        np.ascontiguousarray(positions, dtype=np.float32),
        None if colors is None else np.nan_to_num(colors[kept]).clip(0, 1),
        normals,
    )


def write_ply(path: Path, points: Points) -> None:
    """Write a binary PLY file with what is known of the points: x y z, red green blue, nx ny nz."""
    parts: list[tuple[tuple[str, str, str], str, NDArray[np.generic]]] = [(("x", "y", "z"), "<f4", points.positions)]
    if points.colors is not None:
        parts.append((("red", "green", "blue"), "u1", np.round(points.colors * 255)))
    if points.normals is not None:
        parts.append((("nx", "ny", "nz"), "<f4", points.normals))
    table = np.zeros(len(points), dtype=[(name, kind) for names, kind, _ in parts for name in names])
    for names, _, values in parts:
        for k, name in enumerate(names):
            table[name] = values[:, k]
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {kinds[kind]} {name}" for names, kind, _ in parts for name in names]
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + table.tobytes())


def find_point_cloud(folder: Path, name: str) -> Path:
    """The file of that name in the scene's folder; where there is none, the path that the name is."""
    inside = folder / name
    return inside if inside.is_file() else Path(name).expanduser()


def with_point_cloud(scene: Scene, path: Path, cache_bytes: int) -> Scene:
    """The scene with a point cloud: Gaussians start there, and frames without depth get its points as sparse depth.

    ``data_hash`` then covers the cloud's content too.

    Args:
        cache_bytes: what the sparse depth of frames may take, bytes.

    Raises:
        UserError: the cloud cannot be read.
    """
    points = read_point_cloud(path)
    with path.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    return replace(
        scene,
        source=CloudDepthSource(scene.source, points, cache_bytes),
        point_cloud=points,
        data_hash=hashlib.sha256(f"{scene.data_hash} {content}".encode()).hexdigest(),
    )


class CloudDepthSource:
    """Frames of another source; those without depth get that of a point cloud (:meth:`panbench.scene.Points.depth`)."""

    def __init__(self, frames: FrameSource, points: Points, cache_bytes: int) -> None:
        """Args: the frames; the cloud, in the world of their poses; bytes that the cache of depth may take."""
        self._frames = frames
        self._points = points
        self._depth: ByteBudgetCache[int, NDArray[np.float32]] = ByteBudgetCache(cache_bytes)

    def __len__(self) -> int:
        return len(self._frames)

    def name(self, index: int) -> str:
        return self._frames.name(index)

    def camera(self, index: int) -> Camera:
        return self._frames.camera(index)

    def load(self, index: int) -> Frame:
        """The frame; raises as the source that it comes from does."""
        frame = self._frames.load(index)
        if frame.depth is not None:
            return frame
        depth = self._depth.get(index, lambda key: self._points.depth(self.camera(key)))
        return replace(frame, depth=torch.from_numpy(depth.copy()))


# ------------------------------------------------------------------------------------------------------------------ PLY


def _read_ply(path: Path) -> _Columns:
    try:
        rows = read_ply(path)["vertex"].data
        positions = np.stack([rows[axis] for axis in "xyz"], axis=1).astype(np.float64)
    except (OSError, PlyParseError, KeyError, ValueError, IndexError, TypeError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{path}: is no whole PLY file of points with x, y, z ({_brief(error)}): export it again"
        ) from error
    named = {name: rows[name] for name in rows.dtype.names or ()}
    return positions, _colors(named), _stacked(named, ("nx", "ny", "nz"))


def _colors(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32] | None:
    """Colours in [0, 1] of columns that are named for them; None where there are none."""
    for names in (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")):
        stacked = _stacked(columns, names)
        if stacked is not None:
            kind = columns[names[0]].dtype
            top = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
            return stacked / np.float32(top)
    return None


def _stacked(columns: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[np.float32] | None:
    if any(name not in columns or columns[name].dtype.kind not in "iuf" for name in names):
        return None
    return np.stack([columns[name] for name in names], axis=1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------------ LAS


def _read_las(path: Path) -> _Columns:
    try:
        import laspy
    except ImportError as error:
        raise UserError(f"{path}: reading LAS files needs laspy: pip install 'panbench[data]'") from error
    try:
        _check_las_counts(path)
        with path.open("rb") as file, laspy.LasReader(file, closefd=False, read_evlrs=False) as stream:
            count, width = stream.header.point_count, stream.header.point_format.size
            if path.suffix.lower() == ".las" and count * width > path.stat().st_size:
                raise ValueError(f"{count} points in a file of {path.stat().st_size} bytes")
            if path.suffix.lower() == ".laz" and not laspy.LazBackend.detect_available():
                raise UserError(f"{path}: reading LAZ files needs lazrs: pip install lazrs, or convert the file to LAS")
            data: Any = stream.read_points(count)
        positions = np.stack([np.asarray(data[axis], dtype=np.float64) for axis in "xyz"], axis=1)
        colors = None
        if {"red", "green", "blue"} <= set(data.point_format.dimension_names):
            colors = np.stack([np.asarray(data[name]) for name in ("red", "green", "blue")], axis=1).astype(np.float32)
            # The format asks for 16 bits; some programs write 8.
            colors /= np.float32(255 if colors.max(initial=0) <= 255 else 65535)
    except (
        laspy.LaspyException,
        OSError,
        EOFError,
        ValueError,
        ArithmeticError,
        LookupError,
        struct.error,
        MemoryError,
    ) as error:
        raise UserError(f"{path}: is no whole LAS file ({_brief(error)}): export it again") from error
    return positions, colors, None


def _check_las_counts(path: Path) -> None:
    """Raises: ValueError: the header promises more than the file has bytes, which laspy would take memory for."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(375)
    version, header, points, records = head[25], *struct.unpack_from("<HII", head, 94)
    start, extended = struct.unpack_from("<QI", head, 235) if version >= 4 else (0, 0)
    if not header <= points <= size or records * 54 > points - header or start > size or extended * 60 > size - start:
        raise ValueError(f"the parts that its header names do not fit into {size} bytes")


# ------------------------------------------------------------------------------------------------------------------ PCD


def _read_pcd(path: Path) -> _Columns:
    try:
        columns = _pcd_columns(path.read_bytes())
    except (OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise UserError(f"{path}: is no whole PCD file ({_brief(error)}): export it again") from error
    if any(axis not in columns for axis in "xyz"):
        raise UserError(f"{path}: has no fields x, y and z, but {', '.join(columns)}: export the points again")
    positions = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float64)
    normals = _stacked(columns, ("normal_x", "normal_y", "normal_z"))
    packed = columns.get("rgb", columns.get("rgba"))
    if packed is None:
        return positions, _colors(columns), normals
    bits = packed.astype(np.float32).view(np.uint32) if packed.dtype.kind == "f" else packed.astype(np.uint32)
    colors = np.stack([(bits >> shift) & 255 for shift in (16, 8, 0)], axis=1).astype(np.float32) / np.float32(255)
    return positions, colors, normals


def _pcd_columns(data: bytes) -> dict[str, NDArray[Any]]:
    """Columns of one value a point, by field.

    Raises:
        ValueError, KeyError: the header or the size of what follows it is wrong.
    """
    header, start = _pcd_header(data)
    names = header["FIELDS"]
    sizes, counts = ([int(v) for v in header.get(key, ["1"] * len(names))] for key in ("SIZE", "COUNT"))
    kinds = header["TYPE"]
    types = [f"<{_PCD_KINDS[kind]}{size}" for kind, size in zip(kinds, sizes, strict=True)]
    if len(names) != len(counts) or min(counts, default=0) < 1 or max(counts) > 4096 or not set(types) <= _PCD_TYPES:
        raise ValueError("FIELDS, SIZE, TYPE and COUNT do not fit")
    number = int((header.get("POINTS") or [str(int(header["WIDTH"][0]) * int(header["HEIGHT"][0]))])[0])
    # Padding is named "_" and may come several times.
    fields = [
        (f"{name} {k}", np.dtype(kind), count)
        for k, (name, kind, count) in enumerate(zip(names, types, counts, strict=True))
    ]
    width = sum(kind.itemsize * count for _, kind, count in fields)
    body = data[start:]
    if not 0 < number <= len(body) * _LZF_RATIO // width:
        raise ValueError(f"{number} points in {len(body)} bytes")
    encoding = header["DATA"][0].lower()
    if encoding == "ascii":
        return _pcd_text(body, names, fields, number)
    if encoding == "binary":
        table = np.frombuffer(body, dtype=[(n, k, (c,)) for n, k, c in fields], count=number)
        return {name: table[field][:, 0] for name, (field, _, _) in _single(names, fields)}
    if encoding != "binary_compressed":
        raise ValueError(f"DATA is {encoding[:20]}")
    if len(body) < 8:
        raise ValueError("the lengths of the packed data are missing")
    packed, size = struct.unpack_from("<II", body)
    if size != number * width or packed > len(body) - 8:
        raise ValueError(f"{size} bytes for {number} points of {width}, packed in {packed} of {len(body) - 8}")
    plain = lzf_decompress(body[8 : 8 + packed], size)
    columns: dict[str, NDArray[Any]] = {}
    place = 0
    wanted = {field for _, (field, _, _) in _single(names, fields)}
    for name, (field, kind, count) in zip(names, fields, strict=True):
        # Field after field here, not point after point.
        if field in wanted:
            columns[name] = np.frombuffer(plain, dtype=kind, count=number, offset=place)
        place += number * kind.itemsize * count
    return columns


def _single(
    names: list[str], fields: list[tuple[str, np.dtype[Any], int]]
) -> list[tuple[str, tuple[str, np.dtype[Any], int]]]:
    return [(name, field) for name, field in zip(names, fields, strict=True) if field[2] == 1 and name != "_"]


def _pcd_header(data: bytes) -> tuple[dict[str, list[str]], int]:
    """Words of the header's lines by their first one, and where the data starts."""
    header: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in header:
        end = data.find(b"\n", start, _HEADER)
        if end < 0:
            raise ValueError("its header has no DATA line")
        words = data[start:end].decode("ascii").split()
        start = end + 1
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
    return header, start


def _pcd_text(
    body: bytes, names: list[str], fields: list[tuple[str, np.dtype[Any], int]], number: int
) -> dict[str, NDArray[Any]]:
    width = sum(count for _, _, count in fields)
    table = np.loadtxt(io.BytesIO(body), dtype=np.float64, max_rows=number, ndmin=2, encoding="ascii")
    if table.shape != (number, width):
        raise ValueError(f"{table.shape[0]} rows of {table.shape[1]} numbers, not {number} of {width}")
    places = np.cumsum([0, *(count for _, _, count in fields)])
    return {name: table[:, places[names.index(name)]].astype(kind) for name, (_, kind, _) in _single(names, fields)}


def lzf_decompress(data: bytes, size: int) -> bytes:
    """Unpack LZF (Marc Lehmann's liblzf), as PCD files hold it.

    A control byte c < 32 is followed by c + 1 bytes that stand for themselves. Else l = c >> 5, if that is 7 increased
    by the next byte, and the next byte b: l + 2 bytes are repeated from (c & 31) · 256 + b + 1 back.

    Args:
        size: bytes that must come out.

    Raises:
        ValueError: something else comes out, or the data is cut off.
    """
    if size > _LZF_RATIO * len(data):
        raise ValueError(f"{len(data)} packed bytes cannot hold {size}")
    out = bytearray()
    at = 0
    try:
        while at < len(data):
            control = data[at]
            at += 1
            if control < 32:
                out += data[at : at + control + 1]
                at += control + 1
            else:
                length = control >> 5
                if length == 7:
                    length += data[at]
                    at += 1
                back = ((control & 31) << 8) + data[at] + 1
                at += 1
                length += 2
                if back > len(out):
                    raise ValueError("a repeat from before the start")
                repeated = out[len(out) - back : len(out) - back + length]
                # A repeat may reach into what it makes: then its start comes again and again.
                out += repeated if back >= length else (repeated * (length // back + 1))[:length]
            if len(out) > size:
                break
    except IndexError as error:
        raise ValueError("the packed data is cut off") from error
    if len(out) != size or at != len(data):
        raise ValueError(f"{len(out)} bytes came out instead of {size}")
    return bytes(out)


def _brief(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    # Some messages quote the file.
    return (lines[0] if lines else type(error).__name__)[:120]
