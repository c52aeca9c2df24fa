"""Training-free anchor: fuse the pseudo-masks of the training frames in a voxel grid, read the test frames off it.

1. Every training pixel with sensor depth is back-projected. In its voxel its class and its mask get a vote per pixel,
   up to a cap per frame, so that near views do not drown the others, and half of it in the six voxels around. Void
   does not vote.
2. The thing masks of all frames are joined into instances: agglomerative clustering by the IoU of their voxels, where
   of each mask only what the other's frame saw counts, pooled over all pairs of masks of two clusters. Two masks of one
   frame share few voxels, so objects seen apart in one view resist being joined; the overlap of masks of different
   classes counts less.
3. Each voxel takes its most frequent class and its most frequent instance; an instance has the class of most of its
   votes.
4. A test pixel is back-projected with the test frame's own sensor depth and takes the labels of its voxel, else of the
   nearest labelled voxel. Pixels without depth copy the nearest pixel of the image that has some. On a thing class the
   pixel takes the instance of its voxel (or of the nearest that has one nearby) and the instance's class.

What it uses: poses, sensor depth of training *and test* frames, pseudo-masks of training frames. It sees neither colour
nor truth. A method that does not beat it has not shown that its field adds anything to voting.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy import ndimage, sparse
from scipy.spatial import KDTree

from panbench.errors import UserError
from panbench.metrics.functional.counts import Ints, group_sum, majority
from panbench.protocol.predictions import PredictionWriter
from panbench.scene import VOID, Frame, PanopticMap, Scene

log = logging.getLogger(__name__)

_BITS = 21  # bits per axis of a packed voxel index: at 1 cm a cube of 20 km
_MASK = (1 << _BITS) - 1


@dataclass(frozen=True)
class VoxelVote:
    """Settings of the anchor.

    Attributes:
        voxel: edge length, metres.
        cap: most votes of one frame in one voxel for one label.
        join: pooled IoU from which on two clusters of masks are one instance.
        other_class: factor on the overlap of two masks of different classes.
        min_frames: instances seen in fewer frames are dropped.
        reach: a thing voxel without an instance takes that of the nearest voxel that has one within this, metres.
        max_depth: measurements beyond are not used, metres.
    """

    voxel: float = 0.04
    cap: int = 4
    join: float = 0.2
    other_class: float = 0.5
    min_frames: int = 2
    reach: float = 0.2
    max_depth: float = 8.0


@dataclass(frozen=True, eq=False)
class LabelledVoxels:
    """Result of the fusion.

    Attributes:
        keys: packed voxel indices, ascending [V].
        semantic: class of each voxel [V], never void.
        instance: instance of each voxel [V] if its class is a thing, 0 = none.
    """

    keys: Ints
    semantic: Ints
    instance: Ints


@dataclass(frozen=True, eq=False)
class _Votes:
    """Votes [R]: in ``frame``, ``votes`` pixels of voxel ``key`` have class ``label`` and mask ``mask`` (0 = none)."""

    frame: Ints
    key: Ints
    label: Ints
    mask: Ints
    votes: Ints


def voxel_vote(scene: Scene, out: Path, *, voxel: float = 0.04, settings: VoxelVote | None = None) -> Path:
    """Fuse the training masks, label the test frames, write the predictions folder ``out`` and return it.

    Args:
        scene: needs pseudo-masks on its training frames and sensor depth on all frames.
        out: predictions folder to write.
        voxel: edge length in metres; overrules the one in ``settings``.
        settings: everything else.

    Raises:
        UserError: if masks or depth are missing.
    """
    settings = replace(settings or VoxelVote(), voxel=voxel)
    voxels = fuse(scene, settings)
    lookup = VoxelLookup(voxels, settings)
    with PredictionWriter.for_scene(out, scene, method="voxel-vote", config=asdict(settings)) as writer:
        for frame in scene.frames(scene.test):
            writer.write(frame.name, lookup.label(frame))
    return out


def fuse(scene: Scene, settings: VoxelVote) -> LabelledVoxels:
    """Steps 1 to 3: the labelled voxels of a scene's training frames.

    Raises:
        UserError: if masks or depth are missing.
    """
    seen = _observe(scene, settings)
    keys, cell = np.unique(seen.key, return_inverse=True)
    labelled = seen.label != VOID
    semantic = _winner(keys, cell[labelled], seen.label[labelled], seen.votes[labelled])
    is_thing = scene.labels.is_thing()

    thing = (seen.mask > 0) & is_thing[seen.label]
    (mask_frame, mask_id), _ = group_sum([seen.frame[thing], seen.mask[thing]], seen.votes[thing])
    top = int(mask_id.max(initial=0)) + 1
    mask = np.searchsorted(mask_frame * top + mask_id, seen.frame[thing] * top + seen.mask[thing])
    _, mask_class = majority(mask, seen.label[thing], seen.votes[thing])
    in_mask = _membership(mask, cell[thing], (len(mask_id), len(keys)))
    in_frame = _membership(seen.frame, cell, (len(scene.train), len(keys)))
    instance_of_mask = associate(in_mask, in_frame, mask_frame, mask_class, settings)

    instance = instance_of_mask[mask]
    kept = instance > 0
    owner = _winner(keys, cell[thing][kept], instance[kept], seen.votes[thing][kept])
    ids, classes = majority(instance[kept], seen.label[thing][kept], seen.votes[thing][kept])
    class_of = np.zeros(len(mask_id) + 1, dtype=np.int64)
    class_of[ids] = classes
    log.info("%d voxels of %g m, %d masks in %d instances", len(keys), settings.voxel, len(mask_id), len(ids))

    known = semantic != VOID
    keys, semantic, owner = keys[known], semantic[known], owner[known]
    is_object = is_thing[semantic]
    owner = _fill_near(keys, np.where(is_object, owner, 0), is_object, settings)
    return LabelledVoxels(keys, np.where(owner > 0, class_of[owner], semantic), owner)


def associate(
    in_mask: sparse.csr_array, in_frame: sparse.csr_array, mask_frame: Ints, mask_class: Ints, settings: VoxelVote
) -> Ints:
    """Step 2: instance id ≥ 1 of each mask [M], 0 for masks of dropped instances.

    Args:
        in_mask: 1 where a mask holds a voxel [M, V].
        in_frame: 1 where a frame saw a voxel [F, V].
        mask_frame, mask_class: frame and class of each mask [M].
    """
    if len(mask_frame) == 0:
        return np.zeros(0, dtype=np.int64)
    shared = (in_mask @ in_mask.T).toarray().astype(np.float64)
    visible = (in_mask @ in_frame.T).toarray().astype(np.float64)  # [M, F] voxels of a mask that a frame saw
    seen_there = visible[:, mask_frame]
    union = seen_there + seen_there.T - shared
    shared *= np.where(mask_class[:, None] == mask_class[None, :], 1.0, settings.other_class)
    cluster = _agglomerate(shared, union, settings.join)
    pairs = np.unique(np.stack([cluster, mask_frame]), axis=1)
    frames = np.bincount(pairs[0], minlength=len(cluster))
    kept = np.flatnonzero(frames >= settings.min_frames)
    new_id = np.zeros(len(cluster), dtype=np.int64)
    new_id[kept] = np.arange(1, len(kept) + 1)
    return new_id[cluster]


def _agglomerate(shared: NDArray[np.float64], union: NDArray[np.float64], join: float) -> Ints:
    """Join the two clusters with the largest Σ shared / Σ union until it is below ``join``; cluster of each item [M].

    Both matrices are symmetric [M, M] and are used up.
    """
    count = len(shared)
    cluster = np.arange(count)
    np.fill_diagonal(shared, 0.0)
    ratio = shared / np.maximum(union, 1e-9)
    best = ratio.argmax(axis=1)
    value = ratio[np.arange(count), best]
    while True:
        a = int(value.argmax())
        if value[a] < join or count < 2:
            return cluster
        b = int(best[a])
        cluster[cluster == b] = a
        for matrix in (shared, union):
            matrix[a] += matrix[b]
            matrix[:, a] = matrix[a]
            matrix[b] = matrix[:, b] = 0.0
        shared[a, a] = 0.0
        ratio[a] = shared[a] / np.maximum(union[a], 1e-9)
        ratio[:, a] = ratio[a]
        ratio[b] = ratio[:, b] = 0.0
        value[b] = -1.0
        # Only rows that pointed at a or b, or that now like a better, change their best partner.
        better = ratio[:, a] > value
        better[b] = False
        best[better], value[better] = a, ratio[better, a]
        for row in np.flatnonzero(((best == a) | (best == b)) & ~better & (value >= 0)):
            best[row] = int(ratio[row].argmax())
            value[row] = ratio[row, best[row]]
        best[a] = int(ratio[a].argmax())
        value[a] = ratio[a, best[a]]


class VoxelLookup:
    """Step 4: labels of a view from labelled voxels."""

    def __init__(self, voxels: LabelledVoxels, settings: VoxelVote) -> None:
        self._voxels = voxels
        self._settings = settings
        self._tree = KDTree(_unpack(voxels.keys))

    def label(self, frame: Frame) -> PanopticMap:
        """Labels of a frame, int64 [H, W]; void everywhere if there is no labelled voxel.

        Raises:
            UserError: if the frame has no depth.
        """
        keys, seen = _locate(frame, self._settings)
        semantic = np.zeros(seen.shape, dtype=np.int64)
        instance = np.zeros(seen.shape, dtype=np.int64)
        if len(self._voxels.keys) and seen.any():
            cells, pixel = np.unique(keys, return_inverse=True)
            row = np.searchsorted(self._voxels.keys, cells).clip(max=len(self._voxels.keys) - 1)
            strange = self._voxels.keys[row] != cells
            if strange.any():
                row[strange] = self._tree.query(_unpack(cells[strange]))[1]
            semantic[seen] = self._voxels.semantic[row][pixel]
            instance[seen] = self._voxels.instance[row][pixel]
            nearest: Any = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)
            semantic, instance = semantic[tuple(nearest)], instance[tuple(nearest)]
        return PanopticMap(torch.from_numpy(semantic), torch.from_numpy(instance))


def _observe(scene: Scene, settings: VoxelVote) -> _Votes:
    """Step 1: the votes of all training frames."""
    console = Console(stderr=True)
    parts: list[Ints] = []
    for number, frame in enumerate(
        track(
            scene.frames(scene.train),
            "voxel vote",
            total=len(scene.train),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    ):
        if frame.masks is None:
            raise UserError(f"{scene.name}: training frame {frame.name} has no pseudo-masks: name a set of masks")
        keys, seen = _locate(frame, settings)
        label, mask = (m.numpy()[seen].astype(np.int64) for m in (frame.masks.semantic, frame.masks.instance))
        (key, label, mask), pixels = group_sum([keys, label, mask], np.ones_like(keys))
        parts.append(np.stack([np.full_like(key, number), key, label, mask, np.minimum(pixels, settings.cap)]))
    table = np.concatenate(parts, axis=1)
    return _Votes(table[0], table[1], table[2], table[3], table[4])


def _locate(frame: Frame, settings: VoxelVote) -> tuple[Ints, NDArray[np.bool_]]:
    """Packed voxel indices [P] of the pixels with depth, and where those are [H, W]."""
    if frame.depth is None:
        raise UserError(f"frame {frame.name} has no sensor depth: voxel voting needs it")
    depth = frame.depth.float()
    seen = ((depth > 0) & (depth <= settings.max_depth)).numpy()
    points = frame.camera.unproject(depth).numpy()[seen]
    index = np.floor(points / settings.voxel).astype(np.int64) + (1 << (_BITS - 1))
    if len(index) and (int(index.min()) < 0 or int(index.max()) > _MASK):
        raise UserError(f"frame {frame.name}: points at {np.abs(points).max():.0f} m: check its pose")
    return (index[:, 0] << 2 * _BITS) | (index[:, 1] << _BITS) | index[:, 2], seen


def _unpack(keys: Ints) -> NDArray[np.int64]:
    """Voxel indices [V, 3] of packed ones [V]."""
    return np.stack([keys >> 2 * _BITS, (keys >> _BITS) & _MASK, keys & _MASK], axis=1)


def _winner(keys: Ints, cell: Ints, label: Ints, votes: Ints) -> Ints:
    """Label with most votes in each voxel [V]; 0 where nobody voted. ``cell`` indexes ``keys`` [V].

    A vote counts half in the six voxels around its own: surfaces are thinner than the noise of the depth.
    """
    (cell, label), votes = group_sum([cell, label], votes)
    cells, labels, weights = [cell], [label], [2 * votes]
    for step in (1, 1 << _BITS, 1 << 2 * _BITS):
        for shifted in (keys - step, keys + step):
            row = np.searchsorted(keys, shifted).clip(max=len(keys) - 1)
            target = np.where(keys[row] == shifted, row, -1)[cell]
            exists = target >= 0
            cells.append(target[exists])
            labels.append(label[exists])
            weights.append(votes[exists])
    out = np.zeros(len(keys), dtype=np.int64)
    voted, best = majority(np.concatenate(cells), np.concatenate(labels), np.concatenate(weights))
    out[voted] = best
    return out


def _membership(row: Ints, column: Ints, shape: tuple[int, int]) -> sparse.csr_array:
    """Sparse 0/1 matrix with ones at the given places."""
    matrix = sparse.csr_array((np.ones(len(row), dtype=np.float32), (row, column)), shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _fill_near(keys: Ints, owner: Ints, wanted: NDArray[np.bool_], settings: VoxelVote) -> Ints:
    """Give ``wanted`` voxels without an owner the owner of the nearest voxel that has one within reach."""
    has, lacks = owner > 0, wanted & (owner == 0)
    if not has.any() or not lacks.any():
        return owner
    places = _unpack(keys)
    limit = settings.reach / settings.voxel
    distance, nearest = KDTree(places[has]).query(places[lacks], distance_upper_bound=limit)
    found = np.isfinite(np.asarray(distance))
    filled = owner.copy()
    filled[np.flatnonzero(lacks)[found]] = owner[has][np.asarray(nearest)[found]]
    return filled
