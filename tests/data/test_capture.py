"""Captures: a room comes back as it was through every form, and what is wrong is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from panbench.cli.data import main
from panbench.data import scannet_reader
from panbench.data.capture import Capture, CaptureFrame, ImportOptions, write_capture
from panbench.data.capture_export import write_colmap, write_nerfstudio, write_panoptic_lifting, write_rgbd
from panbench.data.importers import detect, read_capture
from panbench.data.nerfstudio import read_nerfstudio
from panbench.data.npy import parse_npy
from panbench.data.point_cloud import read_point_cloud
from panbench.data.rgbd import read_trajectory
from panbench.data.rooms import make_room
from panbench.data.scannet import ScanNetDataModule
from panbench.data.undistort import Lens
from panbench.errors import UserError
from panbench.masks.mask_set import MaskSet, content_hash
from panbench.scene import Points, Scene

WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "nerfstudio": write_nerfstudio, "colmap": write_colmap, "rgbd": write_rgbd,
    "panoptic-lifting": write_panoptic_lifting,
}  # fmt: skip
WIDTH, HEIGHT = 40, 30


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=5, masks=("medium",), progress=False)


@pytest.fixture(scope="module")
def captures(room: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The room in every form."""
    out = tmp_path_factory.mktemp("captures")
    return {kind: write(room, out / kind) for kind, write in WRITERS.items()}


def imported(source: Path, out: Path, **options: Any) -> Path:
    return write_capture(read_capture(source, detect(source)), out, options=ImportOptions(**options), progress=False)


def opened(folder: Path, masks: str = "medium", **options: Any) -> Scene:
    return scannet_reader.open_scene(folder, masks=masks, **options)


def tiny_image(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def transforms(tmp_path: Path) -> Path:
    """A small nerfstudio folder of three images without depth."""
    folder = tmp_path / "phone"
    frames = []
    for k in range(3):
        tiny_image(folder / "images" / f"frame_{k + 8}.png", k)
        pose = np.eye(4)
        pose[0, 3] = 0.1 * k
        frames.append({"file_path": f"./images/frame_{k + 8}.png", "transform_matrix": pose.tolist()})
    data = {"fl_x": 32.0, "fl_y": 33.0, "cx": 20.0, "cy": 15.0, "w": WIDTH, "h": HEIGHT, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(data))
    return folder


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "transforms.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("kind", WRITERS)
def test_a_room_comes_back_as_it_was(room: Path, captures: dict[str, Path], tmp_path: Path, kind: str) -> None:
    assert detect(captures[kind]) == kind
    folder = imported(captures[kind], tmp_path)
    masks = "m2f" if kind == "panoptic-lifting" else "medium"
    before, after = opened(room), opened(folder, masks)
    assert after.synthetic
    for part in ("train", "test"):
        names = [[s.source.name(i) for i in getattr(s, part)] for s in (before, after)]
        assert len(names[0]) == len(names[1])
        for one, other in zip(getattr(before, part), getattr(after, part), strict=True):
            a, b = before.source.load(one), after.source.load(other)
            np.testing.assert_array_equal(a.color, b.color)
            assert a.depth is not None
            assert b.depth is not None
            np.testing.assert_array_equal(a.depth, b.depth)
            np.testing.assert_allclose(a.camera.world_to_camera, b.camera.world_to_camera, atol=1e-6)
            for key in ("fx", "fy", "cx", "cy"):
                assert getattr(a.camera, key) == pytest.approx(getattr(b.camera, key), abs=1e-6)
            assert a.truth is not None
            assert b.truth is not None
            np.testing.assert_array_equal(a.truth.semantic, b.truth.semantic)
            np.testing.assert_array_equal(a.truth.instance, b.truth.instance)
            assert a.masks is not None
            assert b.masks is not None
            np.testing.assert_array_equal(a.masks.semantic, b.masks.semantic)
            assert a.masks.score is not None
            assert b.masks.score is not None
            np.testing.assert_allclose(a.masks.score, b.masks.score, atol=1e-6)
            if kind != "panoptic-lifting":
                np.testing.assert_array_equal(a.masks.instance, b.masks.instance)
                continue
            # Its ids are numbered anew: the same pixels share one, and they begin at 1.
            pairs = {(int(x), int(y)) for x, y in zip(a.masks.instance.ravel(), b.masks.instance.ravel(), strict=True)}
            assert len({x for x, _ in pairs}) == len({y for _, y in pairs}) == len(pairs)
            assert b.masks.instance.max() == len(pairs) - (0 in a.masks.instance)


@pytest.mark.parametrize("kind", ["nerfstudio", "colmap"])
def test_the_cloud_comes_along_in_the_world_of_the_poses(
    room: Path, captures: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = imported(captures[kind], tmp_path)
    scene = ScanNetDataModule(root=str(folder), point_cloud="points.ply").open_scene()
    assert scene.point_cloud is not None
    frame = scene.source.load(scene.train[0])
    assert frame.depth is not None
    cast = scene.point_cloud.depth(frame.camera)
    both = (cast > 0) & (frame.depth.numpy() > 0)
    assert both.mean() > 0.05
    # The sensor's noise, and pixels whose points lie on either side of an edge.
    assert np.median(np.abs(cast - frame.depth.numpy())[both]) < 0.02


@pytest.mark.parametrize(
    "lens",
    [
        Lens("opencv", 160, 120, 150.0, 148.0, 80.0, 60.0, (-0.12, 0.02, 0.001, -0.002, 0.0)),
        Lens("fisheye", 160, 120, 150.0, 150.0, 80.0, 60.0, (0.02, -0.004, 0.001, 0.0)),
    ],
    ids=["opencv", "fisheye"],
)
def test_a_distorted_capture_of_the_room_is_undone(room: Path, tmp_path: Path, lens: Lens) -> None:
    pytest.importorskip("cv2")
    folder = imported(write_nerfstudio(room, tmp_path / "bent", lens), tmp_path / "scenes")
    before = opened(room)
    after = opened(folder)
    for one, other in zip(before.train[:3], after.train[:3], strict=True):
        a, b = before.source.load(one), after.source.load(other)
        np.testing.assert_allclose(a.camera.world_to_camera, b.camera.world_to_camera, atol=1e-6)
        # Look each of the new pixels up in the room's own image.
        rays = b.camera.rays().numpy()
        column = np.floor(rays[..., 0] * a.camera.fx + a.camera.cx).astype(int)
        row = np.floor(rays[..., 1] * a.camera.fy + a.camera.cy).astype(int)
        inside = (column >= 1) & (column < a.camera.width - 1) & (row >= 1) & (row < a.camera.height - 1)
        assert inside.mean() > 0.9
        row, column = row.clip(0, a.camera.height - 1), column.clip(0, a.camera.width - 1)
        assert a.truth is not None
        assert b.truth is not None
        # Twice a pixel was picked, so that edges move by one pixel at most.
        same = np.zeros(inside.shape, dtype=bool)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                r, c = (row + dy).clip(0, a.camera.height - 1), (column + dx).clip(0, a.camera.width - 1)
                same |= a.truth.instance.numpy()[r, c] == b.truth.instance.numpy()
        assert same[inside].mean() > 0.999
        exact = a.truth.instance.numpy()[row, column] == b.truth.instance.numpy()
        assert exact[inside].mean() > 0.95
        off = np.abs(a.color.numpy()[row, column].astype(int) - b.color.numpy().astype(int))[inside]
        assert np.median(off) <= 4
        assert a.depth is not None
        assert b.depth is not None
        apart = np.abs(a.depth.numpy()[row, column] - b.depth.numpy())[inside]
        assert np.quantile(apart, 0.8) < 0.03


def test_a_binary_colmap_model_with_another_camera_is_read(captures: dict[str, Path], tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    source = shutil.copytree(captures["colmap"], tmp_path / "binary")
    model = source / "sparse" / "0"
    text = (model / "cameras.txt").read_text()
    (model / "cameras.txt").write_text(text.replace("PINHOLE 160 120", "SIMPLE_RADIAL 160 120"))
    words = (model / "cameras.txt").read_text().splitlines()[-1].split()
    (model / "cameras.txt").write_text(" ".join([*words[:5], words[6], words[7], "0.05"]) + "\n")
    pycolmap.Reconstruction(str(model)).write_binary(str(model))
    for name in ("cameras", "images", "points3D"):
        (model / f"{name}.txt").unlink()
    capture = read_capture(source, "colmap")
    assert {frame.lens.model for frame in capture.frames} == {"opencv"}
    assert capture.frames[0].lens.coefficients[:4] == (0.05, 0.0, 0.0, 0.0)
    after = opened(write_capture(capture, tmp_path / "scenes", progress=False))
    before = opened(imported(captures["colmap"], tmp_path / "plain"))
    np.testing.assert_allclose(
        before.source.camera(0).world_to_camera, after.source.camera(0).world_to_camera, atol=1e-6
    )


def test_poses_survive_the_text_to_a_millionth(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    tiny_image(tmp_path / "a.png")
    poses = []
    for _ in range(20):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=random.integers(1 << 30)).as_matrix()
        pose[:3, 3] = random.uniform(-2, 2, 3)
        poses.append(pose)
    lens = Lens("pinhole", WIDTH, HEIGHT, 32.0, 32.0, 20.0, 15.0, ())
    frames = [CaptureFrame(f"{k}.png", tmp_path / "a.png", lens, pose) for k, pose in enumerate(poses)]
    capture = Capture("rgbd", tmp_path, None, frames, classes={"classes": [{"id": 1, "name": "wall", "thing": False}]})
    scene = opened(write_capture(capture, tmp_path / "out", "scene", progress=False), "none", test_every=0)
    for k, pose in enumerate(poses):
        np.testing.assert_allclose(scene.source.camera(k).world_to_camera, np.linalg.inv(pose), atol=1e-6)


# ----------------------------------------------------------------------------------------------------- what is recorded


def test_the_record_names_source_options_and_frames(captures: dict[str, Path], tmp_path: Path) -> None:
    folder = imported(captures["nerfstudio"], tmp_path, count=3, select="coverage")
    record = json.loads((folder / "import.json").read_text())
    scene = opened(folder)
    assert record["from"] == "nerfstudio"
    assert record["index"]["file"] == "transforms.json"
    assert record["options"]["count"] == 3
    assert record["options"]["select"] == "coverage"
    assert len(scene.train) == 3
    used = {scene.source.name(i) for i in (*scene.train, *scene.test)}
    assert set(record["frames"]) == used
    assert all(name == f"images/{number}.jpg" for number, name in record["frames"].items())


def test_images_that_need_no_change_are_the_source_s_bytes(captures: dict[str, Path], tmp_path: Path) -> None:
    folder = imported(captures["colmap"], tmp_path)
    for path in (folder / "color").iterdir():
        assert path.read_bytes() == (captures["colmap"] / "images" / path.name).read_bytes()
    for path in (folder / "depth").iterdir():
        assert path.read_bytes() == (captures["colmap"] / "depth" / path.name).read_bytes()


def test_the_masks_manifest_is_true_after_the_import(captures: dict[str, Path], tmp_path: Path) -> None:
    folder = imported(captures["panoptic-lifting"], tmp_path, stride=2) / "masks_m2f"
    manifest = MaskSet.open(folder).manifest
    assert manifest is not None
    assert manifest.generator == "Mask2Former"
    assert manifest.frames == sorted(p.stem for p in (folder / "semantic_image").iterdir())
    assert manifest.sha256 == content_hash(folder, manifest.frames)


def test_the_chosen_frames_are_those_of_the_data_module(room: Path) -> None:
    for how in ("even", "sharpest", "coverage"):
        scene = ScanNetDataModule(root=str(room), views=3, select=how).open_scene()  # pyright: ignore[reportArgumentType]
        assert len(scene.train) == 3
        again = ScanNetDataModule(root=str(room), views=3, select=how).open_scene()  # pyright: ignore[reportArgumentType]
        assert [scene.source.name(i) for i in scene.train] == [again.source.name(i) for i in again.train]


def test_an_import_is_replaced_and_nothing_else_is(transforms: Path, tmp_path: Path) -> None:
    first = imported(transforms, tmp_path / "out")
    (first / "stale").touch()
    assert not (imported(transforms, tmp_path / "out") / "stale").exists()
    (first / "import.json").unlink()
    with pytest.raises(UserError, match=r"not written by panbench \(no import\.json in it\)"):
        imported(transforms, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["phone"]


def test_a_failed_import_leaves_nothing(transforms: Path, tmp_path: Path) -> None:
    (transforms / "images" / "frame_9.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"frame_9\.png"):
        imported(transforms, tmp_path / "out")
    assert list((tmp_path / "out").glob("*")) == []


def test_the_command_line_imports(transforms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text('{"classes": [{"id": 1, "name": "wall", "thing": false}]}')
    arguments = ["import", str(transforms), "--out", str(tmp_path / "out"), "--quiet", "--name", "my scene"]
    assert main(arguments) == 0
    assert "has no classes.json yet" in caplog.text
    assert main([*arguments, "--classes", str(classes), "--scale", "2", "--stride", "2"]) == 0
    folder = tmp_path / "out" / "my_scene"
    scene = opened(folder, "none", test_every=0)
    assert len(scene.source) == 2
    assert scene.source.camera(1).position.tolist() == pytest.approx([0.4, 0, 0])  # 2 × 0.2 m, every second of three
    assert json.loads((folder / "import.json").read_text())["left_out"] == 1


# ----------------------------------------------------------------------------------------------------------- nerfstudio


def test_opengl_axes_and_the_applied_transform_are_undone_by_hand(transforms: Path) -> None:
    # A camera at (1, 2, 3) that looks along world y, image up along z: x right, y up, -z forward.
    true = np.array([[1.0, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]])
    applied = np.array([[1.0, 0, 0, 0.5], [0, 0, 1, 0], [0, -1, 0, 0]])
    moved = np.vstack([applied, [0, 0, 0, 1]]) @ true
    moved[:3, 3] *= 2.0
    data = json.loads((transforms / "transforms.json").read_text())
    data["frames"][0]["transform_matrix"] = moved.tolist()
    changed(transforms, frames=data["frames"], applied_transform=applied.tolist(), applied_scale=2.0)
    pose = read_nerfstudio(transforms).frames[0].camera_to_world
    # OpenCV axes: x right, y down = -z of the world, z forward = y of the world.
    expected = np.array([[1.0, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, 3], [0, 0, 0, 1]])
    np.testing.assert_allclose(pose, expected, atol=1e-12)


def test_values_of_a_frame_go_before_those_of_all(transforms: Path, tmp_path: Path) -> None:
    data = json.loads((transforms / "transforms.json").read_text())
    for k, row in enumerate(data["frames"]):
        row["fl_x"] = 32.0 + k
    changed(transforms, frames=data["frames"])
    capture = read_nerfstudio(transforms)
    assert [f.lens.fx for f in capture.frames] == [32.0, 33.0, 34.0]
    pytest.importorskip("cv2")
    folder = write_capture(capture, tmp_path / "out", progress=False)
    # All get the view of the narrowest; only that one's image is as it was.
    assert float((folder / "intrinsic" / "intrinsic_color.txt").read_text().split()[0]) == 34.0
    same = [
        (folder / "color" / f"{k}.png").read_bytes() == (transforms / "images" / f"frame_{k + 8}.png").read_bytes()
        for k in range(3)
    ]
    assert same == [False, False, True]


def test_frames_keep_the_order_of_the_file_and_hidden_pixels_lose_depth(transforms: Path, tmp_path: Path) -> None:
    data = json.loads((transforms / "transforms.json").read_text())
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :10] = 0
    for k, row in enumerate(data["frames"]):
        depth = np.full((HEIGHT // 2, WIDTH // 2), 0.5 * (k + 1), np.float32)
        (transforms / "depth").mkdir(exist_ok=True)
        np.save(transforms / "depth" / f"{k}.npy", depth)
        row["depth_file_path"] = f"depth/{k}.npy"
    Image.fromarray(mask).save(transforms / "mask.png")
    data["frames"][1]["mask_path"] = "mask.png"
    changed(transforms, frames=data["frames"], depth_unit_scale_factor=1.0)
    (transforms / "classes.json").write_text('{"classes": [{"id": 1, "name": "wall", "thing": false}]}')
    scene = opened(imported(transforms, tmp_path / "out"), "none", test_every=0)
    depths = [scene.source.load(k).depth for k in range(3)]
    assert all(d is not None for d in depths)
    assert [float(d[-1, -1]) for d in depths if d is not None] == [0.5, 1.0, 1.5]
    assert depths[1] is not None
    assert depths[1][:, :10].abs().max() == 0
    assert depths[1][:, 10:].min() == 1.0


def test_a_lost_frame_is_left_out_and_named(transforms: Path, tmp_path: Path) -> None:
    data = json.loads((transforms / "transforms.json").read_text())
    data["frames"][1]["transform_matrix"][0][3] = float("nan")
    changed(transforms, frames=data["frames"])
    folder = imported(transforms, tmp_path / "out")
    record = json.loads((folder / "import.json").read_text())
    assert record["lost"] == ["images/frame_9.png"]
    assert sorted(record["frames"]) == ["0", "2"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": []}, "has no list of frames"),
        ({"frames": [{"transform_matrix": []}]}, "has a frame without file_path"),
        ({"frames": [{"file_path": "images/frame_8.png"}]}, "transform_matrix of images/frame_8.png"),
        ({"frames": [{"file_path": "../../etc/passwd", "transform_matrix": np.eye(4).tolist()}]}, "lies outside"),
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model EQUIRECTANGULAR is not supported"),
        ({"fl_x": "wide"}, "fl_x is wide, not a number"),
        ({"fl_x": -3}, "is not positive"),
        ({"k4": 0.1}, "k4 is 0.1"),
        ({"w": 30, "h": 40}, "turn the image as the camera saw it"),
        ({"applied_transform": [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]}, "applied_transform is no rotation"),
        ({"train_filenames": ["x.png"]}, "train_filenames names x.png"),
        ({"train_filenames": ["images/frame_8.png"], "test_filenames": ["images/frame_8.png"]}, "both train and test"),
        ({"ply_file_path": "none.ply"}, "no such file"),
    ],
)
def test_bad_transforms_are_one_line(transforms: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        imported(changed(transforms, **changes), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "phone").exists()


# ----------------------------------------------------------------------------------------------------- COLMAP and RGB-D


def test_an_unknown_camera_model_names_the_remedy(captures: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    source = shutil.copytree(captures["colmap"], tmp_path / "fov")
    (source / "sparse" / "0" / "cameras.txt").write_text("1 FOV 160 120 144 144 80 60 0.9\n")
    with pytest.raises(UserError, match=r"camera of model FOV, .* colmap image_undistorter"):
        read_capture(source, "colmap")


def test_a_damaged_model_is_one_line(captures: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    source = shutil.copytree(captures["colmap"], tmp_path / "cut")
    (source / "sparse" / "0" / "images.txt").write_text("1 0.5 zero\n")
    with pytest.raises(UserError, match="is no whole COLMAP model"):
        read_capture(source, "colmap")
    (source / "sparse" / "0" / "points3D.txt").unlink()
    with pytest.raises(UserError, match=r"points3D\.bin: no such file, nor points3D\.txt"):
        read_capture(source, "colmap")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cameras.txt", b"1 PINHOLE 160 120 144\n"),  # too few parameters: COLMAP ends the process
        ("images.txt", b"1 nan nan nan nan 0 0 0 1 0.jpg\n\n"),
        ("points3D.bin", b"\xff" * 64),  # 2^64 - 1 points
        ("images.bin", b"\xff\xff\xff\xff\xff\0\0\0"),
    ],
    ids=["parameters", "nan", "points", "images"],
)
def test_a_hostile_model_costs_a_line_not_the_process(
    captures: dict[str, Path], tmp_path: Path, name: str, content: bytes
) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    source = shutil.copytree(captures["colmap"], tmp_path / "hostile")
    model = source / "sparse" / "0"
    if name.endswith(".bin"):
        pycolmap.Reconstruction(str(model)).write_binary(str(model))
        for path in model.glob("*.txt"):
            path.unlink()
    (model / name).write_bytes(content)
    with pytest.raises(UserError, match="hostile") as caught:
        imported(source, tmp_path / "out")
    assert "\n" not in str(caught.value)


def rgbd_folder(folder: Path, stems: list[str]) -> Path:
    for k, stem in enumerate(stems):
        tiny_image(folder / "rgb" / f"{stem}.png", k)
    (folder / "intrinsics.txt").write_text("32 0 19.5\n0 32 14.5\n0 0 1\n")
    return folder


def test_tum_lines_are_matched_by_time(tmp_path: Path) -> None:
    folder = rgbd_folder(tmp_path / "tum", ["1305031102.1753", "1305031102.2112", "1305031103.0"])
    (folder / "depth").mkdir()
    for stem in ("1305031102.1603", "1305031102.2262", "1305031103.0100"):
        Image.fromarray(np.full((HEIGHT, WIDTH), 5000, np.uint16)).save(folder / "depth" / f"{stem}.png")
    lines = ["# ground truth", "1305031102.1758 1 2 3 0 0 0 1", "1305031102.2000 9 9 9 0 0 0 1"]
    lines += ["1305031102.2110 4 5 6 0 0 0.7071067811865476 0.7071067811865476"]
    (folder / "groundtruth.txt").write_text("\n".join(lines))
    capture = read_capture(folder, "rgbd", depth_scale=5000.0)
    first, second, lost = (f.camera_to_world for f in capture.frames)
    np.testing.assert_allclose(first[:3, 3], [1, 2, 3])
    np.testing.assert_allclose(second[:3, 3], [4, 5, 6])
    np.testing.assert_allclose(second[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    assert not np.isfinite(lost).all()
    (folder / "classes.json").write_text('{"classes": [{"id": 1, "name": "wall", "thing": false}]}')
    capture = replace(capture, classes=folder / "classes.json")
    scene = opened(write_capture(capture, tmp_path / "out", progress=False), "none", test_every=0)
    assert len(scene.source) == 2
    depth = scene.source.load(0).depth
    assert depth is not None
    assert depth.unique().tolist() == [1.0]


def test_poses_of_other_conventions_are_turned(tmp_path: Path) -> None:
    folder = rgbd_folder(tmp_path / "gl", ["a", "b"])
    true = np.eye(4)
    true[:3, :3] = Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix()
    true[:3, 3] = [1, -2, 0.5]
    (folder / "pose").mkdir()
    for stem in "ab":
        np.savetxt(folder / "pose" / f"{stem}.txt", np.linalg.inv(true @ np.diag([1.0, -1, -1, 1])))
    capture = read_capture(folder, "rgbd", convention="opengl", world_to_camera=True)
    for frame in capture.frames:
        np.testing.assert_allclose(frame.camera_to_world, true, atol=1e-12)


def test_a_line_of_sixteen_numbers_per_image(tmp_path: Path) -> None:
    folder = rgbd_folder(tmp_path / "replica", ["frame_2", "frame_10"])
    one, other = np.eye(4), np.eye(4)
    other[:3, 3] = [1, 2, 3]
    np.savetxt(folder / "traj.txt", np.stack([one.ravel(), other.ravel()]))
    frames = read_capture(folder, detect(folder)).frames
    assert [f.name for f in frames] == ["frame_2.png", "frame_10.png"]
    np.testing.assert_array_equal(frames[1].camera_to_world, other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no poses"),
        ("0 1 2 3 0 0 0\n", "has 7 numbers"),
        ("0 1 2 3 0 0 0 1\n1 2\n", "has 2 numbers"),
        ("0 1 2 3 zero 0 0 1\n", "holds no numbers"),
        ("nan 1 2 3 0 0 0 1\n", "time that is not finite"),
    ],
)
def test_a_bad_trajectory_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "trajectory.txt").write_text(text)
    with pytest.raises(UserError, match=says):
        read_trajectory(tmp_path / "trajectory.txt")


def test_what_is_missing_in_a_plain_folder_is_named(tmp_path: Path) -> None:
    folder = rgbd_folder(tmp_path / "plain", ["a", "b"])
    with pytest.raises(UserError, match="is no capture that is known"):
        detect(folder)
    with pytest.raises(UserError, match="has no folder pose/ and no trajectory"):
        read_capture(folder, "rgbd")
    (folder / "trajectory.txt").write_text("0 0 0 0 0 0 0 1\n")
    with pytest.raises(UserError, match="has 1 poses for 2 images"):
        read_capture(folder, "rgbd")
    (folder / "intrinsics.txt").unlink()
    (folder / "trajectory.txt").write_text("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n")
    with pytest.raises(UserError, match=r"intrinsics\.txt: no such file"):
        read_capture(folder, "rgbd")


def test_our_own_layout_needs_no_import(room: Path) -> None:
    with pytest.raises(UserError, match="is in the exported ScanNet layout already"):
        detect(room)


# ----------------------------------------------------------------------------------------------------- panoptic lifting


def test_the_pickle_of_panoptic_lifting_is_never_opened(captures: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(captures["panoptic-lifting"], tmp_path / "pickled")
    # Unpickling this would make a file.
    trap = tmp_path / "trap"
    (source / "segmentation_data.pkl").write_bytes(
        b"cpathlib\nPath\n(S'" + str(trap).encode() + b"'\ntR.cpathlib\nPath.touch\n"
    )
    imported(source, tmp_path / "out")
    assert not trap.exists()


def test_without_classes_those_of_its_scannet_scenes_are_taken(captures: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(captures["panoptic-lifting"], tmp_path / "bare")
    (source / "classes.json").unlink()
    folder = imported(source, tmp_path / "out")
    labels = opened(folder, "m2f").labels
    assert labels.names()[:3] == ["void", "wall", "floor"]
    assert [c.name for c in labels.classes if c.thing][:2] == ["bed", "chair"]
    assert labels.raw_to_class == {k: k for k in range(1, 22)}


def test_invalid_pixels_of_panoptic_lifting_count_as_void(captures: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(captures["panoptic-lifting"], tmp_path / "invalid")
    stem = next((source / "m2f_semantics").iterdir()).stem
    size = Image.open(source / "color" / f"{stem}.jpg").size
    nothing = np.zeros((size[1], size[0]), np.uint8)
    nothing[:8] = 255
    for folder, _suffix in (("m2f_invalid", "png"), ("invalid", "jpg")):
        (source / folder).mkdir()
    Image.fromarray(nothing).save(source / "m2f_invalid" / f"{stem}.png")
    Image.fromarray(nothing[::-1]).save(source / "invalid" / f"{stem}.jpg")
    folder = imported(source, tmp_path / "out")
    masks = MaskSet.open(folder / "masks_m2f").read(stem)
    assert not masks.semantic[:8].any()
    assert not masks.semantic[-8:].any()
    assert masks.semantic[8:-8].any()
    depth = np.array(Image.open(folder / "depth" / f"{stem}.png"))
    assert not depth[-8:].any()


def test_confidence_may_be_smaller_than_the_image(captures: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(captures["panoptic-lifting"], tmp_path / "small")
    for path in (source / "m2f_probabilities").iterdir():
        np.savez(path, confidence=np.full((30, 40), 0.6, np.float32), probability=np.zeros((30, 40, 2), np.float32))
    masks = MaskSet.open(imported(source, tmp_path / "out") / "masks_m2f")
    score = masks.read(masks.stems()[0]).score
    assert score is not None
    assert np.unique(score).tolist() == [153]
    damaged = next((source / "m2f_probabilities").iterdir())
    np.savez(damaged, probability=np.zeros((30, 40, 2), np.float32))
    with pytest.raises(UserError, match="has no array confidence that can be read"):
        imported(source, tmp_path / "out")
    damaged.write_bytes(b"PK")
    with pytest.raises(UserError, match="is no whole ZIP archive"):
        imported(source, tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- arrays


def test_arrays_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    data = (tmp_path / "a.npy").read_bytes()
    np.testing.assert_array_equal(parse_npy(data), np.arange(6).reshape(2, 3))
    huge = data.replace(b"(2, 3)", b"(99999999, 99999999)".ljust(6))
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    for bad in (b"", data[:40], data[:-4], huge, (tmp_path / "o.npy").read_bytes()):
        with pytest.raises(ValueError, match=r"."):
            parse_npy(bad)


def test_a_cloud_that_a_capture_names_is_scaled_with_it(transforms: Path, tmp_path: Path) -> None:
    from panbench.data.point_cloud import write_ply

    write_ply(transforms / "cloud.ply", Points(np.array([[1, 2, 3]], dtype=np.float32)))
    folder = imported(changed(transforms, ply_file_path="cloud.ply"), tmp_path / "out", scale=0.5)
    np.testing.assert_allclose(read_point_cloud(folder / "points.ply").positions, [[0.5, 1, 1.5]])
