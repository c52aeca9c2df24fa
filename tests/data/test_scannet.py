"""Reading ScanNet-V2's exported layout: what is joined, converted, dropped, and every way the input can be bad."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from panbench.data.scannet import ScanNetDataModule, find_scene, made_once
from panbench.data.scannet_reader import open_scene
from panbench.errors import UserError
from panbench.scene import Scene

WIDTH, HEIGHT = 24, 18
CLASSES = {
    "classes": [
        {"id": 1, "name": "wall", "thing": False},
        {"id": 2, "name": "chair", "thing": True},
        {"id": 4, "name": "box", "thing": True, "evaluate": False},
    ],
    "gt_map": {"1": 1, "5": 2, "700": 4},
}


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def matrix_text(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:f}" for v in row) for row in matrix)


def intrinsics(f: float, width: int, height: int) -> np.ndarray:
    out = np.eye(4)
    out[0, 0] = out[1, 1] = f
    out[0, 2], out[1, 2] = (width - 1) / 2, (height - 1) / 2
    return out


@pytest.fixture
def scene_folder(tmp_path: Path) -> Path:
    """Twelve frames, colour 24x18, depth 12x9; frame n is 1 m + n mm deep; the left third is a chair, the rest wall."""
    folder = tmp_path / "scene0001_00"
    random = np.random.default_rng(0)
    for n in range(12):
        write_image(folder / f"color/{n}.png", random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        depth = np.full((HEIGHT // 2, WIDTH // 2), 1000 + n, dtype=np.uint16)
        depth[0, 0] = 0
        write_image(folder / f"depth/{n}.png", depth)
        raw = np.full((HEIGHT, WIDTH), 1, dtype=np.uint16)
        raw[:, :8] = 5
        raw[0, 23] = 33  # in no class
        raw[1, 23] = 700
        write_image(folder / f"label-filt/{n}.png", raw)
        write_image(folder / f"instance-filt/{n}.png", np.where(raw == 5, 3, 9).astype(np.uint8))
        semantic = np.where(raw == 5, 2, 1).astype(np.uint8)
        write_image(folder / f"masks_medium/semantic_image/{n}.png", semantic)
        write_image(
            folder / f"masks_medium/instance_image/{n}.png", np.full((HEIGHT, WIDTH), 1 + n % 3, dtype=np.uint16)
        )
        write_image(folder / f"masks_medium/score/{n}.png", np.full((HEIGHT, WIDTH), 51, dtype=np.uint8))
        pose = np.eye(4)
        pose[:3, 3] = [n, 2 * n, 0.5]
        (folder / "pose").mkdir(exist_ok=True)
        (folder / f"pose/{n}.txt").write_text(matrix_text(pose))
    (folder / "intrinsic").mkdir()
    (folder / "intrinsic/intrinsic_color.txt").write_text(matrix_text(intrinsics(20.0, WIDTH, HEIGHT)))
    (folder / "intrinsic/intrinsic_depth.txt").write_text(matrix_text(intrinsics(10.0, WIDTH // 2, HEIGHT // 2)))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


def names(scene: Scene, part: str) -> list[str]:
    return [scene.source.name(i) for i in getattr(scene, part)]


def test_frames_come_in_numeric_order_and_join_their_own_depth_and_pose(scene_folder: Path) -> None:
    scene = open_scene(scene_folder)
    for i, frame in enumerate(scene.frames(range(len(scene.source)))):
        assert frame.name == str(i)
        assert frame.index == i
        assert frame.depth is not None
        assert torch.isclose(frame.depth[9, 12], torch.tensor(1.0 + i / 1000))
        assert torch.allclose(frame.camera.position, torch.tensor([float(i), 2.0 * i, 0.5]))


def test_files_join_by_number_whatever_their_padding(scene_folder: Path) -> None:
    for path in list((scene_folder / "color").iterdir()):
        path.rename(path.with_name(f"{int(path.stem):06d}.png"))
    scene = open_scene(scene_folder)
    assert scene.source.name(2) == "000002"
    depth = scene.source.load(2).depth
    assert depth is not None
    assert torch.isclose(depth[9, 12], torch.tensor(1.002))


@pytest.mark.parametrize("bad", ["-inf", "inf", "nan"])
def test_a_frame_whose_pose_is_not_finite_is_dropped_and_reported(
    scene_folder: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    (scene_folder / "pose/3.txt").write_text(" ".join([bad] * 16))
    pose = (scene_folder / "pose/7.txt").read_text().split()
    (scene_folder / "pose/7.txt").write_text(" ".join([bad, *pose[1:]]))  # one entry is enough
    with caplog.at_level(logging.INFO, logger="panbench"):
        scene = open_scene(scene_folder)
    assert {"3", "7"}.isdisjoint(names(scene, "train") + names(scene, "test"))
    assert "10 of 12 frames have a pose (2 lost)" in caplog.text


def test_the_fifth_part_of_the_kept_frames_is_test_without_a_split_file(scene_folder: Path) -> None:
    (scene_folder / "pose/1.txt").write_text(" ".join(["-inf"] * 16))
    scene = open_scene(scene_folder)
    assert names(scene, "test") == ["0", "6", "11"]
    assert names(scene, "train") == ["2", "3", "4", "5", "7", "8", "9", "10"]
    assert set(scene.train).isdisjoint(scene.test)


def test_a_stride_thins_the_frames_before_they_are_split(scene_folder: Path) -> None:
    scene = open_scene(scene_folder, stride=2, test_every=3)
    assert names(scene, "test") == ["0", "6"]
    assert names(scene, "train") == ["2", "4", "8", "10"]
    assert len(scene.source) == 6


def test_with_a_split_file_a_stride_thins_the_training_frames_only(scene_folder: Path) -> None:
    (scene_folder / "splits.json").write_text(json.dumps({"train": ["1", "10", "2", "3"], "test": [5, 9]}))
    scene = open_scene(scene_folder, stride=2)
    assert names(scene, "train") == ["1", "3"]
    assert names(scene, "test") == ["5", "9"]


def test_a_named_split_file_goes_before_the_scenes_own(scene_folder: Path, tmp_path: Path) -> None:
    (scene_folder / "splits.json").write_text(json.dumps({"train": ["1"], "test": ["2"]}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"train": ["4"], "test": ["6"]}))
    assert names(open_scene(scene_folder, split_file=other), "train") == ["4"]


def test_the_principal_point_moves_half_a_pixel_to_centres_at_one_half(scene_folder: Path) -> None:
    camera = open_scene(scene_folder).source.camera(0)
    assert (camera.cx, camera.cy, camera.fx, camera.fy) == (12.0, 9.0, 20.0, 20.0)


def test_intrinsics_of_a_larger_image_scale_per_axis(scene_folder: Path) -> None:
    (scene_folder / "scene0001_00.txt").write_text("colorWidth = 1296\ncolorHeight = 968\nsceneType = Office\n")
    (scene_folder / "intrinsic/intrinsic_color.txt").write_text(matrix_text(intrinsics(1170.0, 1296, 968)))
    camera = open_scene(scene_folder).source.camera(0)
    assert camera.fx == pytest.approx(1170 * 24 / 1296)
    assert camera.fy == pytest.approx(1170 * 18 / 968)
    assert (camera.cx, camera.cy) == pytest.approx((12.0, 9.0))


def test_another_image_size_scales_camera_and_all_maps(scene_folder: Path) -> None:
    scene = open_scene(scene_folder, image_size=(12, 6))
    frame = scene.source.load(1)
    assert (frame.camera.fx, frame.camera.fy, frame.camera.cx, frame.camera.cy) == pytest.approx((10, 20 / 3, 6, 3))
    assert frame.color.shape == (6, 12, 3)
    assert frame.depth is not None
    assert frame.masks is not None
    assert frame.truth is not None
    assert frame.depth.shape == frame.masks.semantic.shape == frame.truth.instance.shape == (6, 12)
    assert set(frame.truth.semantic.unique().tolist()) <= {0, 1, 2, 4}


def test_depth_is_looked_up_along_the_ray_and_never_mixed_with_holes(scene_folder: Path) -> None:
    # Half the focal length on the same number of pixels: the colour image is the inner half of the depth image.
    stripes = np.repeat(np.arange(12, dtype=np.uint16)[None] * 100 + 500, 9, axis=0)
    stripes[:, 6] = 0
    write_image(scene_folder / "depth/0.png", stripes)
    (scene_folder / "intrinsic/intrinsic_depth.txt").write_text(matrix_text(intrinsics(5.0, 12, 9)))
    frame = open_scene(scene_folder).source.load(0)
    assert frame.depth is not None
    x = (np.arange(WIDTH) + 0.5 - 12) / 20 * 5 + 6
    expected = stripes[0, np.floor(x).astype(int)] / 1000
    assert np.allclose(frame.depth[8].numpy(), expected)
    assert set(np.round(frame.depth.unique().numpy() * 1000).astype(int)) <= set(stripes[0].tolist())


def test_colour_pixels_that_the_depth_camera_does_not_see_have_none(scene_folder: Path) -> None:
    (scene_folder / "intrinsic/intrinsic_depth.txt").write_text(matrix_text(intrinsics(20.0, 12, 9)))
    depth = open_scene(scene_folder).source.load(0).depth
    assert depth is not None
    assert (depth[:, :6] == 0).all()
    assert (depth[:, 18:] == 0).all()
    assert (depth[6:12, 7:17] == 1).all()


def test_depth_beyond_the_limit_counts_as_none(scene_folder: Path) -> None:
    depth = open_scene(scene_folder, max_depth=1.005).source.load(6).depth
    assert depth is not None
    assert (depth == 0).all()


def test_raw_ids_become_classes_and_stuff_has_no_instance(scene_folder: Path) -> None:
    truth = open_scene(scene_folder).source.load(0).truth
    assert truth is not None
    assert truth.semantic[5, 0] == 2
    assert truth.instance[5, 0] == 3
    assert truth.semantic[5, 12] == 1
    assert truth.instance[5, 12] == 0
    assert truth.semantic[0, 23] == 0
    assert truth.semantic[1, 23] == 4
    assert truth.instance[1, 23] == 9


def test_masks_carry_scores_from_zero_to_one_and_no_instances_on_stuff(scene_folder: Path) -> None:
    masks = open_scene(scene_folder).source.load(4).masks
    assert masks is not None
    assert masks.score is not None
    assert torch.allclose(masks.score, torch.full((HEIGHT, WIDTH), 0.2))
    assert (masks.instance[masks.semantic == 2] == 2).all()
    assert (masks.instance[masks.semantic == 1] == 0).all()


def test_masks_may_lack_scores_or_lie_elsewhere_or_be_left_out(scene_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(scene_folder / "masks_medium/score")
    shutil.move(scene_folder / "masks_medium", tmp_path / "mine")
    masks = open_scene(scene_folder, masks=str(tmp_path / "mine")).source.load(0).masks
    assert masks is not None
    assert masks.score is None
    scene = open_scene(scene_folder, masks="none")
    assert scene.source.load(0).masks is None
    assert scene.mask_hash == ""


def test_the_mask_hash_follows_the_masks_of_training_frames_only(scene_folder: Path) -> None:
    before = open_scene(scene_folder)
    write_image(scene_folder / "masks_medium/semantic_image/0.png", np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    assert open_scene(scene_folder).mask_hash == before.mask_hash  # frame 0 is test
    write_image(scene_folder / "masks_medium/semantic_image/1.png", np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    after = open_scene(scene_folder)
    assert after.mask_hash != before.mask_hash
    assert after.data_hash == before.data_hash


def test_a_scene_without_truth_or_depth_is_read_all_the_same(scene_folder: Path) -> None:
    for name in ("label-filt", "instance-filt", "depth"):
        shutil.rmtree(scene_folder / name)
    frame = open_scene(scene_folder).source.load(0)
    assert frame.depth is None
    assert frame.truth is None


def test_changing_a_frame_leaves_the_cached_one_as_it_was(scene_folder: Path) -> None:
    scene = open_scene(scene_folder)
    first = scene.source.load(0)
    kept = first.color.clone()
    first.color.zero_()
    assert torch.equal(scene.source.load(0).color, kept)


def test_frames_beyond_the_memory_budget_are_decoded_each_time_with_the_same_result(scene_folder: Path) -> None:
    cached, bare = open_scene(scene_folder), open_scene(scene_folder, cache_bytes=0)
    for _ in range(2):
        a, b = cached.source.load(3), bare.source.load(3)
        assert torch.equal(a.color, b.color)
        assert a.depth is not None
        assert b.depth is not None
        assert torch.equal(a.depth, b.depth)


def test_the_scene_is_found_by_name_or_as_the_only_one_or_itself(scene_folder: Path) -> None:
    root = scene_folder.parent
    assert find_scene(root, "scene0001_00") == find_scene(root, None) == find_scene(scene_folder, None) == scene_folder
    shutil.copytree(scene_folder, root / "scene0002_00")
    with pytest.raises(UserError, match=r"give data\.scene; scenes: scene0001_00, scene0002_00"):
        find_scene(root, None)
    with pytest.raises(UserError, match="scene0009_00 is not there"):
        find_scene(root, "scene0009_00")
    with pytest.raises(UserError, match="no such folder"):
        find_scene(root / "nowhere", None)


def test_the_data_module_opens_the_scene_once(scene_folder: Path) -> None:
    data = ScanNetDataModule(root=str(scene_folder.parent), scene="scene0001_00", image_size=(12, 9))
    data.setup("fit")
    scene = data.scene
    data.setup("test")
    assert data.scene is scene
    assert scene.dataset == "scannet"
    assert not scene.synthetic
    assert [frame.name for frame in data.test_dataloader()] == ["0", "5", "10"]
    (scene_folder / "synthetic.json").write_text("{}")
    assert ScanNetDataModule(root=str(scene_folder)).scene.synthetic


def test_a_scene_name_without_a_root_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.root is not given"):
        _ = ScanNetDataModule(scene="scene0001_00").scene


def test_without_a_root_the_built_in_room_is_made_once_and_called_synthetic(
    scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[str, int]] = []

    def make_room(out: Path, *, size: str, seed: int) -> Path:
        calls.append((size, seed))
        room = out / "scene9107_00"
        shutil.copytree(scene_folder, room)
        (room / "synthetic.json").write_text("{}")
        return room

    generator = ModuleType("panbench.data.rooms")
    generator.make_room = make_room  # type: ignore[attr-defined]
    generator.VERSION = 4  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "panbench.data.rooms", generator)
    monkeypatch.setenv("PANBENCH_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        scene = ScanNetDataModule(room_size="tiny", room_seed=7).scene
        assert scene.synthetic
        assert scene.name == "scene9107_00"
    assert calls == [("tiny", 7)]
    assert (tmp_path / "cache/rooms/v4-tiny-7/scene9107_00").is_dir()
    assert [r.levelname for r in caplog.records if "SYNTHETIC room" in r.message] == ["WARNING"] * 2


def test_runs_that_start_together_share_one_room(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> Path:
        made.append(1)
        time.sleep(0.2)
        (tmp_path / "cache/room").mkdir()
        return tmp_path / "cache/room"

    def find() -> Path | None:
        return next(iter((tmp_path / "cache").glob("room")), None)

    with ThreadPoolExecutor(3) as pool:
        rooms = list(pool.map(lambda _: made_once(tmp_path / "cache", find, make), range(3)))
    assert rooms == [tmp_path / "cache/room"] * 3
    assert len(made) == 1


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set PANBENCH_CACHE to a folder that can be"):
        made_once(tmp_path / "file" / "cache", lambda: None, lambda: tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def to_jpeg_cut_short(folder: Path) -> None:
    (folder / "color/0.png").unlink()
    random = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(random).save(folder / "color/0.jpg")
    cut(folder / "color/0.jpg")


def empty_masks(folder: Path) -> None:
    for path in (folder / "masks_medium/semantic_image").iterdir():
        path.unlink()


def jpeg_masks(folder: Path) -> None:
    for path in list((folder / "masks_medium/semantic_image").iterdir()):
        path.rename(path.with_suffix(".jpg"))


def rewrite(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


def redraw(path: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: write_image(folder / path, array)


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def ids(shape: tuple[int, ...], value: int, dtype: type = np.uint8) -> np.ndarray:
    return np.full(shape, value, dtype=dtype)


FULL = (HEIGHT, WIDTH)
BAD = {
    "depth without its colour image": (remove("color/4.png"), r"depth/4\.png: has no colour image"),
    "colour without its depth image": (remove("depth/4.png"), r"color/4\.png: has no depth image"),
    "colour without its pose": (remove("pose/4.txt"), r"color/4\.png: has no pose"),
    "label without its instances": (remove("instance-filt/4.png"), r"label-filt/4\.png: has no instance image"),
    "no class table": (remove("classes.json"), r"classes\.json: no such file.*gt_map.*data\.label_space"),
    "class table that is no JSON": (rewrite("classes.json", "{"), r"classes\.json: cannot read the label space"),
    "class table without classes": (rewrite("classes.json", '{"classes": []}'), r"classes\.json: lists no classes"),
    "truncated colour PNG": (lambda folder: cut(folder / "color/0.png"), r"color/0\.png: cannot be decoded"),
    "truncated colour JPEG": (to_jpeg_cut_short, r"color/0\.jpg: cannot be decoded"),
    "truncated label": (lambda folder: cut(folder / "label-filt/0.png"), r"label-filt/0\.png: cannot be decoded"),
    "file that is no image": (rewrite("depth/0.png", "hello"), r"depth/0\.png: cannot be decoded"),
    "8-bit depth": (redraw("depth/0.png", ids((9, 12), 200)), r"depth/0\.png: is an 8-bit image"),
    "depth of another size": (redraw("depth/1.png", ids((8, 12), 900, np.uint16)), r"depth/1\.png: is 12x8"),
    "colour of another size": (redraw("color/1.png", ids((18, 20, 3), 9)), r"color/1\.png: is 20x18"),
    "label with colour channels": (redraw("label-filt/0.png", ids((*FULL, 3), 1)), r"label-filt/0\.png: has mode RGB"),
    "class outside the table": (
        redraw("masks_medium/semantic_image/0.png", ids(FULL, 3)),
        r"semantic_image/0\.png: holds class id 3",
    ),
    "16-bit score": (redraw("masks_medium/score/0.png", ids(FULL, 3, np.uint16)), r"score/0\.png: must be 8-bit"),
    "mask parts of two sizes": (
        redraw("masks_medium/instance_image/0.png", ids((9, 12), 1)),
        r"instance_image/0\.png: differs in size",
    ),
    "empty mask set": (empty_masks, r"semantic_image: holds no PNG file: the mask set is empty"),
    "JPEG masks": (jpeg_masks, r"semantic_image: holds JPEG files"),
    "training frame without masks": (remove("masks_medium/semantic_image/1.png"), r"no mask of training frame 1 "),
    "test frame without truth": (remove("label-filt/5.png"), r"no label of test frame 5 "),
    "intrinsics of another image size": (
        rewrite("intrinsic/intrinsic_color.txt", matrix_text(intrinsics(1170.0, 1296, 968))),
        r"intrinsic_color\.txt: focal length \(1170, 1170\) and centre \(648, 484\) do not fit images of 24x18",
    ),
    "intrinsics of the wrong shape": (
        rewrite("intrinsic/intrinsic_depth.txt", "1 2 3 4 5 6"),
        r"intrinsic_depth\.txt: holds 6 numbers instead of a 4x4 or 3x3 matrix",
    ),
    "no intrinsics": (remove("intrinsic/intrinsic_color.txt"), r"intrinsic_color\.txt: no such file"),
    "size that is no number": (rewrite("scene0001_00.txt", "colorWidth = wide"), r"scene0001_00\.txt: colorWidth"),
    "pose that is no text": (rewrite("pose/2.txt", "a b c"), r"pose/2\.txt: is not a text file of numbers"),
    "pose cut short": (rewrite("pose/2.txt", "1 0 0 0 0 1 0 0"), r"pose/2\.txt: holds 8 numbers instead of a 4x4"),
    "pose with a scale in it": (
        rewrite("pose/2.txt", matrix_text(np.diag([2.0, 2.0, 2.0, 1.0]))),
        r"pose/2\.txt: its 3x3 part is no rotation",
    ),
    "mirrored pose": (rewrite("pose/2.txt", matrix_text(np.diag([1.0, 1.0, -1.0, 1.0]))), r"pose/2\.txt: its 3x3 part"),
    "name that is no frame number": (
        lambda folder: (folder / "color/3.png").rename(folder / "color/frame-3.png") and None,
        r"color/frame-3\.png: its name is not a frame number",
    ),
    "one frame number twice": (redraw("color/03.png", ids((*FULL, 3), 1)), "is the same frame number as"),
    "split that is no JSON": (rewrite("splits.json", "train: 1"), r"splits\.json: is not"),
    "split of unknown frames": (rewrite("splits.json", '{"train": [1], "test": [99]}'), "names frame 99"),
    "split with a frame on both sides": (
        rewrite("splits.json", '{"train": [1, 2], "test": [2]}'),
        r"splits\.json: frame 2 is both train and test",
    ),
    "split without training frames": (rewrite("splits.json", '{"train": [], "test": [2]}'), "no training frames"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_with_its_file_in_one_line(scene_folder: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(scene_folder)
    with pytest.raises(UserError, match=message) as caught:
        list((scene := open_scene(scene_folder)).frames(range(len(scene.source))))
    assert "\n" not in str(caught.value)


def test_all_poses_lost_is_an_error(scene_folder: Path) -> None:
    for path in (scene_folder / "pose").iterdir():
        path.write_text(" ".join(["nan"] * 16))
    with pytest.raises(UserError, match="no pose is finite"):
        open_scene(scene_folder)


def test_a_mask_name_that_does_not_exist_lists_those_that_do(scene_folder: Path) -> None:
    with pytest.raises(UserError, match="one of: medium, none"):
        open_scene(scene_folder, masks="heavy")


def test_a_folder_that_is_no_scene_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    with pytest.raises(UserError, match=r"color: holds no images.*data\.root"):
        open_scene(tmp_path, masks=None)


def test_as_many_views_are_kept_as_asked_for_spread_evenly_over_the_path(scene_folder: Path) -> None:
    everything = open_scene(scene_folder)
    train = names(everything, "train")
    for views in range(1, len(train) + 1):
        scene = open_scene(scene_folder, views=views)
        kept = names(scene, "train")
        assert len(kept) == len(set(kept)) == views
        assert names(scene, "test") == names(everything, "test")
        # No stretch of the path is much longer than an equal share of it.
        places = [-1, *(train.index(name) for name in kept), len(train)]
        assert max(b - a for a, b in pairwise(places)) <= len(train) / views + 1
    assert names(open_scene(scene_folder, views=len(train)), "train") == train


def test_views_are_those_of_the_frames_that_the_stride_leaves(scene_folder: Path) -> None:
    thinned = names(open_scene(scene_folder, stride=2), "train")
    assert set(names(open_scene(scene_folder, stride=2, views=2), "train")) < set(thinned)


def test_more_views_than_there_are_is_an_error_and_not_fewer_than_asked_for(scene_folder: Path) -> None:
    count = len(open_scene(scene_folder).train)
    with pytest.raises(
        UserError, match=f"has {count} frames to choose from, {count + 1} are asked for: ask for no more"
    ):
        open_scene(scene_folder, views=count + 1)


def test_depth_noise_grows_with_the_square_of_depth_and_leaves_test_frames_alone(scene_folder: Path) -> None:
    far = np.full((90, 120), 3000, dtype=np.uint16)
    far[:, :60] = 1500
    far[0, :] = 0
    for n in range(12):
        write_image(scene_folder / f"depth/{n}.png", far)
    (scene_folder / "intrinsic" / "intrinsic_depth.txt").write_text(matrix_text(intrinsics(100, 120, 90)))
    plain = open_scene(scene_folder, image_size=(120, 90))
    scene = open_scene(scene_folder, image_size=(120, 90), depth_noise=0.01)
    for i in scene.test:
        depth, truth = scene.source.load(i).depth, plain.source.load(i).depth
        assert torch.equal(depth, truth)
    errors = torch.stack([scene.source.load(i).depth - plain.source.load(i).depth for i in scene.train])  # type: ignore[operator]
    seen = far > 0
    near, distant = errors[:, seen & (far == 1500)], errors[:, seen & (far == 3000)]
    assert near.std().item() == pytest.approx(0.01 * 1.5**2, rel=0.02)
    assert distant.std().item() == pytest.approx(0.01 * 3.0**2, rel=0.02)
    assert abs(distant.mean().item()) < 0.002
    # A pixel without a measurement gets none, and no two frames have the same noise.
    assert (errors[:, ~seen] == 0).all()
    assert not torch.equal(errors[0], errors[1])


def test_depth_noise_is_the_same_each_time_it_is_read(scene_folder: Path) -> None:
    scenes = [open_scene(scene_folder, depth_noise=0.05, cache_bytes=size, views=views)
              for size, views in ((0, None), (1 << 30, None), (0, 3))]  # fmt: skip
    depth = [{scene.source.name(i): scene.source.load(i).depth for i in scene.train} for scene in scenes]
    for other in depth[1:]:
        assert all(torch.equal(other[name], depth[0][name]) for name in other)


def test_depth_noise_brings_back_nothing_that_the_limit_left_out(scene_folder: Path) -> None:
    write_image(scene_folder / "depth/6.png", np.full((HEIGHT // 2, WIDTH // 2), 65535, dtype=np.uint16))
    scene = open_scene(scene_folder, depth_noise=0.05)
    index = next(i for i in scene.train if scene.source.name(i) == "6")
    assert (scene.source.load(index).depth == 0).all()


def test_noise_never_makes_depth_negative_or_larger_than_the_limit(scene_folder: Path) -> None:
    scene = open_scene(scene_folder, depth_noise=2.0, max_depth=1.5)
    for i in scene.train:
        depth = scene.source.load(i).depth
        assert depth.min() >= 0
        assert depth.max() <= 1.5


@pytest.mark.parametrize("bad", [{"views": 0}, {"depth_noise": -0.1}, {"depth_noise": float("nan")}])
def test_impossible_views_and_noise_are_refused(scene_folder: Path, bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be at least 1 or null, depth_noise"):
        open_scene(scene_folder, **bad)  # type: ignore[arg-type]


def test_noise_needs_depth(scene_folder: Path) -> None:
    shutil.rmtree(scene_folder / "depth")
    with pytest.raises(UserError, match=r"has no depth to add noise to: leave out data\.depth_noise"):
        open_scene(scene_folder, depth_noise=0.01)


def test_a_stride_of_zero_is_refused(scene_folder: Path) -> None:
    with pytest.raises(UserError, match="stride 0 must be at least 1"):
        open_scene(scene_folder, stride=0)
