"""First Gaussians from posed RGB-D or a scanned cloud: thinned, oriented points."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.spatial import KDTree
from torch import Tensor

from panbench.errors import UserError
from panbench.scene import Frame, Points, Scene

log = logging.getLogger(__name__)
_T = TypeVar("_T")

MIN_DEPTH = 0.1  # metres
# Jump of the depth between neighbouring pixels, relative to it, that is another surface and not a slope.
FLYING_SLOPE = 0.05
MIN_RAYS = 3
# Normals come from differences over ± width / 100 pixels: shorter ones drown in sensor noise (at 320 columns the median
# error on a simulated structured-light sensor is 12° for one pixel, 6° for three), longer ones cut corners.
NORMAL_REACH = 100
# Second difference of the depth over that reach, relative to it, above which there is an edge and no normal.
BENT = 0.03
# Length of the mean normal above which a voxel is flat: normals scattered by about 20 degrees.
FLAT = 0.93
# Raw points that are averaged at most; beyond it, pixels are left out on a lattice.
RAW_POINTS = 12_000_000
# Points of a scanned cloud among which the normal of one is found, itself included.
NORMAL_POINTS = 12


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points on the surfaces of a scene.

    Attributes:
        positions: [N, 3] metres, world.
        colors: [N, 3] in [0, 1].
        normals: [N, 3] unit length, towards the cameras that saw the point.
        count: [N] int64, rays averaged in a point.
        voxel: edge of the grid they were averaged on, metres (larger than asked for if max_points was exceeded).
    """

    positions: Tensor
    colors: Tensor
    normals: Tensor
    count: Tensor
    voxel: float

    def __len__(self) -> int:
        return self.positions.shape[0]


def first_points(
    scene: Scene,
    *,
    voxel: float = 0.02,
    flat_voxel: float = 0.0,
    max_points: int = 300_000,
    seed: int = 0,
    max_depth: float = 6.0,
) -> PointCloud:
    """Where Gaussians start: on the scene's point cloud if it has one (:func:`from_points`), else :func:`from_rgbd`."""
    if scene.point_cloud is not None:
        return from_points(scene, scene.point_cloud, voxel=voxel, flat_voxel=flat_voxel, max_points=max_points)
    return from_rgbd(scene, voxel=voxel, flat_voxel=flat_voxel, max_points=max_points, seed=seed, max_depth=max_depth)


def from_points(
    scene: Scene, points: Points, *, voxel: float = 0.02, flat_voxel: float = 0.0, max_points: int = 300_000
) -> PointCloud:
    """Average a scanned cloud on a voxel grid, as far as training cameras see it.

    Points without a colour get the mean of the pixels that show them. Points without a normal get that of the plane
    through them and their neighbours; all normals are turned towards the cameras. If more than ``max_points`` remain,
    the grid is made coarser until they fit. ``count`` of the result counts points.

    Args:
        voxel, flat_voxel: as in :func:`from_rgbd`.

    Raises:
        UserError: no training camera sees a point, or sizes that are not positive.
    """
    _check_sizes(voxel, max_points)
    colors = np.zeros((len(points), 3)) if points.colors is None else points.colors.astype(np.float64)
    towards, views = np.zeros((len(points), 3)), np.zeros(len(points), dtype=np.int64)
    for index in _shown(scene.train, len(scene.train)):
        camera = scene.source.camera(index)
        seen, pixel, _ = points.seen_by(camera)
        back = camera.position.numpy() - points.positions[seen]
        towards[seen] += back / np.linalg.norm(back, axis=1, keepdims=True)
        views[seen] += 1
        if points.colors is None:
            colors[seen] += scene.source.load(index).color.numpy().reshape(-1, 3)[pixel] / 255.0
    seen = np.flatnonzero(views)
    if not len(seen):
        raise UserError(
            f"{scene.name}: no training camera sees a point of the point cloud: give a cloud in metres in the world of "
            "the poses"
        )
    if points.colors is None:
        colors[seen] /= views[seen, None]
    normals = np.zeros((len(seen), 3)) if points.normals is None else points.normals[seen]
    normals = normals * np.sign((normals * towards[seen]).sum(1, keepdims=True))
    values = np.concatenate([points.positions[seen], colors[seen], normals, towards[seen]], axis=1)
    sums = _VoxelSums.of(points.positions[seen], values, np.ones(len(seen), dtype=np.int64), voxel)
    sums = sums.at_most(max_points, least=1)
    facing = sums.values[:, 9:]
    sums = replace(sums, values=sums.values[:, :9])
    if points.normals is None:
        sums.values[:, 6:] = sums.count[:, None] * _plane_normals(sums.values[:, :3] / sums.count[:, None], facing)
    cloud = (sums if flat_voxel <= sums.voxel else sums.with_flat_parts(flat_voxel, least=1)).cloud(least=1)
    log.info(
        "%s: %d initial points, one per %.3f m, of the %d of %d scanned ones that training cameras see",
        scene.name, len(cloud), cloud.voxel, len(seen), len(points),
    )  # fmt: skip
    return cloud


def _plane_normals(positions: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit normals [N, 3] of the planes through each point's neighbours, on the side of ``towards`` [N, 3]."""
    if len(positions) < 3:
        return towards / np.linalg.norm(towards, axis=1, keepdims=True).clip(1e-12)
    _, near = KDTree(positions).query(positions, k=min(NORMAL_POINTS, len(positions)))
    local = positions[near] - positions[near].mean(axis=1, keepdims=True)
    normal = np.linalg.eigh(local.transpose(0, 2, 1) @ local)[1][:, :, 0]
    return np.where((normal * towards).sum(1, keepdims=True) < 0, -normal, normal)


def from_rgbd(
    scene: Scene,
    *,
    voxel: float = 0.02,
    flat_voxel: float = 0.0,
    max_points: int = 300_000,
    seed: int = 0,
    max_depth: float = 6.0,
) -> PointCloud:
    """Back-project the training frames' depth and average it on a voxel grid.

    Depth outside [0.1 m, max_depth] and pixels that float between two surfaces (by more than 0.05 z from either) are
    dropped, voxels hit by fewer than three rays too. If more than ``max_points`` remain, the grid is made coarser
    until they fit.

    Args:
        voxel: edge of the grid, metres.
        flat_voxel: edge of a coarser grid, metres, used instead where the normals within its voxel agree; 0: nowhere.
            Flat surfaces need few Gaussians, thin and round things many.
        seed: where the lattice starts in each frame if pixels have to be left out.

    Raises:
        UserError: no training frame has usable depth.
    """
    _check_sizes(voxel, max_points)
    random = np.random.default_rng(seed)
    camera = scene.source.camera(scene.train[0])
    step = max(1, math.ceil(math.sqrt(len(scene.train) * camera.width * camera.height / RAW_POINTS)))
    parts: list[_VoxelSums] = []
    for frame in _shown(scene.frames(scene.train), len(scene.train)):
        if frame.depth is not None:
            row, column = random.integers(0, step, 2)
            lattice = slice(row, None, step), slice(column, None, step)
            parts.append(_voxel_sums(frame, frame.depth, voxel, max_depth, *lattice))
    sums = _VoxelSums.merged(parts) if parts else None
    if sums is None or not (sums.count >= MIN_RAYS).any():
        raise UserError(
            f"{scene.name}: no training frame has depth between {MIN_DEPTH} and {max_depth} m: the first Gaussians are "
            "made from depth, so give a scene with depth images, or data.point_cloud"
        )
    sums = sums.at_most(max_points)
    cloud = (sums if flat_voxel <= sums.voxel else sums.with_flat_parts(flat_voxel)).cloud()
    log.info(
        "%s: %d initial points, one per %.3f m, from %d frames", scene.name, len(cloud), cloud.voxel, len(scene.train)
    )
    return cloud


def _check_sizes(voxel: float, max_points: int) -> None:
    if voxel <= 0 or max_points < 1:
        raise UserError(f"initial points: voxel {voxel} and max_points {max_points} must be positive")


def _shown(things: Iterable[_T], count: int) -> Iterable[_T]:
    """The same things, with a progress bar on a terminal."""
    console = Console(stderr=True)
    return track(things, "initial points", count, console=console, transient=True, disable=not console.is_terminal)


def neighbour_scale(positions: Tensor, voxel: float) -> Tensor:
    """First scale of each Gaussian [N], metres: rms distance to the three nearest, clamped to [0.5, 3] × voxel.

    The clamp keeps isolated points from becoming blobs of a metre.
    """
    points = positions.detach().cpu().numpy()
    if len(points) < 2:
        return positions.new_full((len(points),), voxel)
    distance, _ = KDTree(points).query(points, k=min(4, len(points)))
    rms = np.sqrt(np.mean(np.square(distance[:, 1:]), axis=1))
    return torch.from_numpy(np.clip(rms, 0.5 * voxel, 3.0 * voxel)).to(positions)


@dataclass(frozen=True, eq=False)
class _VoxelSums:
    """Sums over the rays of each voxel: ``values`` [n, 9 or more] = position, colour, normal, …."""

    key: NDArray[np.int64]
    values: NDArray[np.float64]
    count: NDArray[np.int64]
    voxel: float

    @classmethod
    def of(
        cls, positions: NDArray[np.floating], values: NDArray[np.floating], count: NDArray[np.int64], voxel: float
    ) -> _VoxelSums:
        """Sums of rows that share the voxel of their ``positions``."""
        cell = np.floor(positions * (1.0 / voxel)).astype(np.int64) + (1 << 20)
        return cls._grouped((cell[:, 0] << 42) | (cell[:, 1] << 21) | cell[:, 2], values, count, voxel)

    @classmethod
    def merged(cls, parts: list[_VoxelSums]) -> _VoxelSums:
        """Sums over several parts on one grid."""
        return cls._grouped(
            np.concatenate([p.key for p in parts]),
            np.concatenate([p.values for p in parts]),
            np.concatenate([p.count for p in parts]),
            parts[0].voxel,
        )

    @classmethod
    def _grouped(
        cls, key: NDArray[np.int64], values: NDArray[np.floating], count: NDArray[np.int64], voxel: float
    ) -> _VoxelSums:
        if len(key) == 0:
            return cls(key, values.astype(np.float64), count, voxel)
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        sums = np.add.reduceat(values[order], first, axis=0, dtype=np.float64)
        return cls(key[first], sums, np.add.reduceat(count[order], first), voxel)

    def coarser(self, voxel: float) -> _VoxelSums:
        """The same rays on a coarser grid; a fine voxel goes where its mean lies."""
        return _VoxelSums.of(self.values[:, :3] / self.count[:, None], self.values, self.count, voxel)

    def at_most(self, points: int, least: int = MIN_RAYS) -> _VoxelSums:
        """On a grid so coarse that no more than ``points`` voxels have ``least`` rays."""
        sums = self
        while (kept := int((sums.count >= least).sum())) > points:
            # Points lie on surfaces, so their number falls about with the square of the edge: go in careful steps.
            sums = sums.coarser(sums.voxel * max(1.03, (kept / points) ** 0.4))
        return sums

    def with_flat_parts(self, voxel: float, least: int = MIN_RAYS) -> _VoxelSums:
        """The same rays, those of flat voxels of the coarser grid summed over the whole such voxel."""
        enough = self.count >= least
        values, count = self.values[enough], self.count[enough]
        cell = np.floor(values[:, :3] / count[:, None] * (1.0 / voxel)).astype(np.int64)
        _, member = np.unique(cell, axis=0, return_inverse=True)
        member = member.reshape(-1)
        sums: NDArray[np.float64] = np.stack([np.bincount(member, column) for column in values.T], axis=1)  # pyright: ignore[reportAssignmentType]
        rays = np.bincount(member, count).astype(np.int64)
        flat = np.linalg.norm(sums[:, 6:], axis=1) > FLAT * rays
        curved = ~flat[member]
        return _VoxelSums(
            np.zeros(0, dtype=np.int64),
            np.concatenate([sums[flat], values[curved]]),
            np.concatenate([rays[flat], count[curved]]),
            self.voxel,
        )

    def cloud(self, least: int = MIN_RAYS) -> PointCloud:
        """Means of the voxels with enough rays."""
        enough = self.count >= least
        count = self.count[enough]
        mean = self.values[enough] / count[:, None]
        normals = mean[:, 6:] / np.linalg.norm(mean[:, 6:], axis=1, keepdims=True).clip(1e-12)
        position, color, normal = (
            torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (mean[:, :3], mean[:, 3:6], normals)
        )
        return PointCloud(position, color.clamp_(0, 1), normal, torch.from_numpy(count), self.voxel)


def _voxel_sums(frame: Frame, depth: Tensor, voxel: float, max_depth: float, rows: slice, columns: slice) -> _VoxelSums:
    """Sums over the usable pixels of one frame, which is first thinned to the lattice ``rows`` × ``columns``."""
    z = depth.numpy()
    usable = ((z >= MIN_DEPTH) & (z <= max_depth) & ~_at_jumps(z))[rows, columns]
    local = frame.camera.rays().numpy()[rows, columns] * z[rows, columns, None]
    rotation = frame.camera.rotation.numpy()
    positions = (local[usable] - frame.camera.translation.numpy()) @ rotation
    color = frame.color.numpy()[rows, columns][usable].astype(np.float32) / 255.0
    values = np.concatenate([positions, color, _normals(local, usable)[usable] @ rotation], axis=1)
    return _VoxelSums.of(positions, values, np.ones(len(positions), dtype=np.int64), voxel)


def _at_jumps(z: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Flying pixels: nearer than one neighbour of the row or column and farther than the opposite one, by 5 % each.

    A pixel in front of both its neighbours is a thin object, and one with a jump on one side is the rim of a surface:
    both are kept.
    """
    out = np.zeros(z.shape, dtype=bool)
    for axis in (0, 1):
        before, middle, after = (np.moveaxis(z, axis, 0)[k : len(np.moveaxis(z, axis, 0)) - 2 + k] for k in range(3))
        margin = FLYING_SLOPE * middle
        measured = (before > 0) & (after > 0)
        between = ((before < middle - margin) & (after > middle + margin)) | (
            (before > middle + margin) & (after < middle - margin)
        )
        np.moveaxis(out, axis, 0)[1:-1] |= measured & between
    return out


def _normals(points: NDArray[np.float32], usable: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Camera-space normals [H, W, 3], towards the camera, from differences of the points two sides apart.

    Where a neighbour is missing there is no normal; a tiny vector towards the camera stands in, so that a voxel without
    any normal still faces its cameras, while any real one outweighs it.
    """
    reach = max(1, round(points.shape[1] / NORMAL_REACH))
    towards = -points / np.linalg.norm(points, axis=-1, keepdims=True).clip(1e-6)
    out = np.float32(1e-4) * towards
    inner = (slice(reach, -reach), slice(reach, -reach))
    if min(points.shape[:2]) <= 2 * reach:
        return out
    left, right = points[reach:-reach, : -2 * reach], points[reach:-reach, 2 * reach :]
    above, below = points[: -2 * reach, reach:-reach], points[2 * reach :, reach:-reach]
    known = (
        usable[reach:-reach, : -2 * reach] & usable[reach:-reach, 2 * reach :]
        & usable[: -2 * reach, reach:-reach] & usable[2 * reach :, reach:-reach]
    )  # fmt: skip
    # Five points of one surface are nearly in line; across an edge between two surfaces they are not.
    z = points[inner][..., 2]
    for one, other in ((left, right), (above, below)):
        known &= np.abs(one[..., 2] + other[..., 2] - 2 * z) < BENT * z
    normal = np.cross(below - above, right - left)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal /= length.clip(1e-12)
    normal *= np.sign((normal * towards[inner]).sum(-1, keepdims=True))
    out[inner] = np.where(known[..., None] & (length > 0), normal, out[inner])
    return out
