"""ScanNet-V2 as it is downloaded gives the frames that the exported layout gives, from whatever holds the labels."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import check, in_file
from plyfile import PlyData

from panbench.cli.data import main as data_main
from panbench.cli.data_make_room import LAYOUTS
from panbench.data import label_tables, scannet_reader
from panbench.data.label_tables import LabelTable
from panbench.data.rooms import make_room
from panbench.data.scannet import ScanNetDataModule, find_scene
from panbench.data.scannet_annotation import read_annotation
from panbench.data.scannet_raw_export import write_scannet_raw
from panbench.data.scannet_reader import open_scene
from panbench.data.sens import SensFile
from panbench.errors import UserError
from panbench.scene import Scene

TSV = "scannetv2-labels.combined.tsv"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=3, masks=["medium"], progress=False)


@pytest.fixture(scope="module")
def written(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scannet_raw(room, tmp_path_factory.mktemp("release"))


@pytest.fixture
def release(written: Path, tmp_path: Path) -> Path:
    """A copy of the release that a test may spoil; the scene's folder."""
    shutil.copytree(written.parents[1], tmp_path / "release")
    return tmp_path / "release" / "scans" / written.name


def names(scene: Scene) -> list[str]:
    return [scene.source.name(i) for i in range(len(scene.source))]


# -------------------------------------------------------------------------------------------------------- round trip


def test_both_layouts_of_a_room_give_identical_frames(room: Path, written: Path) -> None:
    exported, raw = open_scene(room), open_scene(written)
    assert (raw.name, raw.dataset, raw.synthetic) == (exported.name, "scannet", True)
    assert names(raw) == names(exported)
    assert (raw.train, raw.test) == (exported.train, exported.test)
    assert raw.labels.hash == exported.labels.hash
    assert raw.mask_hash == exported.mask_hash
    for i in range(len(exported.source)):
        old, new = exported.source.load(i), raw.source.load(i)
        torch.testing.assert_close(new.camera.world_to_camera, old.camera.world_to_camera, atol=1e-6, rtol=0)
        k = ("width", "height", "fx", "fy", "cx", "cy")
        assert [getattr(new.camera, n) for n in k] == pytest.approx([getattr(old.camera, n) for n in k], rel=1e-6)
        assert torch.equal(new.color, old.color)
        assert old.depth is not None
        assert new.depth is not None
        assert torch.equal(new.depth, old.depth)
        assert old.truth is not None
        assert new.truth is not None
        assert torch.equal(new.truth.semantic, old.truth.semantic)
        assert torch.equal(new.truth.instance, old.truth.instance)
        assert (old.masks is None) == (new.masks is None)
        assert (old.true_depth is None) == (new.true_depth is None)
        if old.true_depth is not None and new.true_depth is not None:
            assert torch.equal(new.true_depth, old.true_depth)


def test_lost_frames_are_dropped_from_both_layouts(room: Path, written: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = json.loads((room / "splits.json").read_text())["lost"]
    assert lost
    poses = SensFile(written / f"{written.name}.sens").poses
    assert [str(k) for k in np.flatnonzero(~np.isfinite(poses).all((1, 2)))] == lost
    with caplog.at_level(logging.INFO, logger="panbench"):
        for folder in (room, written):
            assert not set(lost) & set(names(open_scene(folder)))
    assert caplog.text.count("9 of 10 frames have a pose (1 lost)") == 2


def test_without_a_split_file_every_nth_frame_is_test_in_both_layouts(
    room: Path, release: Path, tmp_path: Path
) -> None:
    shutil.copytree(room, tmp_path / "plain" / room.name)
    shutil.copyfile(room.parent / TSV, tmp_path / "plain" / TSV)
    for folder in (release, tmp_path / "plain" / room.name):
        (folder / "splits.json").unlink()
    a, b = (open_scene(f, masks=None, test_every=3) for f in (release, tmp_path / "plain" / room.name))
    assert (a.train, a.test) == (b.train, b.test)
    assert len(a.test) == 3


def test_the_release_is_found_at_its_root_or_below(written: Path, tmp_path: Path) -> None:
    root, name = written.parents[1], written.name
    for place, scene in ((root, None), (root, name), (root / "scans", None), (written, None)):
        assert find_scene(place, scene) == written
    with pytest.raises(UserError, match=rf"scene0000_00 is not there; scenes: {name}$"):
        find_scene(root, "scene0000_00")
    with pytest.raises(UserError, match=r"give data\.scene; scenes: none that holds color or \*\.sens"):
        find_scene(tmp_path, None)
    assert ScanNetDataModule(root=str(root)).scene.name == name


def test_a_scene_that_was_exported_is_not_read_from_its_stream(room: Path, release: Path) -> None:
    for part in ("color", "depth", "pose", "intrinsic"):
        shutil.copytree(room / part, release / part)
    (release / f"{release.name}.sens").write_bytes(b"")
    scene = open_scene(release)
    assert names(scene) == names(open_scene(room))
    # Its labels still come out of the archives.
    truth, expected = scene.source.load(2).truth, open_scene(room).source.load(2).truth
    assert truth is not None
    assert expected is not None
    assert torch.equal(truth.instance, expected.instance)


def test_a_stream_without_annotation_is_read_without_truth(release: Path) -> None:
    for path in release.glob(f"{release.name}[._]*"):
        if path.suffix != ".sens":
            path.unlink()
    assert open_scene(release).source.load(0).truth is None


# ---------------------------------------------------------------------------------------------------- axis alignment


def test_axis_alignment_is_put_on_top_of_poses_and_mesh(room: Path, release: Path) -> None:
    turn = np.eye(4)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    turn[:3, 3] = [1.5, -2.0, 0.25]
    path = release / f"{release.name}.txt"
    rows = [line for line in path.read_text().splitlines() if not line.startswith("axisAlignment")]
    path.write_text("\n".join([*rows, f"axisAlignment = {' '.join(f'{v:f}' for v in turn.ravel())}"]))
    plain, aligned = open_scene(release, masks=None), open_scene(release, masks=None, axis_align=True)
    before, after = (s.camera_positions(range(len(s.source))).double().numpy() for s in (plain, aligned))
    np.testing.assert_allclose(after, before @ turn[:3, :3].T + turn[:3, 3], atol=1e-6)
    camera, moved = plain.source.camera(0), aligned.source.camera(0)
    np.testing.assert_allclose(
        moved.rotation.double().numpy(), camera.rotation.double().numpy() @ turn[:3, :3].T, atol=1e-6
    )
    # Labels that are cast from the mesh stay with the pixels they were at.
    for archive in release.glob("*.zip"):
        archive.unlink()
    a, b = (open_scene(release, masks=None, axis_align=on).source.load(1).truth for on in (False, True))
    assert a is not None
    assert b is not None
    assert (a.semantic != b.semantic).float().mean() < 1e-3


def test_a_scene_that_states_no_alignment_is_left_where_it_is(release: Path) -> None:
    (release / f"{release.name}.txt").unlink()
    a, b = (open_scene(release, masks=None, axis_align=on).source.camera(0) for on in (False, True))
    assert torch.equal(a.world_to_camera, b.world_to_camera)


# --------------------------------------------------------------------------------------------------------- annotation


def mesh_files(folder: Path) -> tuple[Path, Path]:
    return (folder / f"{folder.name}_vh_clean_2.0.010000.segs.json", folder / f"{folder.name}.aggregation.json")


def test_every_vertex_has_the_label_that_the_label_mesh_gives_it(written: Path) -> None:
    label = np.asarray(PlyData.read(str(written / f"{written.name}_vh_clean_2.labels.ply"))["vertex"]["label"])
    table = LabelTable.read(written.parents[1] / TSV)
    annotation = read_annotation(*mesh_files(written), len(label))
    nyu40 = np.array([table.nyu40[raw] for raw in annotation.raw_ids(table.ids).tolist()])
    np.testing.assert_array_equal(nyu40, label)
    assert annotation.instance.min() == 1


def test_without_archives_the_truth_is_cast_from_the_annotated_mesh(room: Path, release: Path) -> None:
    expected = open_scene(room)
    for archive in release.glob("*.zip"):
        archive.unlink()
    scene = open_scene(release)
    for i in range(0, len(scene.source), 3):
        cast, drawn = scene.source.load(i).truth, expected.source.load(i).truth
        assert cast is not None
        assert drawn is not None
        # The room's own labels were cast from poses of more digits: a ray on an edge may fall to the other side.
        for a, b in ((cast.semantic, drawn.semantic), (cast.instance, drawn.instance)):
            assert (a != b).float().mean() < 1e-3
    small = open_scene(release, image_size=(80, 60)).source.load(0).truth
    assert small is not None
    assert small.semantic.shape == (60, 80)


def test_a_mesh_without_the_label_table_says_what_to_download(release: Path) -> None:
    for archive in release.glob("*.zip"):
        archive.unlink()
    (release.parents[1] / TSV).unlink()
    with pytest.raises(UserError, match=r"scannetv2-labels\.combined\.tsv: no such file, but its annotation names"):
        open_scene(release)


def test_archives_of_unfiltered_labels_are_read_where_there_are_no_others(room: Path, release: Path) -> None:
    for archive in release.glob("*-filt.zip"):
        archive.rename(archive.with_name(archive.name.replace("-filt", "")))
    for path in mesh_files(release):
        path.unlink()
    a, b = (open_scene(f).source.load(3).truth for f in (release, room))
    assert a is not None
    assert b is not None
    assert torch.equal(a.instance, b.instance)


def test_groups_that_stand_in_the_file_twice_count_once(release: Path, caplog: pytest.LogCaptureFixture) -> None:
    segments, groups = mesh_files(release)
    count = len(json.loads(segments.read_text())["segIndices"])
    before = read_annotation(segments, groups, count)
    data = json.loads(groups.read_text())
    number = len(data["segGroups"])
    again = [{**g, "id": g["id"] + number, "objectId": g["objectId"] + number} for g in data["segGroups"]]
    groups.write_text(json.dumps({**data, "segGroups": [*data["segGroups"], *again]}))
    after = read_annotation(segments, groups, count)
    np.testing.assert_array_equal(after.instance, before.instance)
    assert after.labels == before.labels
    assert f"lists all of its {number} objects twice" in caplog.text


def test_categories_that_the_table_does_not_have_are_named_once_and_become_nothing(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments, groups = mesh_files(release)
    annotation = read_annotation(segments, groups, len(json.loads(segments.read_text())["segIndices"]))
    ids = dict(LabelTable.read(release.parents[1] / TSV).ids)
    del ids["floor"], ids["wall"]
    raw = annotation.raw_ids(ids)
    of_floor = [k for k, label in annotation.labels.items() if label == "floor"]
    assert not raw[np.isin(annotation.instance, of_floor)].any()
    assert raw.any()
    assert [r.message for r in caplog.records] == [
        "the label table has no category floor, wall: these objects have no label"
    ]


def test_segments_are_looked_up_by_their_ids_and_the_last_object_has_them(tmp_path: Path) -> None:
    segments, groups = tmp_path / "s.json", tmp_path / "a.json"
    segments.write_text(json.dumps({"segIndices": [900, 900, 3, 77, -1]}))
    rows = [
        {"objectId": 4, "label": "chair", "segments": [900, 77]},
        {"objectId": 0, "label": "wall", "segments": [77, 12345]},
    ]
    groups.write_text(json.dumps({"segGroups": rows}))
    annotation = read_annotation(segments, groups, 5)
    np.testing.assert_array_equal(annotation.instance, [5, 5, 0, 1, 0])
    np.testing.assert_array_equal(annotation.raw_ids({"chair": 2, "wall": 1}), [2, 2, 0, 1, 0])


def rewrite(number: int, text: str) -> Callable[[Path], None]:
    return lambda folder: (mesh_files(folder)[number].write_text(text), None)[1]


BAD_ANNOTATION = {
    "segments of another mesh": (rewrite(0, '{"segIndices": [1, 2, 3]}'), r"segs\.json: has 3 vertices, the mesh \d+"),
    "segments that are no list": (rewrite(0, '{"segIndices": 7}'), r"segs\.json: has no list segIndices"),
    "segments that are no numbers": (rewrite(0, '{"segIndices": ["a"]}'), r"segs\.json: its segIndices are not whole"),
    "segments beyond 64 bits": (rewrite(0, '{"segIndices": [%s]}' % (9**40)), r"segs\.json: its segIndices are not"),
    "no JSON": (rewrite(1, "{"), r"aggregation\.json: is no JSON file"),
    "too deep": (rewrite(1, "[" * 100_000), r"aggregation\.json: is no JSON file"),
    "groups without segments": (
        rewrite(1, '{"segGroups": [{"objectId": 1, "label": "x"}]}'),
        r"aggregation\.json: has no list segGroups of objectId, label and segments",
    ),
    "an object id that is none": (
        rewrite(1, '{"segGroups": [{"objectId": 65535, "label": "x", "segments": []}]}'),
        r"objectId 65535 is not in 0 \.\.\. 65534",
    ),
    "segments of a group that are no list": (
        rewrite(1, '{"segGroups": [{"objectId": 1, "label": "x", "segments": 5}]}'), "its segments are not whole"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ANNOTATION)
def test_a_damaged_annotation_is_refused_in_one_line(written: Path, tmp_path: Path, case: str) -> None:
    spoil, message = BAD_ANNOTATION[case]
    folder = tmp_path / written.name
    folder.mkdir()
    for path in mesh_files(written):
        shutil.copyfile(path, folder / path.name)
    count = len(json.loads(mesh_files(folder)[0].read_text())["segIndices"])
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        read_annotation(*mesh_files(folder), count)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- bad input


def test_an_archive_that_is_cut_off_is_named(release: Path) -> None:
    path = release / f"{release.name}_2d-label-filt.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"2d-label-filt\.zip: is no whole ZIP archive"):
        open_scene(release)


def test_half_of_the_annotation_is_not_taken_for_all_of_it(release: Path) -> None:
    (release / f"{release.name}_2d-instance-filt.zip").unlink()
    with pytest.raises(UserError, match=r"2d-instance-filt\.zip: no such file, but its other half is there"):
        open_scene(release)


def test_an_archive_that_lacks_a_test_frame_is_named(release: Path) -> None:
    path = release / f"{release.name}_2d-label-filt.zip"
    with zipfile.ZipFile(path) as archive:
        kept = {n: archive.read(n) for n in archive.namelist() if not n.endswith("/0.png")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match="has no label of test frame 0"):
        open_scene(release)


def test_a_stream_whose_poses_are_all_lost_is_refused(release: Path) -> None:
    path = release / f"{release.name}.sens"
    data = bytearray(path.read_bytes())
    sens = SensFile(path)
    for k in range(len(sens)):
        at = sens.color(k).offset - 96
        data[at : at + 64] = np.full(16, -np.inf, "<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match="no pose is finite"):
        open_scene(release)


def patch_header(folder: Path, matrix: int, value: np.ndarray) -> None:
    """Replace one of the stream's four calibration matrices."""
    path = folder / f"{folder.name}.sens"
    data = bytearray(path.read_bytes())
    at = 12 + len("panbench room") + 64 * matrix
    data[at : at + 64] = value.astype("<f4").tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("value", [np.eye(4, k=3) * 0.04 + np.eye(4), np.full((4, 4), np.nan)])
def test_a_depth_camera_at_another_place_is_reported(
    release: Path, caplog: pytest.LogCaptureFixture, value: np.ndarray
) -> None:
    patch_header(release, 3, value)
    open_scene(release)
    assert "its depth camera is not at the colour camera's place" in caplog.text


def test_intrinsics_of_another_image_size_are_refused(release: Path) -> None:
    patch_header(release, 0, np.diag([1170.0, 1170.0, 1.0, 1.0]) + np.array([[0, 0, 647.5, 0]] + [[0] * 4] * 3))
    with pytest.raises(UserError, match=r"\.sens: its colour intrinsics do not fit images of 160x120"):
        open_scene(release)


def test_mutated_streams_open_as_a_scene_or_are_refused_in_one_line(release: Path) -> None:
    path = release / f"{release.name}.sens"
    seed = path.read_bytes()[: SensFile(path).color(1).offset + 20_000]

    def parse(path: Path) -> None:
        for frame in (scene := open_scene(path.parent, masks=None)).frames(range(len(scene.source))):
            assert frame.color.shape == (120, 160, 3)

    whole = path.read_bytes()
    # Damage at the front, where the header and the first poses are.
    check(lambda data: in_file(path, parse)(data + whole[len(seed) :]), [seed], 60, memory=1 << 30)


def test_a_pose_that_is_no_rotation_is_named_with_its_frame(release: Path) -> None:
    path = release / f"{release.name}.sens"
    data = bytearray(path.read_bytes())
    at = SensFile(path).color(4).offset - 96
    data[at : at + 64] = (2 * np.eye(4)).astype("<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"\.sens: the pose of frame 4 has no rotation"):
        open_scene(release)


def test_a_scene_that_is_no_room_is_not_replaced(room: Path, tmp_path: Path) -> None:
    (tmp_path / "scans" / room.name).mkdir(parents=True)
    with pytest.raises(UserError, match="already a scene that is not a generated room"):
        write_scannet_raw(room, tmp_path)
    assert not list((tmp_path / "scans" / room.name).iterdir())


# --------------------------------------------------------------------------------------------------------- make-room


def test_every_layout_that_is_offered_is_written(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(out: Path, **options: object) -> Path:
        assert options == {"size": "tiny", "seed": 3, "masks": ["medium"], "progress": False}
        return Path(shutil.copytree(room, out / room.name))

    monkeypatch.setattr("panbench.data.rooms.make_room", make)
    marks = {
        "scannet-raw": "scans/*/*.sens", "scannetpp": "*/dslr", "nerfstudio": "*/transforms.json", "colmap": "*/sparse",
        "rgbd": "*/depth", "panoptic-lifting": "*/m2f_semantics", "scannetpp-fisheye": "*/dslr/resized_images",
        "scannetpp-iphone": "*/iphone/rgb.mkv",
    }  # fmt: skip
    assert set(marks) <= set(LAYOUTS)
    for layout, mark in marks.items():
        out = tmp_path / layout
        argv = ["make-room", "--out", str(out), "--size", "tiny", "--seed", "3", "--masks", "medium", "--quiet"]
        assert data_main([*argv, "--layout", layout]) == 0
        assert len(list(out.glob(mark))) == 1


# ------------------------------------------------------------------------------------------------------- label spaces


def test_a_scene_without_classes_has_scannet20(release: Path, caplog: pytest.LogCaptureFixture) -> None:
    (release / "classes.json").unlink()
    with caplog.at_level(logging.INFO, logger="panbench"):
        scene = open_scene(release, masks=None)
    assert "has no classes.json: label space scannet20" in caplog.text
    chair = next(c.id for c in scene.labels.classes if c.name == "chair")
    # Chair, office chair and armchair are all NYU40's chair.
    assert [raw for raw, c in scene.labels.raw_to_class.items() if c == chair] == [2, 10, 23]
    frame = scene.source.load(0)
    assert frame.truth is not None
    assert frame.truth.semantic.max() <= 20


def test_truth_in_nyu40_is_the_label_mesh_seen_by_the_camera(release: Path) -> None:
    labels = PlyData.read(str(release / f"{release.name}_vh_clean_2.labels.ply"))["vertex"]["label"]
    scene = open_scene(release, masks=None, label_space="nyu40")
    seen = torch.cat([f.truth.semantic.unique() for f in scene.frames(range(3)) if f.truth is not None])
    assert set(seen.tolist()) <= {0, *np.unique(labels).tolist()}
    assert len(set(seen.tolist())) > 5


def test_a_name_of_a_packaged_space_a_path_and_neither(release: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"classes": [{"id": 1, "name": "chair", "thing": True}], "gt_map": {"2": 1}}))
    assert open_scene(release, masks=None, label_space=mine).labels.size == 2
    assert ScanNetDataModule(root=str(release), masks="none", label_space="scannet200").scene.labels.size == 201
    with pytest.raises(UserError, match=r"scannet21: no such file: give data\.label_space .* one of .*nyu40, scan"):
        open_scene(release, masks=None, label_space="scannet21")


def test_the_papers_scenes_find_their_own_label_space(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene0628_02"
    folder.mkdir()
    labels = scannet_reader.read_labels(folder, None)
    assert labels.name == "scene0628_02"
    assert labels.names()[12] == "door"
    shutil.copyfile(written / "classes.json", folder / "classes.json")
    assert scannet_reader.read_labels(folder, None).classes == scannet_reader.read_labels(written, None).classes
    assert label_tables.label_space_file(folder, "scene0628_02").stem == "scene0628_02"
