"""Tracks mask instances over the frames of a static scene by where they lie in space; no weights, no appearance.

Every voxel remembers which ids the masks of its pixels got. A new frame's pixels are looked up in that map, its masks
are paired with the ids found there (pass 1); ids that lie in the same voxels become one (merge); then every mask asks
the finished map once more (pass 2). Shapes of masks are never changed. Frames may come in any order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track as tracked
from scipy.optimize import linear_sum_assignment

from panbench.data.detect import find_scene, open_found
from panbench.data.scannet_reader import find_masks
from panbench.errors import UserError
from panbench.masks.mask_set import FrameMasks, MaskManifest, MaskSet, MaskWriter, content_hash, set_folder
from panbench.scene import Camera, Scene

_AXIS = 1 << 20  # voxels to either side of the origin, per axis
_PER_FRAME = 4  # most that one frame adds to an id of a voxel, so that near views do not dominate
_WIDTH = 320  # pixels of a row that are looked at, about
_CACHE = 2 << 30  # bytes of decoded frames, which are looked at twice
_UNSEEN: Mapping[int, int] = {}


@dataclass(frozen=True)
class AssociationSettings:
    """Thresholds of the tracker.

    Attributes:
        voxel: edge of the voxels, metres; larger with uncertain poses.
        max_depth: pixels beyond are not looked at, metres.
        edge: nor are those whose depth differs from a neighbour's by more than this share (flying pixels).
        accept: smallest IoU of a mask with what the map predicts of an id, for the id to be taken.
        wrong_class: factor on that IoU where the mask's class is not the id's.
        seen, absorb: a mask without an id joins one if it was seen before to this share, and lies in that id to this
            share of what was seen: a part of an object that another mask stands for.
        start: smallest share of the picture's pixels for a mask to start a new id.
        merge: share of the smaller of two ids that lies in the other's voxels, from which on they are one.
        veto: unless they are two masks in more than this share of the frames of the rarer one.
        min_frames: ids of fewer frames are dropped.
        vote: share of a mask's pixels with depth that its final id must have in the map.
    """

    voxel: float = 0.05
    max_depth: float = 6.0
    edge: float = 0.1
    accept: float = 0.25
    wrong_class: float = 0.5
    seen: float = 0.5
    absorb: float = 0.7
    start: float = 0.0023
    merge: float = 0.3
    veto: float = 0.2
    min_frames: int = 3
    vote: float = 0.3


@dataclass(frozen=True, eq=False)
class MaskView:
    """What the tracker sees of a frame.

    Attributes:
        camera: of the maps.
        depth: z-depth [H, W], metres, 0 = none.
        semantic: class id [H, W]. instance: mask number within the frame [H, W], 0 = none.
    """

    camera: Camera
    depth: NDArray[np.float32]
    semantic: NDArray[np.integer]
    instance: NDArray[np.integer]


@dataclass(eq=False)
class _Track:
    voxels: Counter[int] = field(default_factory=Counter[int])
    frames: set[int] = field(default_factory=set[int])
    classes: Counter[int] = field(default_factory=Counter[int])


@dataclass(frozen=True, eq=False)
class _Pixels:
    """Pixels of a frame with usable depth [P]: their voxel's place in ``voxels`` and their mask's in ``masks``, where
    place 0 is "no mask"; and of each mask the number of such pixels and the class.
    """

    voxels: NDArray[np.int64]
    voxel: NDArray[np.int64]
    masks: NDArray[np.int64]
    mask: NDArray[np.int64]
    areas: NDArray[np.int64]
    classes: NDArray[np.int64]


class InstanceTracker:
    """Gives mask instances ids of the scene.

    Call :meth:`observe` with every frame, :meth:`finish` once, then :meth:`relabel` with any frame.
    """

    def __init__(self, settings: AssociationSettings | None = None) -> None:
        self.settings = settings or AssociationSettings()
        self._tracks: dict[int, _Track] = {}
        self._next = 1
        self._frame = 0
        # Voxel -> id -> count. Id 0 is "seen, but in no mask", and counts too.
        self._map: defaultdict[int, Counter[int]] = defaultdict(Counter)

    @property
    def ids(self) -> list[int]:
        """The ids in use."""
        return sorted(self._tracks)

    def observe(self, view: MaskView) -> None:
        """Pass 1 of a frame: pair its masks with what the map predicts, and put them into the map."""
        pixels = self._pixels(view)
        if not len(pixels.voxel):
            return
        ids = self._pair(pixels, len(view.depth.reshape(-1)) // _step(view) ** 2)
        self._put(pixels, ids)
        self._frame += 1

    def finish(self) -> None:
        """Merge ids that lie in the same voxels, drop rare ones, number the rest 1, 2, … by size."""
        self._merge()
        kept = {k: t for k, t in self._tracks.items() if len(t.frames) >= self.settings.min_frames}
        order = sorted(kept, key=lambda k: (-kept[k].voxels.total(), k))
        self._rename({old: new for new, old in enumerate(order, start=1)})

    def relabel(self, view: MaskView) -> dict[int, int]:
        """Pass 2: the id of each mask number of a frame; 0 where the map does not say."""
        pixels = self._pixels(view)
        predicted = self._predict(pixels)[0]
        out = dict.fromkeys(np.unique(view.instance[view.instance > 0]).tolist(), 0)
        for place, number in enumerate(pixels.masks.tolist()):
            if place == 0:
                continue
            votes = np.bincount(predicted[pixels.mask == place])
            votes[:1] = 0
            best = int(votes.argmax()) if len(votes) else 0
            if best and votes[best] >= self.settings.vote * pixels.areas[place]:
                out[number] = best
        return out

    # ------------------------------------------------------------------------------------------------------ one frame

    def _pixels(self, view: MaskView) -> _Pixels:
        step = _step(view)
        depth = view.depth
        # A pixel on an edge between near and far measures neither.
        jump = np.zeros(depth.shape, dtype=bool)
        for axis in (0, 1):
            difference = np.abs(np.diff(depth, axis=axis)) > self.settings.edge * np.minimum(
                *(np.take(depth, range(k, depth.shape[axis] - 1 + k), axis) for k in (0, 1))
            )
            pad = [(0, 0), (0, 0)]
            for side in ((0, 1), (1, 0)):
                pad[axis] = side
                jump |= np.pad(difference, pad)
        picked = np.zeros(depth.shape, dtype=bool)
        picked[step // 2 :: step, step // 2 :: step] = True
        picked &= (depth > 0) & (depth <= self.settings.max_depth) & ~jump
        points = view.camera.unproject(torch.from_numpy(np.ascontiguousarray(depth)))[torch.from_numpy(picked)].numpy()
        cell = np.floor(points.astype(np.float64) / self.settings.voxel).astype(np.int64)
        cell = np.clip(cell, -_AXIS, _AXIS - 1) + _AXIS
        voxels, voxel = np.unique((cell[:, 0] * 2 * _AXIS + cell[:, 1]) * 2 * _AXIS + cell[:, 2], return_inverse=True)
        numbers = view.instance[picked].astype(np.int64)
        masks, mask = np.unique(np.append(numbers, 0), return_inverse=True)
        mask = mask.reshape(-1)[:-1]
        seen = np.zeros((len(masks), int(view.semantic.max(initial=0)) + 1), dtype=np.int64)
        np.add.at(seen, (mask, view.semantic[picked].astype(np.int64)), 1)
        return _Pixels(voxels, voxel.reshape(-1), masks, mask, seen.sum(1), seen.argmax(1))

    def _predict(self, pixels: _Pixels) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The id [P] that most of a pixel's voxel has, if half of its counts; and whether the voxel is known [P]."""
        best, known = np.zeros(len(pixels.voxels), dtype=np.int64), np.zeros(len(pixels.voxels), dtype=bool)
        for place, key in enumerate(pixels.voxels.tolist()):
            counts = self._map.get(key, _UNSEEN)
            if counts:
                known[place] = True
                # The smaller id wins a tie, so that the order of insertion does not matter.
                most = max(counts, key=lambda k: (counts[k], -k))
                if 2 * counts[most] >= sum(counts.values()):
                    best[place] = most
        return best[pixels.voxel], known[pixels.voxel]

    def _pair(self, pixels: _Pixels, size: int) -> NDArray[np.int64]:
        """The id of each mask of a frame, [masks]; 0: none."""
        s, count = self.settings, len(pixels.masks)
        predicted, known = self._predict(pixels)
        ids, place = np.unique(np.append(predicted, 0), return_inverse=True)
        place = place.reshape(-1)[:-1]
        inside = np.zeros((count, len(ids)), dtype=np.int64)
        np.add.at(inside, (pixels.mask, place), 1)
        seen = np.bincount(pixels.mask[known], minlength=count)
        union = seen[:, None] + inside.sum(0) - inside
        iou = inside / np.maximum(union, 1)
        iou[0], iou[:, 0] = 0, 0
        class_of = np.array([self._class_of(k) for k in ids.tolist()])
        iou[class_of[None] != pixels.classes[:, None]] *= s.wrong_class

        out = np.zeros(count, dtype=np.int64)
        rows, columns = linear_sum_assignment(iou, maximize=True)
        accepted = iou[rows, columns] >= s.accept
        out[rows[accepted]] = ids[columns[accepted]]
        for mask in np.flatnonzero(out == 0).tolist():
            if mask == 0:
                continue
            held = inside[mask].copy()
            held[0] = 0
            if seen[mask] >= s.seen * pixels.areas[mask] and held.max() >= s.absorb * max(int(seen[mask]), 1):
                out[mask] = ids[int(held.argmax())]
            elif pixels.areas[mask] >= s.start * size:
                out[mask] = self._next
                self._tracks[self._next] = _Track()
                self._next += 1
        return out

    def _class_of(self, track: int) -> int:
        classes = self._tracks[track].classes if track else Counter[int]()
        return max(classes, key=lambda k: (classes[k], -k)) if classes else -1

    def _put(self, pixels: _Pixels, ids: NDArray[np.int64]) -> None:
        pairs = np.stack([pixels.voxel, ids[pixels.mask]], axis=1)
        unique, counts = np.unique(pairs, axis=0, return_counts=True)
        keys = pixels.voxels[unique[:, 0]].tolist()
        for key, track, number in zip(keys, unique[:, 1].tolist(), counts.tolist(), strict=True):
            added = min(_PER_FRAME, number)
            self._map[key][track] += added
            if track:
                self._tracks[track].voxels[key] += added
        for mask, track in enumerate(ids.tolist()):
            if track:
                self._tracks[track].frames.add(self._frame)
                self._tracks[track].classes[int(pixels.classes[mask])] += int(pixels.areas[mask])

    # ---------------------------------------------------------------------------------------------------------- merge

    def _merge(self) -> None:
        """Join the two ids that share most, again and again; counts of the joined id are those of both."""
        shared: dict[tuple[int, int], float] = {}

        def compare(track: int) -> None:
            common: Counter[int] = Counter()
            for key, count in self._tracks[track].voxels.items():
                for other, theirs in self._map[key].items():
                    if other and other != track:
                        common[other] += min(count, theirs)
            weight = self._tracks[track].voxels.total()
            for other, both in common.items():
                smaller = min(weight, self._tracks[other].voxels.total())
                shared[min(track, other), max(track, other)] = both / smaller

        for track in sorted(self._tracks):
            compare(track)
        while True:
            allowed = {pair: v for pair, v in shared.items() if v >= self.settings.merge and not self._apart(*pair)}
            if not allowed:
                return
            first, second = max(allowed, key=lambda pair: (allowed[pair], -pair[0], -pair[1]))
            gone = self._tracks.pop(second)
            for key, count in gone.voxels.items():
                self._map[key][first] += count
                del self._map[key][second]
            kept = self._tracks[first]
            kept.voxels.update(gone.voxels)
            kept.frames |= gone.frames
            kept.classes.update(gone.classes)
            for pair in [p for p in shared if second in p or first in p]:
                del shared[pair]
            compare(first)

    def _apart(self, first: int, second: int) -> bool:
        """Whether two ids are two masks in too many frames to be one object."""
        a, b = self._tracks[first].frames, self._tracks[second].frames
        return len(a & b) > self.settings.veto * min(len(a), len(b))

    def _rename(self, names: Mapping[int, int]) -> None:
        self._tracks = {new: self._tracks[old] for old, new in names.items()}
        for key, counts in self._map.items():
            renamed: Counter[int] = Counter()
            for track, count in counts.items():
                # What was dropped counts as seen, in no mask.
                renamed[names.get(track, 0)] += count
            self._map[key] = renamed


def id_consistency(views: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]]) -> float:
    """Share of the pixels of true objects whose id is the object's own: how far ids are those of a scene.

    Ids and objects are paired one to one over all frames so that most pixels agree (a linear assignment).

    Args:
        views: of each frame the masks' ids and the true objects' ids, both [H, W], 0 = none.

    Returns:
        In [0, 1]; nan without true objects.
    """
    counts: Counter[tuple[int, int]] = Counter()
    total = 0
    for instance, truth in views:
        inside = truth > 0
        total += int(inside.sum())
        pairs, number = np.unique(np.stack([instance[inside], truth[inside]], axis=1), axis=0, return_counts=True)
        for (ours, theirs), n in zip(pairs.tolist(), number.tolist(), strict=True):
            if ours:
                counts[ours, theirs] += n
    if not total:
        return float("nan")
    if not counts:
        return 0.0
    rows, columns = (sorted({pair[k] for pair in counts}) for k in (0, 1))
    table = np.zeros((len(rows), len(columns)), dtype=np.int64)
    for (ours, theirs), n in counts.items():
        table[rows.index(ours), columns.index(theirs)] = n
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / total)


def associate_set(
    folder: Path, masks: str, out: str, settings: AssociationSettings, progress: bool = True
) -> MaskManifest:
    """Associate a mask set of a scene and write it as ``masks_<out>`` there. What is no thing keeps instance 0.

    Args:
        folder: the scene's folder, of any layout. masks: NAME or path of the set.

    Raises:
        UserError: scene or masks cannot be read or written, or the scene has no depth.
    """
    found = find_scene(folder)
    target = set_folder(found.folder, out)
    source_folder = find_masks(found.folder, masks)
    if source_folder is None:
        raise UserError(f"{folder}: --masks {masks} names no mask set: give the one to start from")
    source = MaskSet.open(source_folder)
    native = open_found(found).source.camera(0)
    step = max(1, round(native.width / _WIDTH))
    size = (native.width // step, native.height // step)
    scene = open_found(found, masks=masks, image_size=size, cache_bytes=_CACHE)
    stems = set(source.stems())
    indices = [i for i in sorted({*scene.train, *scene.test}) if scene.source.name(i) in stems]

    tracker = InstanceTracker(settings)
    console = Console(stderr=True)
    for index in tracked(indices, "1/2: pairing masks", console=console, disable=not progress):
        tracker.observe(_view(scene, index))
    tracker.finish()
    manifest = source.manifest
    names = sorted(scene.source.name(i) for i in indices)
    with MaskWriter(
        target,
        generator="panbench masks associate",
        settings={
            **asdict(settings),
            "source": source_folder.name,
            "source_sha256": content_hash(source_folder, names),
            "source_generator": "" if manifest is None else manifest.generator,
            "objects": len(tracker.ids),
        },
        labels=scene.labels,
        source="shared" if manifest is None else manifest.labels,
        synthetic=manifest is not None and manifest.synthetic,
        associated=True,
    ) as writer:
        done = writer.done()
        for index in tracked(indices, "2/2: naming masks ", console=console, disable=not progress):
            stem = scene.source.name(index)
            if stem in done:
                continue
            table = tracker.relabel(_view(scene, index))
            whole = source.read(stem)
            instance = np.where(scene.labels.is_thing()[whole.semantic], whole.instance, 0)
            name = np.zeros(int(instance.max(initial=0)) + 1, dtype=np.uint16)
            for number, scene_id in table.items():
                name[number] = scene_id
            writer.write(stem, FrameMasks(whole.semantic, name[instance], whole.score))
    return writer.manifest


def _view(scene: Scene, index: int) -> MaskView:
    frame = scene.source.load(index)
    if frame.depth is None:
        raise UserError(
            f"{scene.name}: frame {frame.name} has no depth, which association needs: use a scene with depth"
        )
    assert frame.masks is not None, "only frames with masks are asked for"
    return MaskView(frame.camera, frame.depth.numpy(), frame.masks.semantic.numpy(), frame.masks.instance.numpy())


def _step(view: MaskView) -> int:
    """Pixels between those that are looked at, per axis."""
    return max(1, round(view.depth.shape[1] / _WIDTH))
