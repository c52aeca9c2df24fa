"""scenezoo, an independent reader of the official layouts, accepts what the writers write and reads the same from it.

It is no dependency: it brings open3d, which wants libusb and OpenGL of the system. Without it these tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panbench.data.images import read_color
from panbench.data.iphone_export import write_iphone
from panbench.data.mesh import read_mesh
from panbench.data.rooms import make_room
from panbench.data.scannet_annotation import read_annotation
from panbench.data.scannet_raw_export import write_scannet_raw
from panbench.data.scannet_reader import open_scene
from panbench.data.scannetpp_export import write_fisheye
from panbench.data.scannetpp_reader import open_scene as open_scannetpp
from panbench.data.scannetpp_reader import read_annotation as read_mesh_labels

scenezoo = pytest.importorskip("scenezoo")
pytest.importorskip("open3d", exc_type=ImportError)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=3, masks=["clean"], progress=False)


# -------------------------------------------------------------------------------------------------------- ScanNet-V2


@pytest.fixture(scope="module")
def raw(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scannet_raw(room, tmp_path_factory.mktemp("scannet"))


@pytest.fixture(scope="module")
def scannet(raw: Path) -> Any:
    return scenezoo.get_dataset("scannetv2", raw.parents[1], offline=True)


def test_scannet_passes_its_check(scannet: Any, raw: Path) -> None:
    report = scannet.check(sample_ids=[raw.name])
    assert report.ok, str(report)
    assert not report.warnings


def test_scannet_frames_are_those_that_our_reader_gives(scannet: Any, raw: Path) -> None:
    items = (
        "rgb", "depth", "rgb_intrinsics", "depth_intrinsics", "world_to_camera", "instance_maps", "semantic_maps",
        "timestamps",
    )  # fmt: skip
    theirs = scannet.get_frames(raw.name, items=items)
    ours = open_scene(raw, masks=None, max_depth=65.0)
    assert [str(k) for k in theirs.indices] == [ours.source.name(i) for i in range(len(ours.source))]
    assert theirs.source_frame_count == 10
    assert (np.diff(theirs.timestamps.astype(np.int64), axis=0) > 0).all()
    raw_ids = np.zeros(2048, dtype=np.int64)
    for raw_id, class_id in ours.labels.raw_to_class.items():
        raw_ids[raw_id] = class_id
    for k, frame in enumerate(ours.frames(range(len(ours.source)))):
        np.testing.assert_array_equal(theirs.rgb[k], frame.color.numpy())
        assert frame.depth is not None
        np.testing.assert_allclose(theirs.depth[k], frame.depth.numpy(), atol=1e-6)
        np.testing.assert_allclose(theirs.world_to_camera[k], frame.camera.world_to_camera.numpy(), atol=1e-5)
        # Their pixels have the centres at whole numbers, ours at + 0.5.
        expected = frame.camera.intrinsics.numpy() - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        np.testing.assert_allclose(theirs.rgb_intrinsics[k], expected, rtol=1e-6)
        np.testing.assert_allclose(theirs.depth_intrinsics[k], expected, rtol=1e-6)
        assert frame.truth is not None
        np.testing.assert_array_equal(raw_ids[theirs.semantic_maps[k]], frame.truth.semantic.numpy())
        instance = np.where(ours.labels.is_thing()[frame.truth.semantic.numpy()], theirs.instance_maps[k] + 1, 0)
        np.testing.assert_array_equal(instance, frame.truth.instance.numpy())


def test_scannet_labels_of_vertices_and_images_are_the_same_classes_of_nyu40(scannet: Any, raw: Path) -> None:
    classes = scannet.get_segmentation(raw.name, segmentation_type="semantic")
    objects = scannet.get_segmentation(raw.name, segmentation_type="instance")
    files = (raw / f"{raw.name}_vh_clean_2.0.010000.segs.json", raw / f"{raw.name}.aggregation.json")
    annotation = read_annotation(*files, len(classes.labels))
    np.testing.assert_array_equal(annotation.instance - 1, objects.labels)
    maps = scannet.get_frames(raw.name, items=("semantic_maps",), semantic_label_space="nyu40").semantic_maps
    ours = open_scene(raw, masks=None, label_space="nyu40")
    for k, frame in enumerate(ours.frames(range(len(ours.source)))):
        assert frame.truth is not None
        np.testing.assert_array_equal(maps[k], frame.truth.semantic.numpy())
    assert set(np.unique(maps)) <= {0, *np.unique(classes.labels)}


def test_scannet_depth_lies_on_the_mesh(scannet: Any, raw: Path) -> None:
    from scipy.spatial import KDTree

    frames = scannet.get_frames(raw.name, indices=[0], items=("depth", "depth_intrinsics", "world_to_camera"))
    depth, k, pose = frames.depth[0], frames.depth_intrinsics[0], frames.world_to_camera[0].astype(np.float64)
    rows, columns = np.nonzero(depth)
    rays = np.stack([(columns - k[0, 2]) / k[0, 0], (rows - k[1, 2]) / k[1, 1], np.ones(len(rows))], axis=1)
    points = (rays * depth[rows, columns][:, None] - pose[:3, 3]) @ pose[:3, :3]
    vertices = np.asarray(scannet.get_mesh(raw.name).vertices)
    distance, _ = KDTree(vertices).query(points)
    # As far as vertices are apart; a flipped axis or a wrong unit would be off by metres.
    assert np.median(distance) < 0.05


def test_scannet_metadata_is_read(scannet: Any, raw: Path) -> None:
    info = scannet.get_scene_info(raw.name)
    assert (info["colorWidth"], info["depthHeight"], info["numColorFrames"]) == (160, 120, 10)
    np.testing.assert_array_equal(scannet.get_alignment(raw.name), np.eye(4))
    assert scannet.get_calibration(raw.name)["depth_shift"] == 1000.0
    assert len(scannet.get_imu(raw.name)["timestamps"]) == 0
    groups = json.loads((raw / f"{raw.name}.aggregation.json").read_text())["segGroups"]
    _, labels = scannet.get_boxes(raw.name)
    assert labels == {g["objectId"]: g["label"] for g in groups}


# -------------------------------------------------------------------------------------------------------- ScanNet++


@pytest.fixture(scope="module")
def fisheye(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("cv2")
    return write_fisheye(room, tmp_path_factory.mktemp("scannetpp") / "data")


def test_scannetpp_passes_its_check(fisheye: Path) -> None:
    report = scenezoo.get_dataset("scannetpp", fisheye.parents[1], offline=True).check(sample_ids=[fisheye.name])
    assert report.ok, str(report)


def test_scannetpp_fisheye_frames_are_those_that_were_written(fisheye: Path) -> None:
    data = scenezoo.get_dataset("scannetpp", fisheye.parents[1], offline=True)
    theirs = data.get_frames(
        fisheye.name, items=("rgb", "rgb_intrinsics", "world_to_camera"), source="dslr", include_bad=True
    )
    ours = open_scannetpp(fisheye, masks=None)
    transforms = json.loads((fisheye / "dslr/nerfstudio/transforms.json").read_text())
    by_stem = {Path(str(key)).stem: k for k, key in enumerate(theirs.frame_keys)}
    for index in range(len(ours.source)):
        k = by_stem[ours.source.name(index)]
        np.testing.assert_allclose(
            theirs.world_to_camera[k], ours.source.camera(index).world_to_camera.numpy(), atol=1e-5
        )
        np.testing.assert_allclose(theirs.rgb_intrinsics[k][0, 0], transforms["fl_x"], rtol=1e-6)
        stored = read_color(fisheye / f"dslr/resized_images/{ours.source.name(index)}.JPG")
        np.testing.assert_array_equal(theirs.rgb[k], stored)


def test_scannetpp_objects_are_those_of_the_annotation(fisheye: Path) -> None:
    data = scenezoo.get_dataset("scannetpp", fisheye.parents[1], offline=True)
    objects = data.get_segmentation(fisheye.name, segmentation_type="instance")
    vertices, _ = read_mesh(fisheye / "scans/mesh_aligned_0.05.ply")
    annotation = read_mesh_labels(fisheye, len(vertices), {}, "smallest")
    assert annotation is not None
    np.testing.assert_array_equal(np.where(annotation.instance == 0, -1, annotation.instance), objects.labels)


@pytest.mark.parametrize("packing", ["lz4", "deflate", "one stream"])
def test_the_iphones_depth_and_poses_are_read_the_same(room: Path, tmp_path: Path, packing: Any) -> None:
    folder = write_iphone(room, tmp_path / "data", packing)
    data = scenezoo.get_dataset("scannetpp", tmp_path, offline=True)
    # Its public call insists on a video of 1920x1440.
    numbers, poses = data._read_iphone_camera(folder.name)[1:3]
    theirs = data._read_depth(folder.name, numbers)
    ours = open_scannetpp(folder, masks=None, image_size=(256, 192), max_depth=65, test_every=0)
    for index in range(len(ours.source)):
        frame = ours.source.load(index)
        number = int(frame.name.removeprefix("frame_"))
        assert frame.depth is not None
        np.testing.assert_allclose(theirs[number], frame.depth.numpy(), atol=1e-6)
        np.testing.assert_allclose(poses[number], frame.camera.world_to_camera.numpy(), atol=1e-5)
