"""Procedural rooms: the files are ScanNet's, their parts agree with one another, and a seed says it all."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

from panbench.cli.data import main
from panbench.data import rooms
from panbench.data.mask_noise import PRESETS
from panbench.data.room_export import RAW_LABELS
from panbench.data.room_layout import design_room, inside
from panbench.data.rooms import make_room
from panbench.errors import UserError
from panbench.masks.mask_set import MaskSet, content_hash
from panbench.scene import LabelSpace


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=4, progress=False)


def _image(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertex table and triangles of a binary PLY, read by its header."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    kinds = {"float": "<f4", "uchar": "u1", "ushort": "<u2"}
    lines = [line.split() for line in head.decode().splitlines()]
    count, triangles = (int(line[2]) for line in lines if line[0] == "element")
    fields = [(line[2], kinds[line[1]]) for line in lines if line[0] == "property" and line[1] != "list"]
    vertices = np.frombuffer(body, dtype=fields, count=count)
    faces = np.frombuffer(body, dtype=[("n", "u1"), ("v", "<i4", 3)], count=triangles, offset=vertices.nbytes)
    assert vertices.nbytes + faces.nbytes == len(body)
    return vertices, faces["v"]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_the_folder_has_every_file_of_the_exported_layout(scene: Path) -> None:
    name = scene.name
    assert name == "scene9104_00"
    assert (scene.parent / "scannetv2-labels.combined.tsv").is_file()
    mesh = f"{name}_vh_clean_2"
    for file in (
        f"{name}.txt", f"{mesh}.ply", f"{mesh}.labels.ply", f"{mesh}.0.010000.segs.json", f"{name}.aggregation.json",
        "classes.json", "splits.json", "stats.json", "masks_scores.json", "gt/depth_gt.npz", "gt/poses_gt.npy",
        "intrinsic/intrinsic_color.txt", "intrinsic/extrinsic_depth.txt",
    ):  # fmt: skip
        assert (scene / file).is_file(), file
    stems = {str(k) for k in range(10)}
    folders = ["color", "depth", "pose", "label-filt", "instance-filt"]
    folders += [
        f"masks_{m}/{p}"
        for m in ("clean", "light", "medium", "heavy")
        for p in ("semantic_image", "instance_image", "score")
    ]
    for folder in folders:
        assert {p.stem for p in (scene / folder).iterdir()} == stems, folder
    assert json.loads((scene / "synthetic.json").read_text()) == {
        "generator": "panbench rooms", "version": 1, "size": "tiny", "seed": 4,
    }  # fmt: skip
    assert {p.name for p in scene.parent.iterdir()} == {name, "scannetv2-labels.combined.tsv"}


def test_images_have_the_types_that_readers_expect(scene: Path) -> None:
    for k in range(10):
        assert _image(scene / "color" / f"{k}.jpg").shape == (120, 160, 3)
        assert _image(scene / "depth" / f"{k}.png").dtype == np.uint16
        assert _image(scene / "label-filt" / f"{k}.png").dtype == np.uint16
        assert _image(scene / "instance-filt" / f"{k}.png").dtype == np.uint8


def test_principal_points_use_integer_pixel_centres(scene: Path) -> None:
    for kind in ("color", "depth"):
        k = np.loadtxt(scene / "intrinsic" / f"intrinsic_{kind}.txt")
        assert k[0, 2] == (160 - 1) / 2
        assert k[1, 2] == (120 - 1) / 2
        assert k[0, 0] == k[1, 1] > 0
    text = dict(line.split(" = ") for line in (scene / f"{scene.name}.txt").read_text().splitlines())
    assert float(text["mx_depth"]) == 79.5
    assert text["numColorFrames"] == "10"


def test_lost_frames_have_no_pose_and_every_fifth_kept_frame_is_a_test_frame(scene: Path) -> None:
    poses = {p.stem: np.loadtxt(p) for p in (scene / "pose").iterdir()}
    split = json.loads((scene / "splits.json").read_text())
    lost = {stem for stem, pose in poses.items() if not np.isfinite(pose).all()}
    assert set(split["lost"]) == lost
    assert lost
    assert all((poses[stem] == -np.inf).all() for stem in lost)
    kept = sorted((s for s in poses if s not in lost), key=int)
    assert split["test"] == kept[::5]
    assert split["train"] == [s for s in kept if s not in kept[::5]]


def test_annotation_leads_from_vertex_to_segment_to_object_to_label(scene: Path) -> None:
    vertices, faces = _ply(scene / f"{scene.name}_vh_clean_2.ply")
    labelled, _ = _ply(scene / f"{scene.name}_vh_clean_2.labels.ply")
    segments = json.loads((scene / f"{scene.name}_vh_clean_2.0.010000.segs.json").read_text())["segIndices"]
    groups = json.loads((scene / f"{scene.name}.aggregation.json").read_text())["segGroups"]
    assert len(segments) == len(vertices) == len(labelled)
    assert faces.max() < len(vertices)
    table = [line.split("\t") for line in (scene.parent / "scannetv2-labels.combined.tsv").read_text().splitlines()]
    assert len(table[0]) == 17
    nyu = {row[table[0].index("raw_category")]: int(row[table[0].index("nyu40id")]) for row in table[1:]}
    owner = {segment: group for group in groups for segment in group["segments"]}
    assert len(owner) == sum(len(group["segments"]) for group in groups)
    assert [nyu[owner[s]["label"]] for s in segments] == labelled["label"].tolist()


def test_true_depth_lies_on_the_mesh_of_the_object_that_the_pixel_shows(scene: Path) -> None:
    """Back-projects true depths by the written poses and intrinsics (integer centres) and looks up the mesh."""
    vertices, _ = _ply(scene / f"{scene.name}_vh_clean_2.ply")
    tree = KDTree(np.stack([vertices[k] for k in "xyz"], -1))
    segments = json.loads((scene / f"{scene.name}_vh_clean_2.0.010000.segs.json").read_text())["segIndices"]
    groups = json.loads((scene / f"{scene.name}.aggregation.json").read_text())["segGroups"]
    owner = {s: g["objectId"] for g in groups for s in g["segments"]}
    vertex_object = np.array([owner[s] for s in segments])
    k = np.loadtxt(scene / "intrinsic" / "intrinsic_depth.txt")
    truth = np.load(scene / "gt" / "depth_gt.npz")
    poses = np.load(scene / "gt" / "poses_gt.npy")
    rng = np.random.default_rng(0)
    near, right = [], []
    for index in range(10):
        instance = _image(scene / "instance-filt" / f"{index}.png")
        y, x = rng.integers(0, 120, 200), rng.integers(0, 160, 200)
        z = truth["depth"][index][y, x] * float(truth["metres_per_unit"])
        local = np.stack([(x - k[0, 2]) / k[0, 0] * z, (y - k[1, 2]) / k[1, 1] * z, z], -1)
        distance, nearest = tree.query(local @ poses[index][:3, :3].T + poses[index][:3, 3])
        near.append(distance)
        right.append(vertex_object[nearest] + 1 == instance[y, x])
        pose = np.loadtxt(scene / "pose" / f"{index}.txt")
        if np.isfinite(pose).all():
            np.testing.assert_allclose(pose, poses[index], atol=1e-6)
    assert np.concatenate(near).max() < 0.06
    assert np.concatenate(right).mean() > 0.97


def test_sensor_depth_is_close_to_true_depth_where_it_measures(scene: Path) -> None:
    truth = np.load(scene / "gt" / "depth_gt.npz")
    for index in range(10):
        reading = _image(scene / "depth" / f"{index}.png") / 1000
        real = truth["depth"][index] * float(truth["metres_per_unit"])
        seen = reading > 0
        assert 0.75 < seen.mean() < 1
        assert np.median(np.abs(reading - real)[seen]) < 0.03


def test_label_and_instance_images_agree_with_the_annotation(scene: Path) -> None:
    groups = json.loads((scene / f"{scene.name}.aggregation.json").read_text())["segGroups"]
    raw = np.array([0] + [RAW_LABELS[g["label"]][0] for g in groups])
    for index in range(10):
        instance = _image(scene / "instance-filt" / f"{index}.png")
        np.testing.assert_array_equal(raw[instance], _image(scene / "label-filt" / f"{index}.png"))


def test_clean_masks_are_the_truth_under_the_label_space(scene: Path) -> None:
    labels = LabelSpace.load(scene / "classes.json")
    for index in range(10):
        raw = _image(scene / "label-filt" / f"{index}.png").astype(np.int64)
        np.testing.assert_array_equal(
            _image(scene / "masks_clean" / "semantic_image" / f"{index}.png"), labels.map_raw(raw)
        )
    scores = json.loads((scene / "masks_scores.json").read_text())
    assert scores["clean"]["PQ"] == 100.0
    assert scores["heavy"]["mIoU_all"] < scores["light"]["mIoU_all"]


def test_pictures_are_exposed_and_detailed(scene: Path) -> None:
    pictures = np.stack([_image(scene / "color" / f"{k}.jpg") for k in range(10)]).astype(float) / 255
    assert 0.35 < pictures.mean() < 0.7
    assert pictures.std() > 0.12
    assert np.abs(np.diff(pictures.mean(-1), axis=2)).mean() > 0.012


def test_the_camera_keeps_clear_of_the_furniture_and_its_views_overlap(scene: Path) -> None:
    vertices, _ = _ply(scene / f"{scene.name}_vh_clean_2.ply")
    poses = np.load(scene / "gt" / "poses_gt.npy")
    assert KDTree(np.stack([vertices[k] for k in "xyz"], -1)).query(poses[:, :3, 3])[0].min() > 0.15
    np.testing.assert_allclose(
        poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2), np.eye(3)[None].repeat(10, 0), atol=1e-9
    )
    assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.5
    assert (poses[:, 2, 1] < -0.7).all()  # the camera's y axis points down


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_room(tmp_path: Path, scene: Path) -> None:
    again = make_room(tmp_path, size="tiny", seed=4, progress=False)
    assert _hashes(again) == _hashes(scene)
    other = make_room(tmp_path, size="tiny", seed=5, masks=("clean",), progress=False)
    assert (other / "color" / "0.jpg").read_bytes() != (scene / "color" / "0.jpg").read_bytes()
    assert not (other / "masks_medium").exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_furnished_room_has_many_classes_look_alikes_and_stacked_things(seed: int) -> None:
    room = design_room(np.random.default_rng([seed, 10]), tiny=False, step=0.2)
    labels = [item.label for item in room.items]
    stuff = {
        "wall",
        "floor",
        "ceiling",
        "door",
        "window",
        "curtain",
        "mat",
        "light",
        "radiator",
        "keyboard",
        "clock",
        "backpack",
    }
    assert len(set(labels) - stuff) >= 10
    assert len(labels) < 255
    assert set(labels) <= set(RAW_LABELS)
    looks = Counter((item.label, frozenset(material for _, material in item.parts)) for item in room.items)
    alike = {label for (label, _), count in looks.items() if count >= 2} - stuff
    assert len(alike) >= 5
    raised = [item for item in room.items if min(m.vertices[:, 2].min() for m, _ in item.parts) > 0.35]
    assert {"book", "plant", "pillow"} <= {item.label for item in raised}
    # Not a rectangle: some corner is far from a right angle, or there are more than four.
    edges = np.roll(room.polygon, -1, axis=0) - room.polygon
    edges /= np.linalg.norm(edges, axis=1, keepdims=True)
    assert len(edges) > 4 or np.abs((edges * np.roll(edges, 1, axis=0)).sum(1)).max() > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_furniture_stands_inside_the_room_on_something(seed: int) -> None:
    room = design_room(np.random.default_rng([seed, 10]), tiny=False, step=0.2)
    outside = {"wall", "floor", "ceiling", "door", "window"}
    for item in room.items:
        points = np.concatenate([m.vertices for m, _ in item.parts])
        assert np.isfinite(points).all()
        assert points[:, 2].min() > -0.06
        assert points[:, 2].max() < room.height + 0.01
        if item.label not in outside:
            assert inside(room.polygon, points[:, :2].mean(0)), item.label


def test_a_bad_size_seed_or_preset_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'huge' is unknown; choose one of tiny, small, full"):
        main(["make-room", "--out", str(tmp_path), "--size", "huge"])
    with pytest.raises(UserError, match="choose 0 to 899"):
        make_room(tmp_path, size="tiny", seed=900)
    with pytest.raises(UserError, match="'rough' is unknown"):
        make_room(tmp_path, size="tiny", masks=("rough",))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="free space or choose another folder"):
        make_room(blocked, size="tiny", progress=False)


def test_a_scene_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    real = tmp_path / "scene9100_00"
    real.mkdir()
    (real / "precious.txt").write_text("data")
    with pytest.raises(UserError, match=r"not written by panbench \(no synthetic\.json in it\)"):
        make_room(tmp_path, size="tiny", progress=False)
    assert (real / "precious.txt").read_text() == "data"


def test_a_failure_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rooms, "write_calibration", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        make_room(tmp_path, size="tiny", masks=(), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["scannetv2-labels.combined.tsv"]


def test_the_command_writes_a_room(tmp_path: Path) -> None:
    assert (
        main(["make-room", "--out", str(tmp_path), "--size", "tiny", "--seed", "1", "--masks", "medium", "--quiet"])
        == 0
    )
    assert (tmp_path / "scene9101_00" / "masks_medium" / "thing_semantic_label.json").is_file()


def test_each_mask_set_says_how_it_was_made(scene: Path) -> None:
    for level in PRESETS:
        found = MaskSet.open(scene / f"masks_{level}")
        assert found.manifest is not None
        assert found.manifest.synthetic
        assert (found.manifest.generator, found.manifest.settings["level"]) == ("panbench rooms", level)
        assert found.manifest.settings["holes"] == PRESETS[level].holes
        assert sorted(found.stems()) == found.manifest.frames
        assert found.manifest.sha256 == content_hash(found.folder, found.manifest.frames)
        LabelSpace.from_dict(found.manifest.classes)
