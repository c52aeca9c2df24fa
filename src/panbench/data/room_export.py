"""Writers for the exported ScanNet-V2 layout: poses, intrinsics, meshes, annotation JSON, label table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NYU40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip

TSV_NAME = "scannetv2-labels.combined.tsv"
_TSV_COLUMNS = (
    "id", "raw_category", "category", "count", "nyu40id", "eigen13id", "nyuClass", "nyu40class", "eigen13class",
    "ModelNet40", "ModelNet10", "ShapeNetCore55", "synsetoffset", "wnsynsetid", "wnsynsetkey", "mpcat40",
    "mpcat40index",
)  # fmt: skip

RAW_LABELS: Mapping[str, tuple[int, int]] = {
    "wall": (1, 1), "chair": (2, 5), "floor": (3, 2), "table": (4, 7), "door": (5, 8), "couch": (6, 6),
    "cabinet": (7, 3),
    "shelf": (8, 15), "desk": (9, 14), "office chair": (10, 5), "bed": (11, 4), "pillow": (13, 18), "picture": (15, 11),
    "window": (16, 9), "bookshelf": (18, 10), "monitor": (19, 40), "curtain": (21, 16), "book": (22, 23),
    "armchair": (23, 5), "coffee table": (24, 7), "box": (26, 29), "lamp": (28, 35), "tv": (33, 25),
    "nightstand": (34, 32), "plant": (40, 40), "ceiling": (41, 22), "dining table": (45, 7), "keyboard": (46, 40),
    "backpack": (48, 40), "whiteboard": (52, 30), "trash can": (56, 39), "radiator": (96, 39), "clock": (103, 40),
    "light": (105, 38), "mat": (140, 20),
}  # fmt: skip
"""Raw category → (ScanNet raw id, NYU40 id)."""


def write_label_table(path: Path) -> None:
    """Write the label table with the 17 columns of ScanNet v2 and the rows that rooms use."""
    lines = ["\t".join(_TSV_COLUMNS)]
    for name, (raw, nyu40) in sorted(RAW_LABELS.items(), key=lambda entry: entry[1]):
        cells = dict.fromkeys(_TSV_COLUMNS, "")
        nyu_name = _NYU40[nyu40 - 1]
        cells |= {"id": str(raw), "raw_category": name, "category": name, "count": "1", "nyu40id": str(nyu40)}
        cells |= {"nyuClass": name if name == nyu_name else "otherprop", "nyu40class": nyu_name}
        lines.append("\t".join(cells[c] for c in _TSV_COLUMNS))
    path.write_text("\n".join(lines) + "\n")


def write_matrix(path: Path, matrix: NDArray[np.floating]) -> None:
    """Write a 4 × 4 matrix as ScanNet's text export does ("%f", rows on lines; lost poses are "-inf")."""
    path.write_text("".join(" ".join(f"{v:f}" for v in row) + "\n" for row in matrix.tolist()))


def write_json(path: Path, data: object, indent: int | None = 1) -> None:
    """Write JSON with a stable layout."""
    path.write_text(json.dumps(data, indent=indent) + "\n")


@dataclass(frozen=True)
class SensorInfo:
    """Image size, focal length in pixels and counts for the scene's text file. Principal points are (size − 1) / 2."""

    width: int
    height: int
    focal: float
    frames: int
    scene_type: str


def write_calibration(folder: Path, scene: str, info: SensorInfo) -> None:
    """Write ``intrinsic/*.txt`` and ``<scene>.txt``; colour and depth share one camera, integer pixel centres."""
    cx, cy = (info.width - 1) / 2, (info.height - 1) / 2
    matrix = np.eye(4)
    matrix[:2, :3] = [[info.focal, 0.0, cx], [0.0, info.focal, cy]]
    (folder / "intrinsic").mkdir()
    for kind in ("color", "depth"):
        write_matrix(folder / "intrinsic" / f"intrinsic_{kind}.txt", matrix)
        write_matrix(folder / "intrinsic" / f"extrinsic_{kind}.txt", np.eye(4))
    identity = " ".join(f"{v:f}" for v in np.eye(4).ravel().tolist())
    values: dict[str, object] = {"axisAlignment": identity, "colorToDepthExtrinsics": identity}
    for kind in ("color", "depth"):
        values |= {
            f"{kind}Width": info.width,
            f"{kind}Height": info.height,
            f"fx_{kind}": info.focal,
            f"fy_{kind}": info.focal,
        }
        values |= {f"mx_{kind}": cx, f"my_{kind}": cy}
    values |= {
        "numColorFrames": info.frames,
        "numDepthFrames": info.frames,
        "numIMUmeasurements": 0,
        "sceneType": info.scene_type,
    }
    (folder / f"{scene}.txt").write_text("".join(f"{key} = {values[key]}\n" for key in sorted(values)))


def write_annotation(
    folder: Path,
    scene: str,
    vertices: NDArray[np.float32],
    normals: NDArray[np.float32],
    faces: NDArray[np.int32],
    colors: NDArray[np.uint8],
    vertex_object: NDArray[np.int32],
    object_labels: Sequence[str],
) -> None:
    """Write the mesh, its label mesh, the over-segmentation and the aggregation.

    Args:
        vertices, normals, faces, colors: the mesh [V, 3], [V, 3], [F, 3], [V, 3].
        vertex_object: objectId of every vertex [V].
        object_labels: raw category per objectId.
    """
    nyu40 = np.array([RAW_LABELS[name][1] for name in object_labels], dtype=np.uint16)[vertex_object]
    _write_ply(folder / f"{scene}_vh_clean_2.ply", vertices, faces, colors, None)
    _write_ply(folder / f"{scene}_vh_clean_2.labels.ply", vertices, faces, _palette()[nyu40], nyu40)
    cell = np.floor((vertices - vertices.min(0)) / 0.5).astype(np.int64)
    side = np.abs(normals).argmax(1) * 2 + (
        np.take_along_axis(normals, np.abs(normals).argmax(1)[:, None], 1)[:, 0] > 0
    )
    key = (((vertex_object * 64 + cell[:, 0]) * 64 + cell[:, 1]) * 64 + cell[:, 2]) * 8 + side
    _, first, segment = np.unique(key, return_index=True, return_inverse=True)
    # Segment ids are sparse in real files too: the index of a segment's first vertex.
    segments = first[segment.reshape(-1)]
    name = f"{scene}_vh_clean_2.0.010000.segs.json"
    params = {
        "kThresh": "0.0001",
        "segMinVerts": "20",
        "minPoints": "750",
        "maxPoints": "30000",
        "thinThresh": "0.05",
        "flatThresh": "0.001",
        "minLength": "0.02",
        "maxLength": "1",
    }
    write_json(folder / name, {"params": params, "sceneId": scene, "segIndices": segments.tolist()}, indent=None)
    owner = vertex_object[first]
    groups = [
        {"id": k, "objectId": k, "segments": sorted(first[owner == k].tolist()), "label": label}
        for k, label in enumerate(object_labels)
    ]
    data = {
        "sceneId": f"scannet.{scene}",
        "appId": "Aggregator.v2",
        "segGroups": groups,
        "segmentsFile": f"scannet.{name}",
    }
    write_json(folder / f"{scene}.aggregation.json", data, indent=None)


def _write_ply(
    path: Path,
    vertices: NDArray[np.float32],
    faces: NDArray[np.int32],
    colors: NDArray[np.uint8],
    label: NDArray[np.uint16] | None,
) -> None:
    fields: list[tuple[str, str]] = [
        ("x", "<f4"),
        ("y", "<f4"),
        ("z", "<f4"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
        ("alpha", "u1"),
    ]
    names = {"<f4": "float", "u1": "uchar", "<u2": "ushort"}
    if label is not None:
        fields.append(("label", "<u2"))
    table = np.zeros(len(vertices), dtype=fields)
    for k in range(3):
        table[fields[k][0]] = vertices[:, k]
        table[fields[3 + k][0]] = colors[:, k]
    table["alpha"] = 255
    if label is not None:
        table["label"] = label
    triangles = np.zeros(len(faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    triangles["count"], triangles["index"] = 3, faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    header += [f"property {names[kind]} {name}" for name, kind in fields]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    path.write_bytes("\n".join(header).encode() + table.tobytes() + triangles.tobytes())


def _palette() -> NDArray[np.uint8]:
    """A colour per NYU40 id [41, 3]."""
    hue = (np.arange(41) * 0.61803398875) % 1
    rgb = 0.5 + 0.45 * np.cos(2 * np.pi * (hue[:, None] + np.array([0.0, 1 / 3, 2 / 3])))
    rgb[0] = 0
    return np.round(rgb * 255).astype(np.uint8)
