"""What both layouts of ScanNet-V2 have in common: a scene's frames and where their files lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panbench.data.file import File
from panbench.data.zip_file import list_zip
from panbench.errors import UserError

_F = TypeVar("_F", bound=File)


@dataclass(frozen=True)
class Pinhole:
    """Intrinsics [pixels] of an image of a certain size, pixel centres at + 0.5."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def resized(self, width: int, height: int) -> Pinhole:
        """The same camera's intrinsics for another image size, scaled per axis."""
        sx, sy = width / self.width, height / self.height
        return Pinhole(width, height, self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy)


@dataclass(frozen=True)
class FrameFiles:
    """Where one kept frame lies, its pose, and the noise to add to its depth (standard deviation at 1 m, metres)."""

    number: int
    name: str
    world_to_camera: Tensor
    color: File
    depth: File | None
    label: File | None
    instance: File | None
    mask_semantic: Path | None
    mask_instance: Path | None
    mask_score: Path | None
    depth_noise: float = 0.0


@dataclass(frozen=True)
class SceneFiles:
    """A scene as its folder lists it.

    Attributes:
        frames: those that have a pose, in numeric order.
        lost: numbers of those that have none.
        color, depth: intrinsics of the stored images; ``depth`` None: the scene has no depth.
    """

    frames: Sequence[FrameFiles]
    lost: frozenset[int]
    color: Pinhole
    depth: Pinhole | None


@dataclass(frozen=True)
class SideFiles:
    """What lies beside the sensor's files, by frame number: the ground truth and the pseudo-masks."""

    label: Mapping[int, File]
    instance: Mapping[int, File]
    mask_semantic: Mapping[int, Path]
    mask_instance: Mapping[int, Path]
    mask_score: Mapping[int, Path]

    def frame(self, number: int, name: str, world_to_camera: Tensor, color: File, depth: File | None) -> FrameFiles:
        """The frame with its side files."""
        return FrameFiles(
            number=number,
            name=name,
            world_to_camera=world_to_camera,
            color=color,
            depth=depth,
            label=self.label.get(number),
            instance=self.instance.get(number) if number in self.label else None,
            mask_semantic=self.mask_semantic.get(number),
            mask_instance=self.mask_instance.get(number),
            mask_score=self.mask_score.get(number),
        )


def list_side_files(folder: Path, masks: Path | None) -> SideFiles:
    """Ground truth, out of folders or archives, and pseudo-masks.

    Raises:
        UserError: an archive is damaged, names are no numbers, or a file's partner is missing.
    """
    label, instance = _list_truth(folder)
    need_partner(label, instance, folder / "instance-filt", "instance image")
    sets = ("semantic_image", "instance_image", "score")
    semantic_masks, instance_masks, scores = (list_numbered(masks / s, (".png",)) if masks else {} for s in sets)
    need_partner(semantic_masks, instance_masks, (masks or folder) / "instance_image", "instance image")
    if scores:
        need_partner(semantic_masks, scores, (masks or folder) / "score", "score image")
    return SideFiles(label, instance, semantic_masks, instance_masks, scores)


def _list_truth(folder: Path) -> tuple[Mapping[int, File], Mapping[int, File]]:
    """Label and instance images: of the folders, else of the archives of the filtered, else of the unfiltered ones."""
    kinds = ("label", "instance")
    if any((folder / f"{kind}-filt").is_dir() for kind in kinds):
        label, instance = (list_numbered(folder / f"{kind}-filt", (".png",)) for kind in kinds)
        return label, instance
    for end in ("-filt", ""):
        paths = [folder / f"{folder.name}_2d-{kind}{end}.zip" for kind in kinds]
        missing = [path for path in paths if not path.is_file()]
        if len(missing) == 1:
            raise UserError(
                f"{missing[0]}: no such file, but its other half is there: download it, or remove the other"
            )
        if not missing:
            label, instance = (by_number(list_zip(path, (".png",))) for path in paths)
            return label, instance
    return {}, {}


def list_numbered(folder: Path, suffixes: Sequence[str]) -> dict[int, Path]:
    """Files of a folder by frame number, in numeric order; {} if there is no such folder.

    Raises:
        UserError: a name is not a number, or two are the same number.
    """
    if not folder.is_dir():
        return {}
    return by_number(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))


def by_number(files: Iterable[_F]) -> dict[int, _F]:
    """Files by frame number, in numeric order.

    Raises:
        UserError: a name is not a number, or two are the same number.
    """
    found: dict[int, _F] = {}
    for file in files:
        # int() of more digits takes quadratic time, or fails.
        if not (file.stem.isdecimal() and len(file.stem) <= 18):
            raise UserError(f"{file}: its name is not a frame number; expected <number>{Path(file.name).suffix}")
        other = found.setdefault(int(file.stem), file)
        if other is not file:
            raise UserError(f"{file}: is the same frame number as {other.name}: remove one of them")
    return dict(sorted(found.items()))


def need_partner(have: Mapping[int, File], partners: Mapping[int, File], folder: Path, what: str) -> None:
    """Raises: UserError: a file has none of its number among its partners."""
    missing = [path for number, path in have.items() if number not in partners]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{missing[0]}: has no {what} of its frame number in {folder}{more}: export or download all again"
        )


def read_facts(folder: Path) -> dict[str, str]:
    """``key = value`` lines of ``<scene>.txt``; {} without the file."""
    path = folder / f"{folder.name}.txt"
    if not path.is_file():
        return {}
    pairs = (line.split("=", 1) for line in path.read_text(errors="replace").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def axis_alignment(folder: Path) -> NDArray[np.float64]:
    """``axisAlignment`` of ``<scene>.txt`` [4, 4]: an aligned point is A p. The identity where it is not stated.

    Raises:
        UserError: it is no rigid transform.
    """
    stated = read_facts(folder).get("axisAlignment")
    if stated is None:
        return np.eye(4)
    try:
        matrix = np.array(stated.split(), dtype=np.float64).reshape(4, 4)
    except ValueError:
        matrix = np.full((4, 4), np.nan)
    aligned = rigid(matrix)
    if aligned is None:
        raise UserError(
            f"{folder / folder.name}.txt: axisAlignment is no rigid 4x4 matrix: download the file again, or leave out "
            "data.axis_align"
        )
    return aligned


def rigid(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The matrix [4, 4] with its rotation made exact; None if it is not finite or none is near.

    Text files carry six digits: the nearest rotation keeps R Rᵀ = 1 to float32.
    """
    nearest = nearest_rotation(matrix[:3, :3]) if np.isfinite(matrix).all() else None
    if nearest is None:
        return None
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = nearest, matrix[:3, 3]
    return out


def inverse_of_rigid(pose: NDArray[np.float64]) -> Tensor:
    """World to camera [4, 4], float32, of a rigid camera to world."""
    out = np.eye(4)
    out[:3, :3] = pose[:3, :3].T
    out[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return torch.from_numpy(out.astype(np.float32))


def nearest_rotation(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The rotation nearest to a 3x3 matrix; None if none is within 0.01 of every entry."""
    u, _, vt = np.linalg.svd(matrix)
    nearest = u @ vt
    return nearest if np.abs(nearest - matrix).max() <= 0.01 and np.linalg.det(nearest) >= 0 else None


def make_pinhole(matrix: NDArray[np.float64], size: tuple[int, int]) -> Pinhole | None:
    """Intrinsics of a matrix whose pixels have their centres at whole numbers; None if they do not fit the size."""
    fx, fy, cx, cy = (float(v) for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5))
    if min(size) < 1:
        return None
    # A principal point far from the middle means intrinsics of another image size, the usual slip after resizing.
    centred = 0.25 < cx / size[0] < 0.75 and 0.25 < cy / size[1] < 0.75
    fits = np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0 and centred
    return Pinhole(*size, fx, fy, cx, cy) if fits else None
