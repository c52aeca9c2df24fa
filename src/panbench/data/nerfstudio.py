"""Reads captures in nerfstudio's form: ``transforms.json`` (also instant-ngp's and those of phone apps).

::

    transforms.json    camera_model, fl_x fl_y cx cy w h k1 ... p2 (for all frames, or in a frame for itself),
                       frames: [{file_path, transform_matrix, depth_file_path, mask_path}, ...]
                       train_filenames, val_filenames, test_filenames: the split
                       applied_transform, applied_scale: what was done to the original world; it is undone
                       ply_file_path: a point cloud in the world of the matrices
                       depth_unit_scale_factor: metres of 1 in depth images, 0.001 if left out

Matrices are camera to world with OpenGL's camera axes: x right, y up, z backward. Pixel centres are at + 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panbench.data.capture import Capture, CaptureFrame, beside, read_source_json
from panbench.data.images import image_size, read_integers
from panbench.data.point_cloud import read_point_cloud
from panbench.data.scannet_reader import COLOR_SUFFIXES, nearest_rotation
from panbench.data.undistort import Lens
from panbench.errors import UserError
from panbench.scene import Points

_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
_DISTORTED = ("OPENCV", "SIMPLE_RADIAL", "RADIAL")  # all are cases of OPENCV with coefficients at 0
_REMEDY = "export it again"


def is_nerfstudio(source: Path) -> bool:
    """Whether ``transforms.json`` lies there."""
    return source.suffix == ".json" or (source / "transforms.json").is_file()


def read_nerfstudio(source: Path) -> Capture:
    """Read a folder with ``transforms.json``, or that file under any name.

    Raises:
        UserError: something is missing, damaged or not supported; names the file and the remedy.
    """
    index = source if source.suffix == ".json" else source / "transforms.json"
    data = read_source_json(index, "transforms.json")
    if not isinstance(data, Mapping) or not isinstance(data.get("frames"), list) or not data["frames"]:
        raise UserError(f"{index}: has no list of frames: {_REMEDY}")
    world = _World.of(data, index)
    frames = [_frame(row, data, index, world) for row in data["frames"]]
    if len({f.name for f in frames}) < len(frames):
        raise UserError(f"{index}: names an image twice: {_REMEDY}")
    unit = _number(data, "depth_unit_scale_factor", index, 0.001)
    points = None
    if data.get("ply_file_path"):
        points = world.undone(read_point_cloud(_inside(data["ply_file_path"], index)))
    return beside(
        Capture(
            kind="nerfstudio", folder=index.parent, index=index, frames=frames, depth_unit=unit,
            split=_split(data, frames, index), points=points,
        )
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _World:
    """What was done to the original world: x → scale · (rotation x + shift)."""

    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    scale: float

    @classmethod
    def of(cls, data: Mapping[str, Any], index: Path) -> _World:
        scale = _number(data, "applied_scale", index, 1.0)
        matrix = np.eye(4)[:3]
        if data.get("applied_transform") is not None:
            matrix = _matrix(data["applied_transform"], f"{index}: applied_transform")[:3]
        rotation = nearest_rotation(matrix[:, :3]) if np.isfinite(matrix).all() else None
        if rotation is None or scale <= 0:
            raise UserError(f"{index}: applied_transform is no rotation, or applied_scale not positive: {_REMEDY}")
        return cls(rotation, matrix[:, 3], scale)

    def pose(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Camera to the original world, OpenCV axes, of a matrix of the file; as it is where that is not finite."""
        if not np.isfinite(matrix).all():
            return matrix
        out = matrix.copy()
        out[:3, 3] = self.rotation.T @ (matrix[:3, 3] / self.scale - self.shift)
        out[:3, :3] = self.rotation.T @ matrix[:3, :3]
        out[:3, 1:3] *= -1
        return out

    def undone(self, points: Points) -> Points:
        positions = (points.positions.astype(np.float64) / self.scale - self.shift) @ self.rotation
        normals = None if points.normals is None else (points.normals @ self.rotation).astype(np.float32)
        return replace(points, positions=positions.astype(np.float32), normals=normals)


def _frame(row: object, data: Mapping[str, Any], index: Path, world: _World) -> CaptureFrame:
    if not isinstance(row, Mapping) or not isinstance(row.get("file_path"), str):
        raise UserError(f"{index}: has a frame without file_path: {_REMEDY}")
    name: str = row["file_path"]
    color = _image(name, index)
    depth = row.get("depth_file_path")
    hidden: Callable[[], NDArray[np.bool_]] | None = None
    if row.get("mask_path"):
        mask = _inside(row["mask_path"], index)

        def read_hidden() -> NDArray[np.bool_]:
            return read_integers(mask) == 0

        hidden = read_hidden
    return CaptureFrame(
        name=PurePosixPath(name).as_posix(),
        color=color,
        lens=_lens({**data, **row}, index, color),
        camera_to_world=world.pose(_matrix(row.get("transform_matrix"), f"{index}: transform_matrix of {name}")),
        depth=None if not depth else _inside(depth, index),
        hidden=hidden,
    )


def _lens(values: Mapping[str, Any], index: Path, image: Path) -> Lens:
    model = values.get("camera_model") or "OPENCV"
    if model not in (*_PINHOLES, *_DISTORTED, "OPENCV_FISHEYE"):
        raise UserError(
            f"{index}: camera_model {str(model)[:40]} is not supported, only OPENCV, OPENCV_FISHEYE and PINHOLE: "
            "undistort the images first (colmap image_undistorter)"
        )
    width, height = (round(_number(values, key, index, 0.0)) for key in ("w", "h"))
    if width < 1 or height < 1:
        width, height = image_size(image)
    if "fl_x" in values:
        fx = _number(values, "fl_x", index)
    elif "camera_angle_x" in values:
        angle = _number(values, "camera_angle_x", index)
        if not 0 < angle < math.pi:
            raise UserError(f"{index}: camera_angle_x {angle:g} is no angle of view in radians: {_REMEDY}")
        fx = 0.5 * width / math.tan(0.5 * angle)
    else:
        raise UserError(f"{index}: has no fl_x, neither for all frames nor for {image.name}: {_REMEDY}")
    fy = _number(values, "fl_y", index, fx)
    center = _number(values, "cx", index, width / 2), _number(values, "cy", index, height / 2)
    k1, k2, k3, k4, p1, p2 = (_number(values, key, index, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if model == "OPENCV_FISHEYE":
        return Lens("fisheye", width, height, fx, fy, *center, (k1, k2, k3, k4))
    if k4:
        raise UserError(f"{index}: k4 is {k4:g} with camera_model {model}: {_REMEDY} as OPENCV, which has k1, k2, k3")
    if model in _PINHOLES or not any((k1, k2, k3, p1, p2)):
        return Lens("pinhole", width, height, fx, fy, *center, ())
    return Lens("opencv", width, height, fx, fy, *center, (k1, k2, p1, p2, k3))


def _split(data: Mapping[str, Any], frames: list[CaptureFrame], index: Path) -> dict[str, list[str]] | None:
    if "train_filenames" not in data:
        return None
    known = {f.name for f in frames}
    parts: dict[str, list[str]] = {}
    # Of three parts we know two: what is validated on is tested on where there is nothing else.
    for part, key in (("train", "train_filenames"), ("test", "test_filenames")):
        listed = data.get(key) or (data.get("val_filenames") if part == "test" else None) or []
        if not isinstance(listed, list):
            raise UserError(f"{index}: {key} is no list: {_REMEDY}")
        parts[part] = [PurePosixPath(str(name)).as_posix() for name in listed]
        strange = [name for name in parts[part] if name not in known]
        if strange:
            raise UserError(f"{index}: {key} names {strange[0][:80]}, which is no frame: {_REMEDY}")
    both = sorted(set(parts["train"]) & set(parts["test"]))
    if both:
        raise UserError(f"{index}: {both[0][:80]} is both train and test ({len(both)} such frames): correct the lists")
    return parts


def _image(name: str, index: Path) -> Path:
    path = _inside(name, index)
    if path.suffix:
        return path
    # Blender's files leave the suffix out.
    return next((p for s in COLOR_SUFFIXES if (p := path.with_name(path.name + s)).is_file()), path)


def _inside(name: object, index: Path) -> Path:
    """The file of that name in the folder of the index, or beside it: nothing else is the capture's."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 1000:
        raise UserError(f"{index}: {str(name)[:40]!r} is no path of a file: {_REMEDY}")
    path = index.parent / name
    if not path.resolve().is_relative_to(index.parent.resolve()):
        raise UserError(f"{index}: {name[:80]} lies outside of its folder: put the files below {index.parent}")
    return path


def _matrix(values: object, place: str) -> NDArray[np.float64]:
    """3x4 or 4x4 numbers as [4, 4]; they need not be finite."""
    try:
        matrix = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place} is no matrix of numbers: {_REMEDY}") from error
    if matrix.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{place} has shape {list(matrix.shape)}, not 4x4: {_REMEDY}")
    return np.concatenate([matrix[:3], np.eye(4)[3:]])


def _number(values: Mapping[str, Any], key: str, index: Path, default: float | None = None) -> float:
    value = values.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{index}: {key} is {str(value)[:40]}, not a number: {_REMEDY}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > 1e9:
        raise UserError(f"{index}: {key} is {str(value)[:40]}, which is out of range: {_REMEDY}")
    return number
