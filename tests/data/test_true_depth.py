"""The noise-free depth of rendered scenes: whose it is, in which units, along which rays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from panbench.data.rooms import make_room
from panbench.data.scannet_reader import open_scene
from panbench.errors import UserError
from panbench.scene import Scene


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("room"), size="tiny", masks=("clean",), progress=False)


@pytest.fixture
def scene_folder(room: Path, tmp_path: Path) -> Path:
    """The room by links, but with a folder ``gt`` that a test may change."""
    folder = tmp_path / room.name
    folder.mkdir()
    for path in room.iterdir():
        if path.name != "gt":
            (folder / path.name).symlink_to(path)
    (folder / "gt").mkdir()
    (folder / "gt/depth_gt.npz").write_bytes((room / "gt/depth_gt.npz").read_bytes())
    return folder


def _open(folder: Path, **options: object) -> Scene:
    return open_scene(folder, masks="clean", **options)  # type: ignore[arg-type]


def test_test_frames_have_the_depth_of_the_file_in_metres_and_training_frames_none(room: Path) -> None:
    scene = _open(room)
    with np.load(room / "gt/depth_gt.npz") as file:
        stored = dict(zip(file["stems"].tolist(), file["depth"] * float(file["metres_per_unit"]), strict=True))
    for frame in scene.frames(scene.test):
        assert frame.true_depth is not None
        assert frame.true_depth.dtype == torch.float32
        assert np.allclose(frame.true_depth.numpy(), stored[frame.name], atol=1e-6)
    assert all(frame.true_depth is None for frame in scene.frames(scene.train))


def test_the_sensor_measures_the_true_depth_with_its_noise(room: Path) -> None:
    """Disparity noise of half an eighth of a pixel or so: millimetres at the distances of the tiny room."""
    scene = _open(room)
    for frame in scene.frames(scene.test):
        assert frame.true_depth is not None
        assert frame.depth is not None
        measured = (frame.depth > 0) & (frame.true_depth > 0)
        assert measured.float().mean() > 0.5
        error = (frame.depth - frame.true_depth)[measured].abs()
        assert 0 < error.median() < 0.03


def test_at_another_size_true_and_measured_depth_show_the_same_rays(room: Path) -> None:
    scene = _open(room, image_size=(80, 60))
    whole = _open(room)
    for small, large in zip(scene.frames(scene.test), whole.frames(whole.test), strict=True):
        assert small.true_depth is not None
        assert large.true_depth is not None
        # The ray through the centre of a pixel of the small image lies between four pixels: one of them is taken.
        assert torch.equal(small.true_depth, large.true_depth[1::2, 1::2])


def test_it_moves_with_its_frame(room: Path) -> None:
    scene = _open(room)
    frame = scene.source.load(scene.test[0]).to("meta")
    assert frame.true_depth is not None
    assert frame.true_depth.device.type == "meta"


def test_a_scene_without_the_file_has_none(scene_folder: Path) -> None:
    (scene_folder / "gt/depth_gt.npz").unlink()
    scene = _open(scene_folder)
    assert all(frame.true_depth is None for frame in scene.frames(scene.test))


@pytest.mark.parametrize("case", ["cut off", "no archive", "too few frames", "another size"])
def test_a_damaged_file_is_named_in_one_line(scene_folder: Path, case: str) -> None:
    path = scene_folder / "gt/depth_gt.npz"
    with np.load(path) as file:
        content = dict(file)
    if case == "cut off":
        os.truncate(path, 1000)
    elif case == "no archive":
        path.write_bytes(b"depth")
    elif case == "too few frames":
        np.savez(path, **content | {"depth": content["depth"][1:]})
    else:
        np.savez(path, **content | {"depth": content["depth"][:, 1:]})
    scene = _open(scene_folder)
    with pytest.raises(UserError, match=r"depth_gt\.npz: ") as found:
        scene.source.load(scene.test[0])
    assert "\n" not in str(found.value)


def test_only_the_truth_knows_what_the_sensor_missed(room: Path) -> None:
    """Pixels of the depth image without a measurement have a true depth all the same."""
    scene = _open(room)
    frame = scene.source.load(scene.test[0])
    stored = np.asarray(Image.open(room / f"depth/{frame.name}.png"))
    assert frame.true_depth is not None
    assert (stored == 0).any()
    assert (frame.true_depth.numpy()[stored == 0] > 0).mean() > 0.9
