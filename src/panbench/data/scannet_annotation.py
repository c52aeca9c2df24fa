"""ScanNet's annotation of the mesh: segments of vertices, and objects made of segments."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from panbench.data.json_file import read_json
from panbench.data.label_tables import need_label_table
from panbench.errors import UserError
from panbench.scene import Camera

if TYPE_CHECKING:
    from panbench.data.mesh import MeshCaster

log = logging.getLogger(__name__)

_REMEDY = "download the scene's annotation again"


@dataclass(frozen=True, eq=False)
class MeshAnnotation:
    """Whose part every vertex of a mesh is.

    Attributes:
        instance: objectId + 1 of every vertex [V], int32, as in ScanNet's instance images; 0: no object.
        labels: raw category of each object, by objectId + 1.
    """

    instance: NDArray[np.int32]
    labels: Mapping[int, str]

    def raw_ids(self, ids: Mapping[str, int]) -> NDArray[np.int32]:
        """Raw label id of every vertex [V], 0 where there is none, by the raw ids of the categories.

        Categories without an id become 0; all of them are named in one warning.
        """
        table = np.zeros(max(self.labels, default=0) + 1, dtype=np.int32)
        strange: set[str] = set()
        for instance, label in self.labels.items():
            table[instance] = ids.get(label, 0)
            if label not in ids:
                strange.add(label)
        if strange:
            log.warning("the label table has no category %s: these objects have no label", ", ".join(sorted(strange)))
        return table[self.instance]


def read_annotation(segments_path: Path, groups_path: Path, count: int) -> MeshAnnotation:
    """Read ``<scene>_vh_clean_2.0.010000.segs.json`` and ``<scene>.aggregation.json``.

    A segment that several objects claim belongs to the last of them. In scene0217_00 all groups stand in the file
    twice: the second half is left out, with a warning.

    Args:
        count: number of vertices of the mesh.

    Raises:
        UserError: a file is missing, damaged, or for another mesh.
    """
    segments = _integers(_read(segments_path, "segIndices"), segments_path, "segIndices")
    if segments.shape != (count,):
        raise UserError(f"{segments_path}: has {segments.size} vertices, the mesh {count}: {_REMEDY}")
    groups = _read(groups_path, "segGroups")
    try:
        objects = [(int(g["objectId"]), str(g["label"]), g["segments"]) for g in groups]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{groups_path}: has no list segGroups of objectId, label and segments: {_REMEDY}") from error
    half = len(objects) // 2
    if half and len(objects) % 2 == 0 and [o[1:] for o in objects[:half]] == [o[1:] for o in objects[half:]]:
        log.warning("%s: lists all of its %d objects twice; the second time is left out", groups_path, half)
        objects = objects[:half]
    wrong = [k for k, _, _ in objects if not 0 <= k < 65535]
    if wrong:
        raise UserError(f"{groups_path}: objectId {wrong[0]} is not in 0 ... 65534: {_REMEDY}")
    # Segment ids are sparse: they are looked up among those that occur.
    known, vertex_segment = np.unique(segments, return_inverse=True)
    owner = np.zeros(len(known), dtype=np.int32)
    for k, _, members in objects:
        owner[np.isin(known, _integers(members, groups_path, "segments"))] = k + 1
    return MeshAnnotation(owner[vertex_segment.reshape(-1)], {k + 1: label for k, label, _ in objects})


class MeshTruth:
    """Ground truth of views, cast from the annotated mesh. A triangle has the labels of its first vertex."""

    def __init__(self, caster: MeshCaster, raw: NDArray[np.int32], instance: NDArray[np.int32]) -> None:
        """Args: the mesh; raw label id and objectId + 1 of its vertices [V], 0: none."""
        self._caster = caster
        self._raw = raw
        self._instance = instance

    def view(self, camera: Camera) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Raw label id [H, W] and objectId + 1 [H, W] at the centres of the pixels; 0: none."""
        _, vertex = self._caster.view(camera)
        seen = vertex >= 0
        return np.where(seen, self._raw[vertex], 0), np.where(seen, self._instance[vertex], 0)


def read_mesh_truth(folder: Path, world: NDArray[np.float64]) -> MeshTruth | None:
    """The annotated mesh of a scene's folder; None where mesh or annotation is not there.

    Args:
        world: rigid transform [4, 4] to put on the vertices, as on the poses.

    Raises:
        UserError: a file is damaged, or the label table that gives categories their ids is missing.
    """
    mesh = folder / f"{folder.name}_vh_clean_2.ply"
    segments = folder / f"{folder.name}_vh_clean_2.0.010000.segs.json"
    groups = folder / f"{folder.name}.aggregation.json"
    if not (mesh.is_file() and segments.is_file() and groups.is_file()):
        return None
    # Only scenes whose labels are cast need the ray caster.
    from panbench.data.mesh import MeshCaster, read_mesh

    ids = need_label_table(folder, "its annotation names categories").ids
    vertices, faces = read_mesh(mesh)
    annotation = read_annotation(segments, groups, len(vertices))
    raw = annotation.raw_ids(ids)
    moved = (vertices @ world[:3, :3].T + world[:3, 3]).astype(np.float32)
    return MeshTruth(MeshCaster(moved, faces), raw, annotation.instance)


def _read(path: Path, key: str) -> Any:
    data = read_json(path, _REMEDY)
    if not isinstance(data, Mapping) or not isinstance(data.get(key), list):
        raise UserError(f"{path}: has no list {key}: {_REMEDY}")
    return data[key]


def _integers(values: Any, path: Path, key: str) -> NDArray[np.int64]:
    try:
        array = np.array(values, dtype=np.int64) if len(values) else np.zeros(0, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its {key} are not whole numbers: {_REMEDY}") from error
    if array.ndim != 1:
        raise UserError(f"{path}: its {key} are not a list of whole numbers: {_REMEDY}")
    return array
