"""Plane segments of a point cloud: planar voxels of an octree, and neighbours in one plane grown together.

LI-GS fits its mixture under plane constraints; how it finds the planes we have not seen. **All of this is our design.**
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EDGES = (0.4, 0.2, 0.1, 0.05)
"""Edges of the voxels, metres: what is not planar in one is looked at in its eight children."""
FLATNESS = 0.1
"""Largest λ3 / λ2 of a plane: a pole is none, however thin."""
OUTLIERS = 0.03
"""Largest share of points beyond three tolerances of a plane: more is a small thing on a large surface."""
MIN_POINTS = 12
ANGLE = np.cos(np.radians(10))
"""Least cosine between the normal of a segment and that of a voxel that joins it."""
AGREEMENT = np.cos(np.radians(30))
"""Least cosine between a voxel's plane and the mean of its points' own normals, where those are known."""
STRAY_NEIGHBORS = 8


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes through groups of points.

    Attributes:
        count: points of each [P]. center: means [P, 3]. normal: unit [P, 3]. variance: λ1 ≥ λ2 ≥ λ3 [P, 3], m².
    """

    count: Ints
    center: Floats
    normal: Floats
    variance: Floats


def fit_planes(points: Floats, member: Ints, groups: int) -> Planes:
    """Least-squares planes through the points [N, 3] of each group; member [N] in [0, groups).

    Groups of fewer than three points get some normal, and no variance along it.
    """
    count = np.bincount(member, minlength=groups)
    some = np.maximum(count, 1)
    center = _sums(points, member, groups) / some[:, None]
    local = points - center[member]
    pairs = np.stack([local[:, i] * local[:, j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], axis=1)
    flat = _sums(pairs, member, groups) / some[:, None]
    values, vectors = np.linalg.eigh(flat[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3))
    return Planes(count, center, vectors[:, :, 0], values[:, ::-1].clip(0))


def plane_segments(
    points: Floats, towards: Floats | None, tolerance: Floats, *, normals: bool = False
) -> tuple[Ints, Planes]:
    """Which plane each point lies in [N], −1 for none, and the planes.

    Args:
        points: [N, 3] metres. towards: directions [N, 3] to the sensors that saw them, of any length; normals point
            that way, and surfaces seen from opposite sides are kept apart. tolerance: largest rms thickness of a plane
            around each point [N], metres.
        normals: ``towards`` are normals, which planes must agree with.
    """
    leaf, count = _planar_voxels(points, towards, tolerance, normals)
    if count == 0:
        return leaf, fit_planes(points[:0], leaf[:0], 0)
    settled = np.flatnonzero(leaf >= 0)
    voxels = _oriented(fit_planes(points[settled], leaf[settled], count), towards, settled, leaf)
    limit = _sums(tolerance[settled, None], leaf[settled], count)[:, 0] / voxels.count
    segment = _grown(voxels, _adjacent(points[settled], leaf[settled], count), limit, towards is not None)
    member = np.where(leaf >= 0, segment[leaf], -1)
    groups = int(segment.max()) + 1
    planes = _oriented(fit_planes(points[settled], member[settled], groups), towards, settled, member)
    member = _with_strays(points, towards, tolerance, member, planes)
    return member, planes


def _sums(values: Floats, member: Ints, groups: int) -> Floats:
    """Sums [groups, K] of rows [N, K]."""
    return np.stack([np.bincount(member, column, groups) for column in values.T], axis=1).astype(np.float64)


def voxel_numbers(points: Floats, edge: float) -> tuple[Ints, Ints]:
    """Coordinates [N, 3] of the voxel of each point, from 1, and one number [N] made of them."""
    cell = np.floor(points / edge).astype(np.int64)
    cell -= cell.min(axis=0) - 1
    span = cell.max(axis=0) + 2  # with a rim, so that neighbours of the last column are not those of the next row
    return cell, (cell[:, 0] * span[1] + cell[:, 1]) * span[2] + cell[:, 2]


def _planar_voxels(points: Floats, towards: Floats | None, tolerance: Floats, normals: bool) -> tuple[Ints, int]:
    """Planar voxel of each point [N], −1 for none, and their number."""
    leaf = np.full(len(points), -1, dtype=np.int64)
    found = 0
    rest = np.arange(len(points))

    def settle(member: Ints) -> None:
        nonlocal found, rest
        groups = int(member.max()) + 1
        planes = fit_planes(points[rest], member, groups)
        some = np.maximum(planes.count, 1)
        limit = _sums(tolerance[rest, None], member, groups)[:, 0] / some
        off = np.abs(((points[rest] - planes.center[member]) * planes.normal[member]).sum(1))
        outside = np.bincount(member, off > 3 * limit[member], groups) / some
        flat = (
            (planes.count >= MIN_POINTS)
            & (planes.variance[:, 2] < limit**2)
            & (planes.variance[:, 2] < FLATNESS * planes.variance[:, 1])
            & (outside <= OUTLIERS)
        )
        if normals and towards is not None:
            mean = _sums(towards[rest], member, groups)
            flat &= np.abs((mean * planes.normal).sum(1)) >= AGREEMENT * np.linalg.norm(mean, axis=1)
        number = np.cumsum(flat) - 1 + found
        inside = flat[member]
        leaf[rest[inside]] = number[member[inside]]
        found += int(flat.sum())
        rest = rest[~inside]

    for edge in EDGES:
        if len(rest):
            settle(np.unique(voxel_numbers(points[rest], edge)[1], return_inverse=True)[1].reshape(-1))
    if towards is not None and len(rest):
        # The two faces of a board in one voxel: told apart by the sides that they were seen from.
        member = np.unique(voxel_numbers(points[rest], EDGES[-1])[1], return_inverse=True)[1].reshape(-1)
        side = towards[rest] / np.linalg.norm(towards[rest], axis=1, keepdims=True).clip(1e-12)
        pairs = (side[:, :, None] * side[:, None, :]).reshape(-1, 9)
        axis = np.linalg.eigh(_sums(pairs, member, int(member.max()) + 1).reshape(-1, 3, 3))[1][:, :, 2]
        settle(np.unique(2 * member + ((side * axis[member]).sum(1) > 0), return_inverse=True)[1].reshape(-1))
    return leaf, found


def _oriented(planes: Planes, towards: Floats | None, rows: Ints, member: Ints) -> Planes:
    """The planes with normals towards the sensors."""
    if towards is None:
        return planes
    mean = _sums(towards[rows], member[rows], len(planes.count))
    sign = np.where((mean * planes.normal).sum(1, keepdims=True) < 0, -1.0, 1.0)
    return Planes(planes.count, planes.center, sign * planes.normal, planes.variance)


def _adjacent(points: Floats, leaf: Ints, count: int) -> list[list[int]]:
    """Numbers of the voxels that touch each, corners included."""
    cell, number = voxel_numbers(points, EDGES[-1])
    owned = np.unique(np.stack([number, leaf], axis=1), axis=0)
    span = cell.max(axis=0) + 2
    pairs: list[Ints] = []
    for dx, dy, dz in itertools.product((-1, 0, 1), repeat=3):
        other = owned[:, 0] + (dx * span[1] + dy) * span[2] + dz
        first, last = (np.searchsorted(owned[:, 0], other, side) for side in ("left", "right"))
        # Two faces of a board share a cell: no cell has more than a few owners.
        for step in range(int((last - first).max(initial=0))):
            has = first + step < last
            pairs.append(np.stack([owned[has, 1], owned[(first + step)[has], 1]], axis=1))
    both = np.unique(np.concatenate(pairs), axis=0)
    both = both[both[:, 0] != both[:, 1]]
    first = np.searchsorted(both[:, 0], np.arange(count + 1))
    return [both[first[i] : first[i + 1], 1].tolist() for i in range(count)]


def _grown(voxels: Planes, adjacent: list[list[int]], limit: Floats, oriented: bool) -> Ints:
    """Segment of each voxel: from the largest on, neighbours join whose plane is that of the segment so far.

    The plane is fitted anew with every voxel that joins, so that a curved surface becomes strips instead of one chain.
    """
    count = voxels.count.astype(np.float64)
    second = count[:, None, None] * (_covariances(voxels) + voxels.center[:, :, None] * voxels.center[:, None, :])
    segment = np.full(len(count), -1, dtype=np.int64)
    number = 0
    for seed in np.argsort(-voxels.count, kind="stable"):
        if segment[seed] >= 0:
            continue
        segment[seed] = number
        total, first, moments = count[seed], count[seed] * voxels.center[seed], second[seed].copy()
        center, normal = voxels.center[seed], voxels.normal[seed]
        queue = deque(adjacent[seed])
        while queue:
            other = queue.popleft()
            if segment[other] >= 0:
                continue
            cosine = float(normal @ voxels.normal[other])
            off = abs(float(normal @ (voxels.center[other] - center)))
            if (cosine if oriented else abs(cosine)) < ANGLE or off >= limit[other]:
                continue
            segment[other] = number
            queue.extend(adjacent[other])
            total += count[other]
            first = first + count[other] * voxels.center[other]
            moments += second[other]
            center = first / total
            fitted = np.linalg.eigh(moments / total - np.outer(center, center))[1][:, 0]
            normal = fitted if fitted @ normal > 0 else -fitted
        number += 1
    return segment


def _covariances(planes: Planes) -> Floats:
    """Isotropic in the plane: enough to know how far a voxel reaches."""
    inside = np.eye(3) - planes.normal[:, :, None] * planes.normal[:, None, :]
    spread = planes.variance[:, :2].mean(1)[:, None, None] * inside
    return spread + planes.variance[:, 2, None, None] * planes.normal[:, :, None] * planes.normal[:, None, :]


def _with_strays(points: Floats, towards: Floats | None, tolerance: Floats, member: Ints, planes: Planes) -> Ints:
    """The points of no planar voxel, as at edges of objects, join a plane that they touch, if they lie in one."""
    strays, settled = np.flatnonzero(member < 0), np.flatnonzero(member >= 0)
    if not len(strays):
        return member
    near = min(STRAY_NEIGHBORS, len(settled))
    distance, index = KDTree(points[settled]).query(points[strays], k=near, distance_upper_bound=1.5 * EDGES[-1])
    distance, index = distance.reshape(-1, near), index.reshape(-1, near)
    plane = member[settled[np.minimum(index, len(settled) - 1)]]
    normal = planes.normal[plane]
    off = np.abs(((points[strays][:, None] - planes.center[plane]) * normal).sum(2))
    fits = np.isfinite(distance) & (off < 2 * tolerance[strays][:, None])
    if towards is not None:
        fits &= (towards[strays][:, None] * normal).sum(2) > 0
    off = np.where(fits, off, np.inf)
    best = off.argmin(axis=1)
    chosen = np.take_along_axis(plane, best[:, None], 1)[:, 0]
    out = member.copy()
    out[strays] = np.where(fits.any(axis=1), chosen, -1)
    return out
