"""Feed every parser of untrusted files mutated inputs: each must be read, or refused in one line, in bounded time and
memory.

python tools/fuzz_parsers.py                        # 10,000 inputs for each parser, a few minutes a parser
python tools/fuzz_parsers.py --count 500 sens zip   # some of them
python tools/fuzz_parsers.py --list

The tests run the same table with fewer inputs (tests/data/test_parsers.py). Failing inputs are kept in --keep, and the
message says how to make them again.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
fuzzing: Any = importlib.import_module("fuzzing")

Parse = Callable[[bytes], object]
_FRAMES, _WIDTH, _HEIGHT = 3, 16, 12
_RANDOM = np.random.default_rng(0)
_CLASSES = {
    "classes": [
        {"id": 1, "name": "wall", "thing": False, "prompts": ["wall"]},
        {"id": 2, "name": "stool", "thing": True, "evaluate": True},
    ],
    "gt_map": {"1": 1, "5": 2},
}


@dataclass(frozen=True)
class Target:
    """A parser, and valid inputs of it."""

    parse: Parse
    seeds: list[bytes]


# ---------------------------------------------------------------------------------------------------- small valid files


def _image(values: NDArray[Any], form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, form, **options)
    return stream.getvalue()


def _color() -> NDArray[np.uint8]:
    return _RANDOM.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)


def _depth() -> NDArray[np.uint16]:
    return _RANDOM.integers(800, 3000, (_HEIGHT, _WIDTH), dtype=np.uint16)


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def _matrix(matrix: NDArray[np.float64]) -> str:
    return "\n".join(" ".join(f"{v:f}" for v in row) for row in matrix)


def _intrinsics() -> str:
    return _matrix(np.array([[14.0, 0, 7.5, 0], [0, 14, 5.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))


def _exported(root: Path) -> Path:
    """A scene of three frames in the exported ScanNet layout."""
    folder = root / "scene0000_00"
    ids = np.repeat(np.array([1, 5], dtype=np.uint16), _WIDTH * _HEIGHT // 2).reshape(_HEIGHT, _WIDTH)
    for n in range(_FRAMES):
        pose = np.eye(4)
        pose[0, 3] = 0.1 * n
        _write(folder / f"color/{n}.jpg", _image(_color(), "JPEG"))
        _write(folder / f"depth/{n}.png", _image(_depth()))
        _write(folder / f"pose/{n}.txt", _matrix(pose))
        _write(folder / f"label-filt/{n}.png", _image(ids))
        _write(folder / f"instance-filt/{n}.png", _image((ids // 5).astype(np.uint8)))
    for kind in ("color", "depth"):
        _write(folder / f"intrinsic/intrinsic_{kind}.txt", _intrinsics())
    _write(folder / "scene0000_00.txt", f"colorWidth = {_WIDTH}\ncolorHeight = {_HEIGHT}\naxisAlignment = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n")  # fmt: skip  # noqa: E501
    _write(folder / "classes.json", json.dumps(_CLASSES))
    _write(folder / "splits.json", json.dumps({"train": ["0", "2"], "test": [1]}))
    return folder


def _ply(text: bool, extra: Sequence[tuple[str, str]] = ()) -> bytes:
    from plyfile import PlyData, PlyElement

    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), *extra]
    vertex = np.zeros(4, dtype=fields)
    vertex["x"], vertex["y"], vertex["z"] = [-3, 3, 3, -3], [-3, -3, 3, 3], 2
    face = np.zeros(2, dtype=[("vertex_indices", "<i4", (3,))])
    face["vertex_indices"] = [[0, 1, 2], [0, 2, 3]]
    stream = io.BytesIO()
    elements = [PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")]
    PlyData(elements, text=text, byte_order="<").write(stream)
    return stream.getvalue()


def _scannetpp(root: Path) -> Path:
    """A scene of three DSLR views in the ScanNet++ layout."""
    from panbench.data.scannetpp_export import from_mesh_world

    folder = root / "0123456789"
    names = [f"DSC{n:05d}.JPG" for n in range(_FRAMES)]
    frames: list[dict[str, Any]] = []
    lines = ["# images"]
    for n, name in enumerate(names):
        pose = np.eye(4)
        pose[0, 3] = 0.1 * n
        frames.append({"file_path": name, "transform_matrix": from_mesh_world(pose).tolist(), "is_bad": False})
        lines += [f"{n + 1} 1 0 0 0 {-0.1 * n} 0 0 1 {name}", ""]
        _write(folder / f"dslr/undistorted_images/{name}", _image(_color(), "JPEG"))
    data = {
        "fl_x": 14.0, "fl_y": 14.0, "cx": _WIDTH / 2, "cy": _HEIGHT / 2, "w": _WIDTH, "h": _HEIGHT,
        "camera_model": "PINHOLE", "frames": frames[:2], "test_frames": frames[2:],
    }  # fmt: skip
    _write(folder / "dslr/nerfstudio/transforms_undistorted.json", json.dumps(data))
    _write(folder / "dslr/colmap/images.txt", "\n".join(lines) + "\n")
    _write(folder / "dslr/train_test_lists.json", json.dumps({"train": names[:2], "test": names[2:]}))
    _write(folder / "scans/mesh_aligned_0.05.ply", _ply(text=False))
    _write(folder / "scans/segments.json", json.dumps({"segIndices": [7, 7, 9, 9]}))
    groups = [{"id": 1, "objectId": 1, "label": "wall", "segments": [7]}, {"id": 2, "objectId": 2, "label": "stool", "segments": [9]}]  # fmt: skip  # noqa: E501
    _write(folder / "scans/segments_anno.json", json.dumps({"segGroups": groups}))
    _write(folder / "classes.json", json.dumps(_CLASSES))
    return folder


def _member(folder: Path, name: str, read: Callable[[Path], object], *more: bytes) -> Target:
    """A file of a scene: it is replaced, and the scene is read."""
    return Target(fuzzing.in_file(folder / name, lambda _: read(folder)), [(folder / name).read_bytes(), *more])


# ----------------------------------------------------------------------------------------------------------- the table


def _sens(root: Path) -> Target:
    from panbench.data.images import read_color
    from panbench.data.sens import SensFile, SensFrame, SensHeader, write_sens

    k = np.eye(4)
    k[:2, :3] = [[14, 0, 7.5], [0, 14, 5.5]]
    header = SensHeader(k, k, np.eye(4), np.eye(4), (_WIDTH, _HEIGHT), (_WIDTH, _HEIGHT))
    frames = [SensFrame(_image(_color(), "JPEG"), _depth(), np.eye(4)) for _ in range(_FRAMES)]
    frames[1] = SensFrame(frames[1].color, frames[1].depth, np.full((4, 4), -np.inf))
    write_sens(root / "seed.sens", header, frames)

    def read(path: Path) -> object:
        sens = SensFile(path)
        # A damaged count of frames may leave very many of them: some are enough.
        for frame in range(min(len(sens), 8)):
            read_color(sens.color(frame))
            depth = sens.depth(frame)
            if depth is not None:
                depth.read_depth()
        return sens

    return Target(fuzzing.in_file(root / "x.sens", read), [(root / "seed.sens").read_bytes()])


def _zip(root: Path) -> Target:
    from panbench.data.images import read_integers
    from panbench.data.zip_file import list_zip

    seeds: list[bytes] = []
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for n in range(_FRAMES):
                archive.writestr(f"label-filt/{n}.png", _image(_depth()))
        seeds.append(stream.getvalue())

    def read(path: Path) -> object:
        return [read_integers(member) for member in list_zip(path, (".png",))[:8]]

    return Target(fuzzing.in_file(root / "x.zip", read), seeds)


def _png_color(root: Path) -> Target:
    from panbench.data.images import read_color

    grey = (_depth() >> 4).astype(np.uint8)
    seeds = [_image(_color()), _image(_depth()), _image(grey), _image(_color(), optimize=True)]
    return Target(lambda data: read_color(fuzzing.Blob("x.png", data)), seeds)


def _jpeg(root: Path) -> Target:
    from panbench.data.images import read_color

    seeds = [_image(_color(), "JPEG"), _image(_color(), "JPEG", progressive=True), _image(_color()[..., 0], "JPEG")]
    return Target(lambda data: read_color(fuzzing.Blob("x.jpg", data)), seeds)


def _png_integers(root: Path) -> Target:
    from panbench.data.images import read_integers

    few = (_depth() & 15).astype(np.uint8)
    palette = io.BytesIO()
    Image.fromarray(few).convert("P").save(palette, "PNG", bits=4)
    seeds = [_image(_depth()), _image(few), palette.getvalue()]
    return Target(lambda data: read_integers(fuzzing.Blob("x.png", data)), seeds)


def _mesh(root: Path) -> Target:
    from panbench.data.mesh import read_mesh

    seeds = [_ply(True), _ply(False), _ply(False, [("label", "<u2")])]
    return Target(fuzzing.in_file(root / "x.ply", read_mesh), seeds)


def _exported_file(name: str) -> Callable[[Path], Target]:
    def make(root: Path) -> Target:
        from panbench.data.scannet_reader import open_scene

        def read(folder: Path) -> object:
            return open_scene(folder, masks=None, axis_align=True).source.load(0)

        return _member(_exported(root), name, read)

    return make


def _scannetpp_file(name: str) -> Callable[[Path], Target]:
    def make(root: Path) -> Target:
        from panbench.data.scannetpp_reader import open_scene

        return _member(_scannetpp(root), name, lambda folder: open_scene(folder, masks=None).source.load(0))

    return make


def _fisheye(root: Path) -> Target:
    from panbench.data.scannetpp_reader import open_scene

    folder = _scannetpp(root)
    data = json.loads((folder / "dslr/nerfstudio/transforms_undistorted.json").read_text())
    bend = {"camera_model": "OPENCV_FISHEYE", "k1": -0.03, "k2": -0.006, "k3": 0.002, "k4": -0.0004}
    _write(folder / "dslr/nerfstudio/transforms.json", json.dumps({**data, **bend}))
    (folder / "dslr/undistorted_images").rename(folder / "dslr/resized_images")

    def read(folder: Path) -> object:
        return open_scene(folder, masks=None, camera="fisheye").source.load(0)

    return _member(folder, "dslr/nerfstudio/transforms.json", read)


def _iphone_poses(root: Path) -> Target:
    from panbench.data.iphone import read_poses

    entry = {"timestamp": 0.5, "aligned_pose": np.eye(4).tolist(), "intrinsic": [[14, 0, 8], [0, 14, 6], [0, 0, 1]]}
    lost = {**entry, "aligned_pose": np.full((4, 4), -np.inf).tolist()}
    text = json.dumps({"frame_000000": entry, "frame_000001": lost, "frame_000002": {"pose": np.eye(4).tolist()}})
    return Target(fuzzing.in_file(root / "p.json", lambda path: read_poses(path, (_WIDTH, _HEIGHT))), [text.encode()])


def _iphone_depth(packing: Literal["lz4", "deflate", "one stream"]) -> Callable[[Path], Target]:
    def make(root: Path) -> Target:
        from panbench.data.iphone import DEPTH_SIZE, DepthFile
        from panbench.data.iphone_export import pack_depth

        # Noise in one corner only: mutants of small files meet more than the first block.
        images = [np.full(DEPTH_SIZE[::-1], 1000 + n, dtype=np.uint16) for n in range(_FRAMES)]
        for image in images:
            image[:_HEIGHT, :_WIDTH] = _depth()

        def read(path: Path) -> object:
            depth = DepthFile(path, 8)
            return [depth.frame(number).read_depth() for number in range(min(len(depth), 8))]

        return Target(fuzzing.in_file(root / "depth.bin", read), [pack_depth(images, packing)])

    return make


def _label_table(root: Path) -> Target:
    from panbench.data.label_tables import LabelTable
    from panbench.data.room_export import write_label_table

    write_label_table(root / "seed.tsv")
    return Target(fuzzing.in_file(root / "x.tsv", LabelTable.read), [(root / "seed.tsv").read_bytes()])


def _annotation(which: int) -> Callable[[Path], Target]:
    def make(root: Path) -> Target:
        from panbench.data.scannet_annotation import read_annotation

        _write(root / "segs.json", json.dumps({"sceneId": "x", "segIndices": [7, 7, 9, 9]}))
        groups = [{"id": 0, "objectId": 0, "segments": [7], "label": "couch"}, {"id": 1, "objectId": 1, "segments": [9], "label": "wall"}]  # fmt: skip  # noqa: E501
        _write(
            root / "aggregation.json", json.dumps({"sceneId": "x", "segGroups": groups, "segmentsFile": "segs.json"})
        )
        name = ("segs.json", "aggregation.json")[which]
        return _member(root, name, lambda folder: read_annotation(folder / "segs.json", folder / "aggregation.json", 4))

    return make


def _true_depth(root: Path) -> Target:
    from panbench.data.true_depth import FILE, TrueDepth

    stream = io.BytesIO()
    np.savez_compressed(stream, depth=np.stack([_depth()] * 2), metres_per_unit=np.array(0.0005), stems=np.array(["0", "1"]))  # fmt: skip  # noqa: E501
    _write(root / FILE, stream.getvalue())
    return _member(root, str(FILE), lambda folder: TrueDepth(folder, ["0", "1"]).get("1"))


def _predictions(root: Path) -> Target:
    from panbench.protocol.predictions import PredictionSet, PredictionWriter
    from panbench.scene import LabelSpace, PanopticMap

    zeros = torch.zeros(_HEIGHT, _WIDTH, dtype=torch.int64)
    with PredictionWriter(root / "predictions", method="x", labels=LabelSpace.from_dict(_CLASSES), seed=0) as writer:
        writer.write("0", PanopticMap(zeros + 1, zeros))
    return _member(root / "predictions", "manifest.json", lambda folder: PredictionSet.open(folder))


def _mask_manifest(root: Path) -> Target:
    from panbench.masks.mask_set import FrameMasks, MaskSet, MaskWriter
    from panbench.scene import LabelSpace

    zeros, labels = np.zeros((_HEIGHT, _WIDTH), dtype=np.uint16), LabelSpace.from_dict(_CLASSES)
    with MaskWriter(root / "masks_x", generator="x", settings={"box": 0.2}, labels=labels) as writer:
        writer.write("0", FrameMasks(zeros + 1, zeros, None))

    def read(folder: Path) -> object:
        masks = MaskSet.open(folder)
        return [masks.read(stem) for stem in masks.stems()]

    return _member(root / "masks_x", "manifest.json", read)


def _cloud_ply(root: Path) -> Target:
    from panbench.data.point_cloud import read_point_cloud, write_ply
    from panbench.scene import Points

    points = (np.arange(30).reshape(10, 3) / 10).astype(np.float32)
    up = np.tile(np.array([0, 0, 1], dtype=np.float32), (10, 1))
    write_ply(root / "seed.ply", Points(points, (points / 3).astype(np.float32), up))
    seeds = [
        (root / "seed.ply").read_bytes(),
        _ply(True),
        _ply(False, [("red", "u1"), ("green", "u1"), ("blue", "u1")]),
    ]
    return Target(fuzzing.in_file(root / "x.ply", read_point_cloud), seeds)


def _cloud_las(root: Path) -> Target:
    import laspy

    from panbench.data.point_cloud import read_point_cloud

    seeds: list[bytes] = []
    for form, version in ((2, "1.2"), (7, "1.4")):
        data = laspy.LasData(laspy.LasHeader(point_format=form, version=version))
        data.x, data.y, data.z = np.arange(30.0).reshape(3, 10)
        data.write(str(root / "seed.las"))
        seeds.append((root / "seed.las").read_bytes())
    return Target(fuzzing.in_file(root / "x.las", read_point_cloud), seeds)


def _cloud_pcd(root: Path) -> Target:
    from panbench.data.point_cloud import read_point_cloud

    table = np.arange(30, dtype="<f4").reshape(10, 3)
    plain = np.ascontiguousarray(table.T).tobytes()
    # LZF of literal runs, which may have 32 bytes each.
    packed = b"".join(bytes([len(part) - 1]) + part for k in range(0, len(plain), 32) if (part := plain[k : k + 32]))
    bodies = {
        "ascii": "\n".join(" ".join(map(str, row)) for row in table.tolist()).encode() + b"\n",
        "binary": table.tobytes(),
        "binary_compressed": struct.pack("<II", len(packed), len(plain)) + packed,
    }
    head = (
        "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 10\nHEIGHT 1\n"
        "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 10\nDATA {}\n"
    )
    seeds = [head.format(kind).encode() + body for kind, body in bodies.items()]
    return Target(fuzzing.in_file(root / "x.pcd", read_point_cloud), seeds)


def _npy(root: Path) -> Target:
    from panbench.data.npy import parse_npy
    from panbench.errors import UserError

    def read(data: bytes) -> object:
        try:
            return parse_npy(data)
        except ValueError as error:  # its callers name the file
            raise UserError(f"x.npy: {error}") from error

    seeds: list[bytes] = []
    for values in (_depth(), _depth().astype(np.float32)):
        stream = io.BytesIO()
        np.save(stream, values)
        seeds.append(stream.getvalue())
    return Target(read, seeds)


def _nerfstudio(root: Path) -> Target:
    from panbench.data.nerfstudio import read_nerfstudio

    frames: list[dict[str, Any]] = []
    for n in range(_FRAMES):
        pose = np.eye(4)
        pose[0, 3] = 0.1 * n
        _write(root / f"images/frame_{n}.png", _image(_color()))
        frames.append({"file_path": f"./images/frame_{n}.png", "transform_matrix": pose.tolist()})
    data = {"fl_x": 14.0, "fl_y": 14.0, "cx": 8.0, "cy": 6.0, "w": _WIDTH, "h": _HEIGHT, "frames": frames}
    more = {"applied_transform": np.eye(4)[:3].tolist(), "applied_scale": 1.0, "camera_model": "OPENCV", "k1": 0.01}
    split = {"train_filenames": ["images/frame_0.png", "images/frame_1.png"], "test_filenames": ["images/frame_2.png"]}
    _write(root / "transforms.json", json.dumps(data))
    return _member(root, "transforms.json", read_nerfstudio, json.dumps({**data, **more, **split}, indent=1).encode())


def _trajectory(root: Path) -> Target:
    from panbench.data.rgbd import read_trajectory

    tum = "# time tx ty tz qx qy qz qw\n" + "".join(f"{k}.5 {k} 2 3 0 0 0.6 0.8\n" for k in range(9))
    rows = "".join(" ".join(str(v) for v in np.eye(4).ravel()) + "\n" for _ in range(4))
    return Target(fuzzing.in_file(root / "trajectory.txt", read_trajectory), [tum.encode(), rows.encode()])


def _coco(name: str) -> Callable[[Path], Target]:
    def make(root: Path) -> Target:
        from panbench.masks.foreign import read_coco

        colors = np.array([[1, 0, 0], [44, 1, 0], [0, 0, 2]], dtype=np.uint8)
        pixels = colors[np.arange(_WIDTH * _HEIGHT).reshape(_HEIGHT, _WIDTH) // 64]
        segments = [
            {"id": n, "category_id": c, "iscrowd": crowd, "score": 0.5, "area": 64}
            for n, c, crowd in ((1, 1, 0), (300, 17, 0), (131072, 17, 1))
        ]
        data = {
            "images": [{"id": 9, "file_name": "0.jpg"}],
            "annotations": [{"image_id": 9, "file_name": "0.png", "segments_info": segments}],
            "categories": [{"id": 1, "name": "wall", "isthing": 0}, {"id": 17, "name": "stool", "isthing": 1}],
        }
        _write(root / "coco" / "x.json", json.dumps(data))
        _write(root / "coco" / "x" / "0.png", _image(pixels))

        def read(folder: Path) -> object:
            masks = read_coco(folder)
            return [masks.read(stem) for stem in masks.stems]

        return _member(root / "coco", name, read)

    return make


def _confidence(root: Path) -> Target:
    from panbench.masks.foreign import read_panoptic_lifting

    ids = np.repeat(np.array([1, 5], dtype=np.uint16), _WIDTH * _HEIGHT // 2).reshape(_HEIGHT, _WIDTH)
    _write(root / "m2f_semantics" / "0.png", _image(ids))
    _write(root / "m2f_instance" / "0.png", _image(ids // 5))
    stream, small = io.BytesIO(), io.BytesIO()
    confidence = _RANDOM.random((_HEIGHT, _WIDTH), dtype=np.float32)
    np.savez_compressed(stream, confidence=confidence)
    np.savez(small, confidence=confidence[::2, ::2].astype(np.float16))
    _write(root / "m2f_probabilities" / "0.npz", stream.getvalue())
    return _member(
        root, "m2f_probabilities/0.npz", lambda folder: read_panoptic_lifting(folder).read("0"), small.getvalue()
    )


def _script_masks(root: Path) -> Target:
    from panbench.masks.foreign import read_panopticrecon

    for kind in ("semantic_image", "instance_image"):
        _write(root / kind / "0.png", _image((_depth() & 1).astype(np.uint8)))
    _write(root / "thing_semantic_label.json", json.dumps({"0.jpg": [1, 2], "1.jpg": [3, "chair"]}))
    return _member(root, "thing_semantic_label.json", lambda folder: read_panopticrecon(folder).read("0"))


def _class_map(root: Path) -> Target:
    from panbench.masks.foreign import read_class_map

    return Target(fuzzing.in_file(root / "x.json", read_class_map), [b'{"couch": "sofa", "17": null, "a b": "bed"}'])


def _noise_file(root: Path) -> Target:
    from panbench.data.mask_noise import PRESETS
    from panbench.masks.corrupt import NoiseFile, read_noise

    seed = NoiseFile(rates=PRESETS["medium"], source={"scene": "x"}, observed={"part": {"of": 3}})
    return Target(fuzzing.in_file(root / "x.json", read_noise), [seed.model_dump_json().encode(), b'{"rates": {}}'])


TARGETS: dict[str, Callable[[Path], Target]] = {
    "sens": _sens,
    "zip": _zip,
    "png": _png_color,
    "jpeg": _jpeg,
    "png-integers": _png_integers,
    "ply-mesh": _mesh,
    "npz-depth": _true_depth,
    "json-classes": _exported_file("classes.json"),
    "json-splits": _exported_file("splits.json"),
    "text-pose": _exported_file("pose/0.txt"),
    "text-intrinsic": _exported_file("intrinsic/intrinsic_color.txt"),
    "text-facts": _exported_file("scene0000_00.txt"),
    "tsv-labels": _label_table,
    "json-segments": _annotation(0),
    "json-aggregation": _annotation(1),
    "json-transforms": _scannetpp_file("dslr/nerfstudio/transforms_undistorted.json"),
    "json-fisheye": _fisheye,
    "json-iphone": _iphone_poses,
    "depth-lz4": _iphone_depth("lz4"),
    "depth-deflate": _iphone_depth("deflate"),
    "depth-stream": _iphone_depth("one stream"),
    "json-lists": _scannetpp_file("dslr/train_test_lists.json"),
    "text-colmap": _scannetpp_file("dslr/colmap/images.txt"),
    "json-scannetpp-segments": _scannetpp_file("scans/segments.json"),
    "json-scannetpp-groups": _scannetpp_file("scans/segments_anno.json"),
    "json-predictions": _predictions,
    "json-masks": _mask_manifest,
    "ply-cloud": _cloud_ply,
    "las": _cloud_las,
    "pcd": _cloud_pcd,
    "npy": _npy,
    "json-nerfstudio": _nerfstudio,
    "text-trajectory": _trajectory,
    "json-coco": _coco("x.json"),
    "png-coco": _coco("x/0.png"),
    "npz-confidence": _confidence,
    "json-script-instances": _script_masks,
    "json-class-map": _class_map,
    "json-noise": _noise_file,
}


def main() -> int:
    """Fuzz what is named; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parsers; default: all")
    parser.add_argument("--count", type=int, default=10_000, help="inputs for each (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for failing inputs")
    parser.add_argument("--list", action="store_true", help="name the parsers")
    args = parser.parse_args()
    console, errors = Console(), Console(stderr=True)
    unknown = sorted(set(args.names) - set(TARGETS))
    if args.list or unknown:
        (errors if unknown else console).print(", ".join(TARGETS), soft_wrap=True, highlight=False)
        return int(bool(unknown))
    failed = 0
    for name in args.names or TARGETS:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            target = TARGETS[name](Path(root))
            try:
                report = fuzzing.check(target.parse, target.seeds, args.count, seed=args.seed, keep=args.keep / name)
                told = f"{report.read} read, {report.refused} refused"
            except AssertionError as error:
                failed += 1
                told = f"FAILED: {error}"
        seconds = time.monotonic() - started
        console.print(f"{name:<24} {args.count} inputs, {seconds:.0f} s: {told}", soft_wrap=True, markup=False, highlight=False)  # fmt: skip  # noqa: E501
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
