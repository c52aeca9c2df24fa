"""Reads a plain folder of RGB-D images with poses.

::

    color/ or rgb/ or images/       colour images
    depth/                          16-bit PNG or .npy of z-depth: named as the colour images, or by time; optional
    pose/ or poses/                 a 4x4 matrix per image, named as it
    trajectory.txt                  instead: a line per image, "time tx ty tz qx qy qz qw" (TUM) or the 16 numbers of a
                                    matrix; also named groundtruth.txt, poses.txt or traj.txt
    intrinsics.txt                  3x3 or 4x4; also intrinsic/intrinsic_color.txt. Its pixel centres are whole numbers

Where images are named by their time, lines and depth are those of the nearest time, at most 0.02 s away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from panbench.data.capture import Capture, CaptureFrame, beside, natural
from panbench.data.images import image_size
from panbench.data.undistort import Lens
from panbench.errors import UserError

COLORS = ("color", "colour", "rgb", "images")
_POSES = ("pose", "poses")
_TRAJECTORIES = ("trajectory.txt", "groundtruth.txt", "poses.txt", "traj.txt")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_APART = 0.02  # seconds
Convention = Literal["opencv", "opengl"]


def is_rgbd(source: Path) -> bool:
    """Whether colour images and poses lie there."""
    poses = any((source / p).is_dir() for p in _POSES) or any((source / t).is_file() for t in _TRAJECTORIES)
    return poses and any((source / c).is_dir() for c in COLORS)


def read_rgbd(
    source: Path,
    *,
    images: Path | None = None,
    depth: Path | None = None,
    depth_unit: float = 0.001,
    convention: Convention = "opencv",
    world_to_camera: bool = False,
) -> Capture:
    """Read the folder.

    Args:
        images, depth: folders elsewhere than in the source.
        depth_unit: metres of 1 in depth images.
        convention: camera axes of the poses: "opencv" (x right, y down, z forward) or "opengl" (y up, z backward).
        world_to_camera: the poses map the world to the camera, not back.

    Raises:
        UserError: something is missing, damaged or contradictory; names the file and the remedy.
    """
    folder = images or next((p for c in COLORS if (p := source / c).is_dir()), source / COLORS[0])
    color = _listed(folder, _SUFFIXES)
    if not color:
        raise UserError(f"{folder}: holds no images: expected color/, rgb/ or images/ in {source}, or give --images")
    poses, index = _poses(source, color)
    measured = _depth(depth or source / "depth", color)
    lens = _lens(source, color[0])
    frames = [
        CaptureFrame(path.name, path, lens, _camera_to_world(pose, convention, world_to_camera), depth=file)
        for path, pose, file in zip(color, poses, measured, strict=True)
    ]
    return beside(Capture("rgbd", source, index, frames, depth_unit=depth_unit))


def read_trajectory(path: Path) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Times [F], or None, and matrices [F, 4, 4] of a text file; lines that begin with # are comments.

    Raises:
        UserError: a line has neither the 8 numbers of TUM's form nor the 16 of a matrix.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no text file ({error}): export the poses again") from error
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError as error:
            raise UserError(f"{path}:{number}: {line[:60]!r} holds no numbers: export the poses again") from error
        if len(rows[-1]) not in (8, 16) or len(rows[-1]) != len(rows[0]):
            raise UserError(
                f'{path}:{number}: has {len(rows[-1])} numbers, not 8 ("time tx ty tz qx qy qz qw") or 16 (a matrix) '
                "as all lines: export the poses again"
            )
    if not rows:
        raise UserError(f"{path}: has no poses: export them again")
    table = np.array(rows)
    if table.shape[1] == 16:
        return None, table.reshape(-1, 4, 4)
    if not np.isfinite(table[:, 0]).all():
        raise UserError(f"{path}: has a time that is not finite: export the poses again")
    matrices = np.full((len(table), 4, 4), np.nan)
    # A quaternion of zeros is how some trackers say that they are lost.
    known = np.isfinite(table).all(axis=1) & (np.abs(table[:, 4:]).max(axis=1) > 1e-9) & (np.abs(table) < 1e150).all(1)
    matrices[known] = np.eye(4)
    matrices[known, :3, 3] = table[known, 1:4]
    if known.any():
        matrices[known, :3, :3] = Rotation.from_quat(table[known, 4:]).as_matrix()
    return table[:, 0], matrices


def _listed(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return sorted(found, key=lambda p: natural(p.name))


def _times(paths: Sequence[Path]) -> NDArray[np.float64] | None:
    """The times that files are named by; None where a name is no number."""
    try:
        times = np.array([float(p.stem) for p in paths])
    except ValueError:
        return None
    return times if np.isfinite(times).all() else None


def _nearest(times: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each time the place of the nearest other one; −1 where it is too far away."""
    apart = np.abs(times[:, None] - others[None]) if len(times) * len(others) < 1 << 24 else None
    if apart is not None:
        place = apart.argmin(axis=1)
        return np.where(apart[np.arange(len(times)), place] <= _APART, place, -1)
    order = np.argsort(others, kind="stable")
    right = np.searchsorted(others[order], times).clip(1, len(others) - 1)
    left = right - 1
    closer = np.where(np.abs(others[order[left]] - times) <= np.abs(others[order[right]] - times), left, right)
    return np.where(np.abs(others[order[closer]] - times) <= _APART, order[closer], -1)


def _poses(source: Path, color: Sequence[Path]) -> tuple[list[NDArray[np.float64]], Path | None]:
    """A matrix for each image, not finite where there is none, and the file they are from if it is one."""
    folder = next((p for name in _POSES if (p := source / name).is_dir()), None)
    if folder is not None:
        by_stem = {p.stem: p for p in _listed(folder, (".txt",))}
        by_number = {int(stem): p for stem, p in by_stem.items() if stem.isascii() and stem.isdecimal()}
        out: list[NDArray[np.float64]] = []
        for path in color:
            file = by_stem.get(path.stem)
            if file is None and path.stem.isascii() and path.stem.isdecimal():
                file = by_number.get(int(path.stem))
            if file is None:
                raise UserError(f"{folder / path.stem}.txt: no such file: give a pose of every image")
            out.append(_matrix(file))
        return out, None
    path = next((p for name in _TRAJECTORIES if (p := source / name).is_file()), None)
    if path is None:
        raise UserError(f"{source}: has no folder pose/ and no {_TRAJECTORIES[0]}: give the poses of the images")
    times, matrices = read_trajectory(path)
    names = _times(color)
    if times is None or names is None:
        if len(matrices) != len(color):
            raise UserError(
                f"{path}: has {len(matrices)} poses for {len(color)} images, which are not named by their time: give "
                "one line per image"
            )
        return list(matrices), path
    place = _nearest(names, times)
    if (place < 0).all() and len(matrices) == len(color):
        return list(matrices), path  # numbered images: line by line
    if (place < 0).all():
        raise UserError(f"{path}: no pose is within {_APART} s of an image: name the images by the times in it")
    return [matrices[k] if k >= 0 else np.full((4, 4), np.nan) for k in place.tolist()], path


def _depth(folder: Path, color: Sequence[Path]) -> list[Path | None]:
    files = _listed(folder, (".png", ".npy"))
    if not files:
        return [None] * len(color)
    by_stem: Mapping[str, Path] = {p.stem: p for p in files}
    found = [by_stem.get(p.stem) for p in color]
    if all(f is None for f in found):
        times, others = _times(color), _times(files)
        if times is not None and others is not None:
            found = [files[k] if k >= 0 else None for k in _nearest(times, others).tolist()]
    missing = [p for p, f in zip(color, found, strict=True) if f is None]
    if missing:
        raise UserError(
            f"{folder}: has no depth of {missing[0].name} ({len(missing)} such images): name depth as the colour "
            "images, or remove the images without"
        )
    return found


def _lens(source: Path, image: Path) -> Lens:
    places = (source / "intrinsics.txt", source / "intrinsic" / "intrinsic_color.txt")
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise UserError(f"{places[0]}: no such file: give the 3x3 matrix of the colour camera there")
    matrix = _matrix(path)
    width, height = image_size(image)
    # Such matrices count pixels from the centre of the first one.
    fx, fy, cx, cy = (float(v) for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5))
    if (
        not all(math.isfinite(v) for v in (fx, fy, cx, cy))
        or min(fx, fy) <= 0
        or not (0 < cx < width and 0 < cy < height)
    ):
        raise UserError(
            f"{path}: focal length ({fx:g}, {fy:g}) and centre ({cx:g}, {cy:g}) do not fit images of {width}x{height}: "
            "give the matrix for the stored images"
        )
    return Lens("pinhole", width, height, fx, fy, cx, cy, ())


def _matrix(path: Path) -> NDArray[np.float64]:
    """[4, 4] of a text file of 9, 12 or 16 numbers; they need not be finite."""
    try:
        values = np.array(path.read_text().replace(",", " ").split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a text file of numbers ({error}): export it again") from error
    if values.size not in (9, 12, 16):
        raise UserError(f"{path}: holds {values.size} numbers, not those of a 3x3, 3x4 or 4x4 matrix: export it again")
    out = np.eye(4)
    rows = values.reshape(3 if values.size < 16 else 4, -1)[:3]
    out[:3, : rows.shape[1]] = rows
    return out


def _camera_to_world(matrix: NDArray[np.float64], convention: Convention, world_to_camera: bool) -> NDArray[np.float64]:
    out = matrix.copy()
    if world_to_camera and np.isfinite(out).all():
        out[:3, :3] = matrix[:3, :3].T
        out[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    if convention == "opengl":
        out[:3, 1:3] *= -1
    return out
