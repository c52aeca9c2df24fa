"""Reading and writing ScanNet++: world frames, labels from the mesh, every kind of bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement

from panbench.data import scannet_reader
from panbench.data.mesh import MeshCaster, read_mesh
from panbench.data.rooms import make_room
from panbench.data.scannetpp import ScanNetPPDataModule, find_scene
from panbench.data.scannetpp_export import from_mesh_world, scene_name, write_scannetpp
from panbench.data.scannetpp_reader import open_scene, to_mesh_world
from panbench.errors import UserError
from panbench.scene import Camera, Scene

WIDTH, HEIGHT, FOCAL = 40, 30, 32.0
NAMES = [f"DSC{n:05d}.JPG" for n in range(1, 7)]
CLASSES = {
    "classes": [
        {"id": 1, "name": "wall", "thing": False},
        {"id": 2, "name": "chair", "thing": True, "labels": ["office chair", "stool"]},
        {"id": 3, "name": "cushion", "thing": True, "prompts": ["pillow"]},
    ]
}


def square(left: float, right: float, depth: float) -> np.ndarray:
    """Corners [4, 3] of a square that faces a camera at the origin, from ``left`` to ``right`` at ``depth``."""
    return np.array([[left, -2, depth], [right, -2, depth], [right, 2, depth], [left, 2, depth]], np.float32)


def write_ply(path: Path, vertices: np.ndarray, faces: np.ndarray, *, text: bool = False) -> None:
    points = np.array([tuple(v) for v in vertices], dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    rows = np.array([(face,) for face in faces], dtype=[("vertex_indices", "i4", (3,))])
    elements = [PlyElement.describe(points, "vertex"), PlyElement.describe(rows, "face")]
    PlyData(elements, text=text).write(str(path))


def pose(index: int) -> np.ndarray:
    """Camera to world, OpenCV axes: 1 cm to the right each time."""
    out = np.eye(4)
    out[0, 3] = 0.01 * index
    return out


def write_transforms(folder: Path, **changes: Any) -> None:
    def frame(index: int) -> dict[str, object]:
        return {"file_path": NAMES[index], "transform_matrix": from_mesh_world(pose(index)).tolist(), "is_bad": False}

    data: dict[str, Any] = {
        "fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT,
        "camera_model": "PINHOLE",
        "frames": [frame(i) for i in range(4)],
        "test_frames": [frame(i) for i in (4, 5)],
    }  # fmt: skip
    path = folder / "dslr/nerfstudio/transforms_undistorted.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**data, **changes}))


def write_colmap(folder: Path, shift: float = 0.0) -> None:
    path = folder / "dslr/colmap/images.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# Image list"]
    for index, name in enumerate(NAMES):
        # The second line of an image, its points, may be empty or not.
        lines += [f"{index + 1} 1 0 0 0 {-0.01 * index - shift} 0 0 1 {name}", "1.5 2.5 -1" if index % 2 else ""]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    """Six views of a wall 2 m away, and before it, at 1.5 m, a stool and a pillow that overlap in the annotation."""
    folder = tmp_path / "data" / "0123456789"
    write_transforms(folder)
    write_colmap(folder)
    images = folder / "dslr/undistorted_images"
    images.mkdir()
    random = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(images / name)
    scans = folder / "scans"
    scans.mkdir()
    vertices = np.concatenate([square(-3, 3, 2.0), square(-0.6, -0.3, 1.5), square(-0.3, 0.0, 1.5)])
    faces = np.array([[4 * k + i for i in t] for k in range(3) for t in ((0, 1, 2), (0, 2, 3))])
    write_ply(scans / "mesh_aligned_0.05.ply", vertices, faces)
    # Segment ids need not be vertex ids.
    (scans / "segments.json").write_text(json.dumps({"segIndices": [7] * 4 + [20] * 4 + [31] * 4}))
    groups = [
        {"id": 1, "objectId": 1, "label": "wall", "segments": [7]},
        {"id": 3, "objectId": 3, "label": "pillow", "segments": [31]},
        {"id": 2, "objectId": 2, "label": "stool", "segments": [20, 31]},
        {"id": 4, "objectId": 4, "label": "REMOVE", "segments": [7, 20, 31]},
    ]
    (scans / "segments_anno.json").write_text(json.dumps({"segGroups": groups}))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def names(scene: Scene, part: str) -> list[str]:
    return [scene.source.name(i) for i in getattr(scene, part)]


# ------------------------------------------------------------------------------------------------------ world frames


def test_the_world_of_the_transforms_is_undone_as_worked_out_by_hand() -> None:
    # A camera at (1, 2, 3) that looks along world x, image up along world z: its axes in the world are
    # x right = -y, y down = -z, z forward = +x. OpenGL axes: x right, y up = +z, z back = -x.
    opencv = np.array([[0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]], dtype=float)
    opengl = np.array([[0, 0, -1, 1], [-1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]], dtype=float)
    # instant-ngp's world: x and y change places, z is reversed.
    world = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]], dtype=float)
    np.testing.assert_array_equal(to_mesh_world(world @ opengl), opencv)
    np.testing.assert_array_equal(from_mesh_world(opencv), world @ opengl)


def test_poses_come_from_colmap_and_without_it_from_the_transforms(scene_folder: Path) -> None:
    both = open_scene(scene_folder, masks=None)
    shutil.rmtree(scene_folder / "dslr/colmap")
    alone = open_scene(scene_folder, masks=None)
    for index in range(6):
        for scene in (both, alone):
            camera = scene.source.camera(index)
            torch.testing.assert_close(camera.position, torch.tensor([0.01 * index, 0, 0]), atol=1e-7, rtol=0)
            torch.testing.assert_close(camera.rotation, torch.eye(3))
    assert (camera.fx, camera.cx, camera.cy) == (FOCAL, WIDTH / 2, HEIGHT / 2)


def test_poses_of_two_reconstructions_are_not_mixed(scene_folder: Path) -> None:
    write_colmap(scene_folder, shift=0.5)
    with pytest.raises(UserError, match=r"images\.txt: its pose of DSC00001\.JPG is not that of .*differ by 0\.5"):
        open_scene(scene_folder, masks=None)


# ---------------------------------------------------------------------------------------------------- from the mesh


def test_depth_and_labels_are_those_of_the_surfaces_in_view(scene_folder: Path) -> None:
    frame = open_scene(scene_folder, masks=None).source.load(0)
    assert frame.depth is not None
    assert frame.truth is not None
    # Column u sees x = (u + 0.5 - 20) / 32 at depth 1: the stool reaches from -0.4 to -0.2, the pillow from there to 0.
    x = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    stool, pillow = (x > -0.4) & (x < -0.2), (x > -0.2) & (x < 0)
    depth = torch.where(stool | pillow, 1.5, 2.0).expand(HEIGHT, WIDTH)
    torch.testing.assert_close(frame.depth, depth, atol=1e-6, rtol=0)
    semantic = torch.where(stool, 2, torch.where(pillow, 3, 1)).expand(HEIGHT, WIDTH)
    assert torch.equal(frame.truth.semantic, semantic)
    # Stool and pillow overlap in the annotation: the smaller one has the vertices. Stuff has no instance.
    assert torch.equal(frame.truth.instance, torch.where(semantic == 1, 0, semantic))


def test_the_last_listed_of_overlapping_objects_wins_if_asked(scene_folder: Path) -> None:
    # The stool is listed behind the pillow and claims its segment, too.
    frames = [open_scene(scene_folder, masks=None, overlap=o).source.load(0) for o in ("smallest", "last")]
    x = (torch.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL
    for frame, pillow in zip(frames, (3, 2), strict=True):
        assert frame.truth is not None
        row = torch.where((x > -0.4) & (x < -0.2), 2, torch.where((x > -0.2) & (x < 0), pillow, 1))
        assert torch.equal(frame.truth.semantic, row.expand(HEIGHT, WIDTH))
        assert torch.equal(frame.truth.instance, torch.where(row == 1, 0, row).expand(HEIGHT, WIDTH))


def test_a_camera_beside_and_behind_sees_the_same_surfaces() -> None:
    caster = MeshCaster(square(-1, 1, 2.0), np.array([[0, 1, 2], [0, 2, 3]], np.int32))
    turned = torch.eye(4)
    turned[[0, 2], [0, 2]] = -1.0  # looks along -z from (0, 0, 5)
    turned[2, 3] = 5.0
    depth, vertex = caster.view(Camera(9, 7, 8.0, 8.0, 4.5, 3.5, turned))
    assert depth[3, 4] == pytest.approx(3.0)
    assert vertex[3, 4] == 0
    away = torch.eye(4)
    away[2, 3] = -5.0
    depth, vertex = caster.view(Camera(9, 7, 8.0, 8.0, 4.5, 3.5, away))
    assert not depth.any()
    assert (vertex == -1).all()


def test_depth_is_along_the_axis_and_not_along_the_ray() -> None:
    caster = MeshCaster(10 * square(-1, 1, 0.2), np.array([[0, 1, 2], [0, 2, 3]], np.int32))
    depth, _ = caster.view(Camera(9, 7, 4.0, 4.0, 4.5, 3.5, torch.eye(4)))
    np.testing.assert_allclose(depth, 2.0, rtol=1e-6)


def test_hidden_pixels_have_neither_depth_nor_labels(scene_folder: Path) -> None:
    hidden = scene_folder / "dslr/undistorted_anon_masks"
    hidden.mkdir()
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :10] = 0
    Image.fromarray(mask).save(hidden / "DSC00001.png")
    scene = open_scene(scene_folder, masks=None)
    for index, columns in ((0, 10), (1, 0)):
        frame = scene.source.load(index)
        assert frame.depth is not None
        assert frame.truth is not None
        assert not frame.depth[:, :columns].any()
        assert frame.depth[:, columns:].all()
        assert not frame.truth.semantic[:, :columns].any()
        assert frame.truth.semantic[:, columns:].all()


def test_another_size_is_cast_at_its_own_pixels(scene_folder: Path) -> None:
    frame = open_scene(scene_folder, masks=None, image_size=(20, 15)).source.load(0)
    assert frame.depth is not None
    assert frame.depth.shape == (15, 20)
    assert (frame.camera.fx, frame.camera.cx) == (FOCAL / 2, 10.0)
    x = (torch.arange(20) + 0.5 - 10) / (FOCAL / 2)
    torch.testing.assert_close(frame.depth[7], torch.where((x > -0.4) & (x < 0), 1.5, 2.0), atol=1e-6, rtol=0)


def test_surfaces_beyond_the_limit_have_no_depth(scene_folder: Path) -> None:
    frame = open_scene(scene_folder, masks=None, max_depth=1.8).source.load(0)
    assert frame.depth is not None
    assert set(frame.depth.unique().tolist()) == {0.0, 1.5}


def test_a_scene_without_annotation_has_no_truth(scene_folder: Path) -> None:
    for name in ("segments.json", "segments_anno.json"):
        (scene_folder / "scans" / name).unlink()
    assert open_scene(scene_folder, masks=None).source.load(0).truth is None


# ------------------------------------------------------------------------------------------------------------ split


def test_the_split_is_that_of_the_lists_else_of_the_transforms(scene_folder: Path) -> None:
    scene = open_scene(scene_folder, masks=None)
    assert names(scene, "test") == ["DSC00005", "DSC00006"]
    lists = {"train": NAMES[:2], "test": NAMES[3:4], "has_masks": False}
    (scene_folder / "dslr/train_test_lists.json").write_text(json.dumps(lists))
    scene = open_scene(scene_folder, masks=None)
    assert names(scene, "train") == ["DSC00001", "DSC00002"]
    assert names(scene, "test") == ["DSC00004"]


def test_bad_training_frames_and_lost_poses_are_left_out(scene_folder: Path) -> None:
    path = scene_folder / "dslr/nerfstudio/transforms_undistorted.json"
    data = json.loads(path.read_text())
    data["frames"][1]["is_bad"] = True
    data["frames"][2]["transform_matrix"][0][3] = float("-inf")
    path.write_text(json.dumps(data))
    shutil.rmtree(scene_folder / "dslr/colmap")
    assert names(open_scene(scene_folder, masks=None), "train") == ["DSC00001", "DSC00004"]
    kept = open_scene(scene_folder, masks=None, include_bad=True)
    assert names(kept, "train") == ["DSC00001", "DSC00002", "DSC00004"]


def test_stride_and_views_thin_the_training_frames_only(scene_folder: Path) -> None:
    scene = open_scene(scene_folder, masks=None, stride=3)
    assert names(scene, "train") == ["DSC00001", "DSC00004"]
    assert len(scene.test) == 2
    assert names(open_scene(scene_folder, masks=None, views=2), "train") == ["DSC00002", "DSC00004"]


# ----------------------------------------------------------------------------------------------------- written rooms


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=3, progress=False)


def test_a_written_room_reads_back_as_the_room_it_was(room: Path, tmp_path: Path) -> None:
    folder = write_scannetpp(room, tmp_path / "data")
    assert folder.name == scene_name(room) == "9103000000"
    before = scannet_reader.open_scene(room, masks="heavy")
    after = ScanNetPPDataModule(root=str(tmp_path), masks="heavy").scene
    assert (after.dataset, after.synthetic) == ("scannetpp", True)
    assert (after.train, after.test) == (before.train, before.test)
    assert after.labels.classes == before.labels.classes
    for index in range(len(before.source)):
        old, new = before.source.load(index), after.source.load(index)
        assert new.name == f"DSC{int(old.name):05d}"
        torch.testing.assert_close(new.camera.world_to_camera, old.camera.world_to_camera, atol=1e-6, rtol=0)
        assert (new.camera.fx, new.camera.cx) == pytest.approx((old.camera.fx, old.camera.cx))
        assert torch.equal(new.color, old.color)
        assert old.truth is not None
        assert new.truth is not None
        # The room's own labels were cast from poses of more digits: a ray on an edge may fall to the other side.
        for a, b in ((old.truth.semantic, new.truth.semantic), (old.truth.instance, new.truth.instance)):
            assert (a != b).float().mean() < 1e-3
        assert (old.masks is None) == (new.masks is None)
        if old.masks is not None and new.masks is not None:
            assert torch.equal(new.masks.semantic, old.masks.semantic)
            assert torch.equal(new.masks.instance, old.masks.instance)
            assert old.masks.score is not None
            assert new.masks.score is not None
            assert torch.equal(new.masks.score, old.masks.score)
        if old.true_depth is not None and new.depth is not None:
            assert ((new.depth - old.true_depth).abs() < 1.5e-3).float().mean() > 0.999


def test_without_a_root_a_room_is_written_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: Path) -> None:
    built = tmp_path / "rooms" / "v1-tiny-3"
    built.mkdir(parents=True)
    shutil.copytree(room, built / room.name)
    monkeypatch.setenv("PANBENCH_CACHE", str(tmp_path))
    scene = ScanNetPPDataModule(room_size="tiny", room_seed=3).scene
    assert scene.synthetic
    stamp = (built / "scannetpp/9103000000/classes.json").stat().st_mtime_ns
    ScanNetPPDataModule(room_size="tiny", room_seed=3).setup("fit")
    assert (built / "scannetpp/9103000000/classes.json").stat().st_mtime_ns == stamp


def test_the_scene_is_found_in_the_data_set_by_name_or_itself(scene_folder: Path, tmp_path: Path) -> None:
    for root, name in ((tmp_path, None), (tmp_path / "data", "0123456789"), (scene_folder, None)):
        assert find_scene(root, name) == scene_folder
    with pytest.raises(UserError, match=r"ffff is not there; scenes: 0123456789"):
        find_scene(tmp_path, "ffff")


# --------------------------------------------------------------------------------------------------------- bad input


def rewrite(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def transforms(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write_transforms(folder, **changes)


def cut(path: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        whole = (folder / path).read_bytes()
        (folder / path).write_bytes(whole[: len(whole) // 2])

    return apply


def fisheye_only(folder: Path) -> None:
    path = folder / "dslr/nerfstudio/transforms_undistorted.json"
    path.rename(path.with_name("transforms.json"))


def stray_face(folder: Path) -> None:
    write_ply(folder / "scans/mesh_aligned_0.05.ply", square(0, 1, 1.0), np.array([[0, 1, 99]]))


def other_shape(folder: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8)).save(folder / "dslr/undistorted_images" / NAMES[0])


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "fisheye only": (fisheye_only, r"transforms\.json: camera_model is PINHOLE, not OPENCV_FISHEYE"),
    "no transforms": (remove("dslr/nerfstudio/transforms_undistorted.json"), r"no such file: check data\.root"),
    "cut transforms": (cut("dslr/nerfstudio/transforms_undistorted.json"), r"is no JSON file"),
    "distorted": (transforms(camera_model="OPENCV_FISHEYE"), r"camera_model is OPENCV_FISHEYE, not PINHOLE"),
    "no frames": (transforms(frames=None), r"has no list of frames"),
    "no name": (transforms(frames=[{"transform_matrix": np.eye(4).tolist()}]), r"a frame without file_path"),
    "no matrix": (transforms(frames=[{"file_path": NAMES[0]}]), r"DSC00001\.JPG has no 4x4 transform_matrix"),
    "no rotation": (
        transforms(frames=[{"file_path": NAMES[0], "transform_matrix": (2 * np.eye(4)).tolist()}]),
        r"DSC00001\.JPG is no rotation",
    ),
    "zero focal length": (transforms(fl_x=0.0), r"focal length \(0, 32\)"),
    "no focal length": (transforms(fl_x=None), r"w, h, fl_x, fl_y, cx or cy is missing"),
    "other shape": (other_shape, r"DSC00001\.JPG: is 80x30, the intrinsics in .* are for 40x30"),
    "missing image": (remove(f"dslr/undistorted_images/{NAMES[2]}"), r"DSC00003\.JPG: no such file"),
    "garbled poses": (rewrite("dslr/colmap/images.txt", "1 a b\n\n"), r"'1 a b' is not IMAGE_ID QW"),
    "other images": (rewrite("dslr/colmap/images.txt", "1 1 0 0 0 0 0 0 1 x.JPG\n\n"), r"has no image DSC00001\.JPG"),
    "lists": (rewrite("dslr/train_test_lists.json", '{"train": []}'), r'is not \{"train"'),
    "strange lists": (rewrite("dslr/train_test_lists.json", '{"train": ["x"], "test": []}'), r"names x, which"),
    "both lists": (
        rewrite("dslr/train_test_lists.json", json.dumps({"train": NAMES[:2], "test": NAMES[1:3]})),
        r"DSC00002\.JPG is both train and test",
    ),
    "no training": (rewrite("dslr/train_test_lists.json", '{"train": [], "test": []}'), r"no training frames are left"),
    "no mesh": (remove("scans/mesh_aligned_0.05.ply"), r"mesh_aligned_0\.05\.ply: no such file"),
    "cut mesh": (cut("scans/mesh_aligned_0.05.ply"), r"is no whole PLY file of triangles"),
    "stray face": (stray_face, r"name vertices that it does not have"),
    "no segments": (remove("scans/segments.json"), r"segments\.json: no such file"),
    "short segments": (rewrite("scans/segments.json", '{"segIndices": [1]}'), r"has 1 vertices, the mesh 12"),
    "no groups": (rewrite("scans/segments_anno.json", "{}"), r"has no list segGroups"),
    "object 0": (
        rewrite("scans/segments_anno.json", '{"segGroups": [{"objectId": 0, "label": "x", "segments": []}]}'),
        r"objectId 0 is not in 1 \.\.\. 65535",
    ),
    "shared label": (
        rewrite(
            "classes.json",
            '{"classes": [{"id": 1, "name": "a", "thing": false, "labels": ["x"]}, '
            '{"id": 2, "name": "b", "thing": false, "labels": ["x"]}]}',
        ),
        r"the raw label 'x' belongs to two classes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_file_in_one_line(scene_folder: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(scene_folder)
    with pytest.raises(UserError, match=message) as caught:
        open_scene(scene_folder, masks=None).source.load(0)
    assert "\n" not in str(caught.value)


def test_a_mesh_is_read_whether_text_or_binary(tmp_path: Path) -> None:
    vertices, faces = square(0, 1, 2.0), np.array([[0, 1, 2], [0, 2, 3]])
    for text in (False, True):
        write_ply(tmp_path / "m.ply", vertices, faces, text=text)
        found = read_mesh(tmp_path / "m.ply")
        np.testing.assert_array_equal(found[0], vertices)
        np.testing.assert_array_equal(found[1], faces)


def test_masks_must_be_there_for_every_training_frame(scene_folder: Path) -> None:
    for kind in ("semantic_image", "instance_image"):
        (scene_folder / "masks_own" / kind).mkdir(parents=True)
        Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(scene_folder / "masks_own" / kind / "DSC00001.png")
    with pytest.raises(UserError, match=r"has no mask of training frame DSC00002 \(3 such frames\)"):
        open_scene(scene_folder, masks="own")
