"""Where instance queries start: 3D points of the thing masks, grouped by how often views show them in one mask.

Mask pixels are back-projected with the sensor depth, and thinned so that small masks keep enough. Two points that
many views see in the same mask belong together; two that many views see in different masks do not. Ids need not agree
between views for that, and a mask that merges two objects in a few views is outvoted by the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from panbench.heads.votes import seen_pixels
from panbench.scene import Frame, Scene

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
_SPACING = 0.03  # metres: edge of the voxels on which mask points are thinned
_MAX_VIEWS = 200  # evenly spread over the training frames: enough to outvote a bad mask
_PIXEL_STEP = 2  # mask pixels that are back-projected, per axis
_MIN_SCALE = 0.03  # metres: smallest standard deviation of a seed
_NEAR, _NEAR_WEIGHT = 0.15, 0.1  # points closer than this (metres) belong together, as if a tenth of a view said so


@dataclass(frozen=True)
class Seeds:
    """Gaussians that queries start as, and the mask points they came from.

    Attributes:
        means: [Q, 3], world, metres. log_scales: [Q, 3], of the standard deviations along the axes of quats [Q, 4].
        points: [P, 3], thinned mask points. owner: [P], which seed each belongs to; every seed owns at least one.
    """

    means: Floats
    log_scales: Floats
    quats: Floats
    points: Floats
    owner: NDArray[np.int64]


def seed_queries(scene: Scene, *, max_points: int = 3000, min_points: int = 5, cut: float = 0.5) -> Seeds:
    """Group the thing-mask points of the training frames.

    Args:
        max_points: most points that are grouped; memory grows with its square, time a little faster.
        min_points: groups of fewer points are dropped, if larger ones exist.
        cut: two groups merge while they lie in the same mask in more than this share of their common views: those
            with a mask at both, summed over all pairs of points.
    """
    used = scene.train[:: -(-len(scene.train) // _MAX_VIEWS) or 1]

    def frames() -> Iterator[Frame]:
        """One at a time: all of them may not fit in memory."""
        return (f for f in scene.frames(used) if f.masks is not None and f.depth is not None)

    points = thin([_mask_points(f) for f in frames()], _SPACING)
    points = points[_on_things(points, frames())]
    masks = [_look(f, points)[0] for f in frames()]
    picked = _sample(masks, len(points), max_points)
    points, masks = points[picked], [mask[picked] for mask in masks]
    return _summarise(points, _group(points, masks, cut), min_points)


def _mask_points(frame: Frame) -> Floats:
    assert frame.masks is not None
    assert frame.depth is not None
    step = slice(_PIXEL_STEP // 2, None, _PIXEL_STEP)
    inside = ((frame.masks.instance > 0) & (frame.depth > 0))[step, step]
    return frame.camera.unproject(frame.depth)[step, step][inside].numpy().astype(np.float32)


def thin(points: list[Floats], voxel: float) -> Floats:
    """Mean of the points in each voxel of edge ``voxel`` metres, in the order of the voxels: [P, 3]."""
    joined = np.concatenate([*points, np.zeros((0, 3), np.float32)])
    if not len(joined):
        return joined
    cells = np.floor(joined / voxel).astype(np.int64)
    cells -= cells.min(axis=0)
    keys = np.ravel_multi_index(tuple(cells.T), tuple(cells.max(axis=0) + 1))
    _, inverse, count = np.unique(keys, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(inverse, joined[:, k], len(count)) for k in range(3)], axis=1)
    return (sums / count[:, None]).astype(np.float32)


def _on_things(points: Floats, frames: Iterable[Frame]) -> NDArray[np.bool_]:
    """Which points [P] more views show in the mask of a thing than on stuff."""
    things, stuff = np.zeros((2, len(points)), np.int64)
    for frame in frames:
        mask, on_stuff = _look(frame, points)
        things += mask > 0
        stuff += on_stuff
    return things > stuff


def _sample(masks: list[Ids], total: int, count: int) -> NDArray[np.int64]:
    """At most ``count`` of ``total`` points, spread evenly, denser on small masks.

    A point's weight is the mean of 1/√(points in its mask) over the views that show it in one, so that an object gets
    points in proportion to its extent and not to its area: a cup is not lost beside a table, whatever the scale.
    """
    if total <= count:
        return np.arange(total)
    weight, shown = np.zeros((2, total))
    for mask in masks:
        inside = mask > 0
        weight[inside] += 1 / np.sqrt(np.bincount(mask)[mask[inside]])
        shown += inside
    weight /= shown
    # Systematic sampling: neighbours in the order of the voxels are thinned evenly, and nothing is drawn.
    steps = np.floor(np.cumsum(weight) * (count / weight.sum()))
    return np.flatnonzero(np.diff(steps, prepend=0.0) > 0)


def _look(frame: Frame, points: Floats) -> tuple[Ids, NDArray[np.bool_]]:
    """What a frame says of points [P]: the id of the thing mask each lies in (0: none, or not seen), and whether it is
    seen on stuff. A point is seen if the sensor measured its depth there.
    """
    assert frame.masks is not None
    y, x, visible = seen_pixels(frame, torch.from_numpy(points))
    seen = visible.numpy()
    mask = np.where(seen, frame.masks.instance[y, x].numpy().astype(np.int32), 0)
    stuff = seen & (mask == 0) & (frame.masks.semantic[y, x].numpy() > 0)
    return mask, stuff


def _group(points: Floats, masks: list[Ids], cut: float) -> NDArray[np.int64]:
    """Greedy agglomeration: always the two groups whose points views show most consistently in one mask.

    Groups carry sums, so a pair of groups is judged by all views of all its points, and points that no view shows
    together neither join nor part them. Nearness counts as a tenth of a view.
    """
    count = len(points)
    if count < 2:
        return np.zeros(count, np.int64)
    columns = [mask == i for mask in masks for i in np.unique(mask[mask > 0])]
    member = np.stack(columns, axis=1).astype(np.float32)
    in_mask = np.stack([mask > 0 for mask in masks], axis=1).astype(np.float32)
    tree = KDTree(points)
    near = tree.sparse_distance_matrix(tree, _NEAR).toarray() > 0
    same = member @ member.T + _NEAR_WEIGHT * near
    both = in_mask @ in_mask.T + _NEAR_WEIGHT * near
    return _agglomerate(same.astype(np.float64), both.astype(np.float64), cut)


def _agglomerate(same: NDArray[np.float64], both: NDArray[np.float64], cut: float) -> NDArray[np.int64]:
    """Merge rows while the best pair has Σ same / (Σ both + ε) > cut; returns the group of each row, from 0."""
    count = len(same)
    owner = np.arange(count)
    np.fill_diagonal(same, 0.0)
    affinity = same / (both + 1e-3)
    np.fill_diagonal(affinity, -1.0)
    best = affinity.argmax(1)
    value = affinity[np.arange(count), best]
    while True:
        i = int(value.argmax())
        if value[i] <= cut:
            break
        j = int(best[i])
        same[i] += same[j]
        same[:, i] = same[i]
        both[i] += both[j]
        both[:, i] = both[i]
        owner[owner == owner[j]] = owner[i]
        row = same[i] / (both[i] + 1e-3)
        row[affinity[j] == -2.0] = -2.0
        row[[i, j]] = -1.0, -2.0
        affinity[i], affinity[:, i] = row, row
        affinity[j], affinity[:, j] = -2.0, -2.0
        value[j] = -2.0
        stale = np.flatnonzero(((best == i) | (best == j)) & (value > -2.0))
        stale = np.union1d(stale, [i])
        best[stale] = affinity[stale].argmax(1)
        value[stale] = affinity[stale, best[stale]]
        better = (affinity[:, i] > value) & (value > -2.0)
        best[better], value[better] = i, affinity[better, i]
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)


def _summarise(points: Floats, owner: NDArray[np.int64], min_points: int) -> Seeds:
    sizes = np.bincount(owner) if len(owner) else np.zeros(0, np.int64)
    kept = np.flatnonzero(sizes >= min(min_points, int(sizes.max(initial=0))))
    rename = np.full(len(sizes), -1)
    rename[kept] = np.arange(len(kept))
    owner = rename[owner] if len(owner) else owner
    points, owner = points[owner >= 0], owner[owner >= 0]
    means, scales, quats = [], [], []
    for seed in range(len(kept)):
        mine = points[owner == seed].astype(np.float64)
        centre = np.median(mine, axis=0)
        values, axes = np.linalg.eigh((mine - centre).T @ (mine - centre) / len(mine))
        if np.linalg.det(axes) < 0:
            axes[:, 0] *= -1
        means.append(centre)
        scales.append(np.log(np.maximum(np.sqrt(np.maximum(values, 0)), _MIN_SCALE)))
        quats.append(Rotation.from_matrix(axes).as_quat(scalar_first=True))
    shape = (len(kept), -1)
    return Seeds(
        means=np.asarray(means, np.float32).reshape(*shape) if means else np.zeros((0, 3), np.float32),
        log_scales=np.asarray(scales, np.float32).reshape(*shape) if means else np.zeros((0, 3), np.float32),
        quats=np.asarray(quats, np.float32).reshape(*shape) if means else np.zeros((0, 4), np.float32),
        points=points,
        owner=owner.astype(np.int64),
    )
