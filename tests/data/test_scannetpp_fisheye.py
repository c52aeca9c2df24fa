"""ScanNet++'s fisheye images: the lens against its formula, rooms written through it and read back, bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

from panbench.data import scannet_reader
from panbench.data.mesh import MeshCaster, read_mesh
from panbench.data.rooms import make_room
from panbench.data.scannet_reader import Pinhole
from panbench.data.scannetpp import ScanNetPPDataModule
from panbench.data.scannetpp_export import lens_within, write_fisheye, write_scannetpp
from panbench.data.scannetpp_labels import read_label_space
from panbench.data.scannetpp_reader import VertexLabels, open_scene, read_annotation
from panbench.data.undistort import Lens, Undistortion
from panbench.errors import UserError
from panbench.scene import Camera

TRANSFORMS = "dslr/nerfstudio/transforms.json"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("rooms"), size="tiny", seed=3, masks=["heavy"], progress=False)


@pytest.fixture(scope="module")
def written(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fisheye(room, tmp_path_factory.mktemp("fisheye") / "data")


@pytest.fixture
def fisheye(written: Path, tmp_path: Path) -> Path:
    """A copy to damage: its small files are copied, its images linked."""
    out = tmp_path / written.name
    for path in (p for p in written.rglob("*") if p.is_file()):
        target = out / path.relative_to(written)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".JPG":
            target.symlink_to(path)
        else:
            target.write_bytes(path.read_bytes())
    return out


def seen_at(lens: Lens, pinhole: Pinhole | Camera) -> tuple[np.ndarray, np.ndarray]:
    """Where in the lens's image (column, row; first pixel's centre at 0.5) each pixel of the pinhole camera lies."""
    x, y = np.meshgrid(
        (np.arange(pinhole.width) + 0.5 - pinhole.cx) / pinhole.fx,
        (np.arange(pinhole.height) + 0.5 - pinhole.cy) / pinhole.fy,
    )
    r = np.hypot(x, y)
    theta = np.arctan(r)
    k1, k2, k3, k4 = lens.coefficients
    theta_d = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    bend = np.divide(theta_d, r, out=np.ones_like(r), where=r > 0)
    return lens.fx * x * bend + lens.cx, lens.fy * y * bend + lens.cy


def read_lens(folder: Path) -> Lens:
    data = json.loads((folder / TRANSFORMS).read_text())
    coefficients = tuple(data[f"k{i}"] for i in range(1, 5))
    return Lens("fisheye", data["w"], data["h"], data["fl_x"], data["fl_y"], data["cx"], data["cy"], coefficients)


# --------------------------------------------------------------------------------------------------------- the lens


@pytest.mark.parametrize("coefficients", [(0.0, 0.0, 0.0, 0.0), (-0.03, -0.006, 0.002, -0.0004), (0.1, 0.02, 0, 0)])
def test_the_lens_bends_as_its_formula_says(coefficients: tuple[float, ...]) -> None:
    lens = Lens("fisheye", 90, 60, 50.0, 52.0, 46.0, 29.0, coefficients)
    undistortion = Undistortion(lens)
    columns, rows = np.meshgrid(np.arange(90, dtype=np.int32), np.arange(60, dtype=np.int32))
    exact_places = seen_at(lens, undistortion.pinhole)
    for found, exact in zip((undistortion.nearest(columns), undistortion.nearest(rows)), exact_places, strict=True):
        clear = np.abs(exact - np.round(exact)) > 1e-3  # from the edge between two pixels
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(found[clear], np.floor(exact[clear]))
    # ScanNet++'s recipe: no pixel of the result lies outside of the lens's image.
    for exact, size in zip(exact_places, (90, 60), strict=True):
        assert exact.min() > -1.5
        assert exact.max() < size + 1.5
    assert (undistortion.pinhole.cx, undistortion.pinhole.cy) == (45, 30)


def test_the_lens_of_rooms_sees_all_but_nothing_beyond_the_picture() -> None:
    camera = Pinhole(160, 120, 130.0, 128.0, 83.0, 58.0)
    column, row = seen_at(lens_within(camera), camera)
    # The picture covers more than the lens's image, and meets it at the farthest corner.
    assert column.min() < 1
    assert column.max() > 159
    assert row.max() > 119
    corner = Pinhole(1, 1, camera.fx, camera.fy, camera.cx + 0.5, camera.cy - 120 + 0.5)  # its ray is that of (0, 120)
    np.testing.assert_allclose([v.item() for v in seen_at(lens_within(camera), corner)], [0, 120], atol=1e-9)


# ------------------------------------------------------------------------------------------------------ written rooms


def test_a_room_reads_back_through_the_lens(room: Path, written: Path) -> None:
    before = scannet_reader.open_scene(room, masks="heavy")
    after = ScanNetPPDataModule(root=str(written.parents[1]), masks="heavy").scene
    assert (after.train, after.test, after.synthetic) == (before.train, before.test, True)
    lens, old_camera = read_lens(written), before.source.camera(0)
    straight = Undistortion(lens).pinhole
    assert straight.fx > old_camera.fx  # it sees less than the room's camera: nothing is made up
    vertices, faces = read_mesh(written / "scans/mesh_aligned_0.05.ply")
    caster = MeshCaster(vertices, faces)
    labels = read_annotation(written, len(vertices), read_label_space(written, None)[1], "smallest")
    assert labels is not None
    x, y = np.meshgrid(np.arange(straight.width) + 0.5 - straight.cx, np.arange(straight.height) + 0.5 - straight.cy)
    column = x / straight.fx * old_camera.fx + old_camera.cx - 0.5
    row = y / straight.fy * old_camera.fy + old_camera.cy - 0.5
    for index in range(len(before.source)):
        old, new = before.source.load(index), after.source.load(index)
        camera = new.camera
        torch.testing.assert_close(camera.world_to_camera, old.camera.world_to_camera, atol=1e-6, rtol=0)
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == (straight.fx, straight.fy, straight.cx, straight.cy)
        # Two bilinear or cubic resamplings and a JPEG lie between: what they take is fine texture and noise.
        picture = old.color.numpy().astype(np.float64)
        direct = np.stack([map_coordinates(picture[..., k], (row, column), order=3) for k in range(3)], axis=-1)
        error = np.mean((direct - new.color.numpy()) ** 2)
        shifted = np.mean((direct[:, 1:] - new.color.numpy()[:, :-1]) ** 2)
        assert 10 * np.log10(255**2 / error) > 30
        assert shifted > 4 * error  # a picture that is off by a pixel is told from one that is not
        # Depth and labels are those of the pinhole camera.
        depth, vertex = caster.view(camera)
        assert new.depth is not None
        assert new.truth is not None
        np.testing.assert_allclose(new.depth.numpy(), np.where(depth <= 8.0, depth, 0), atol=5.1e-4)
        assert_truth(new.truth.semantic.numpy(), new.truth.instance.numpy(), vertex, labels, after.labels.is_thing())
        # Masks too: of the room's, at the nearest pixel.
        assert (old.masks is None) == (new.masks is None)
        if old.masks is not None and new.masks is not None:
            place = np.clip(np.round(row).astype(int), 0, 119), np.clip(np.round(column).astype(int), 0, 159)
            assert (new.masks.semantic.numpy() == old.masks.semantic.numpy()[place]).mean() > 0.999
            assert (new.masks.instance.numpy() == old.masks.instance.numpy()[place]).mean() > 0.999


def assert_truth(
    semantic: np.ndarray, instance: np.ndarray, vertex: np.ndarray, labels: VertexLabels, thing: np.ndarray
) -> None:
    hit = vertex >= 0
    np.testing.assert_array_equal(semantic, np.where(hit, labels.semantic[vertex], 0))
    np.testing.assert_array_equal(instance, np.where(hit & thing[semantic], labels.instance[vertex], 0))


def test_what_the_lens_image_hides_is_hidden_where_the_pinhole_camera_sees_it(fisheye: Path) -> None:
    name = open_scene(fisheye, masks=None).source.name(0)
    mask = np.full((120, 160), 255, np.uint8)
    mask[:, :50] = 0
    Image.fromarray(mask).save(fisheye / f"dslr/resized_anon_masks/{name}.png")
    scene = open_scene(fisheye, masks=None, max_depth=60)
    frame = scene.source.load(0)
    column, _ = seen_at(read_lens(fisheye), scene.source.camera(0))
    assert frame.depth is not None
    assert frame.truth is not None
    # Bilinear, and all that is not wholly shown counts as hidden.
    assert not frame.depth.numpy()[column < 50.4].any()
    assert not frame.truth.semantic.numpy()[column < 50.4].any()
    assert (frame.depth.numpy()[column > 50.6] > 0).mean() > 0.99


def test_another_size_is_that_of_the_pinhole_camera_scaled(fisheye: Path) -> None:
    whole, half = (open_scene(fisheye, masks=None, image_size=size) for size in (None, (80, 60)))
    a, b = whole.source.camera(0), half.source.camera(0)
    assert (b.width, b.height, b.fx, b.cx) == pytest.approx((80, 60, a.fx / 2, a.cx / 2))
    small = np.asarray(Image.fromarray(whole.source.load(0).color.numpy()).resize((80, 60), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(half.source.load(0).color.numpy(), small)


# ------------------------------------------------------------------------------------------------ which camera; errors


def test_undistorted_images_are_taken_where_there_are_both(room: Path, written: Path, tmp_path: Path) -> None:
    both = write_scannetpp(room, tmp_path)
    for name in ("dslr/resized_images", TRANSFORMS):
        (both / name).symlink_to(written / name)
    focal = [open_scene(both, masks=None, camera=c).source.camera(0).fx for c in ("auto", "undistorted", "fisheye")]
    assert focal[0] == focal[1]
    assert focal[2] == Undistortion(read_lens(both)).pinhole.fx


def change(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = {**json.loads((folder / TRANSFORMS).read_text()), **changes}
        (folder / TRANSFORMS).write_text(json.dumps({k: v for k, v in data.items() if v != "gone"}))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(k1="gone"), r"transforms\.json: w, h, fl_x, fl_y, cx, cy or k1 \.\.\. k4 is missing or no number"),
        (change(k3=None), r"k1 \.\.\. k4 is missing or no number"),
        (change(k2=float("nan")), r"transforms\.json: focal length .* or a number is not finite"),
        (change(k1=-9.0), r"transforms\.json: its lens sees half a turn or more, or folds"),
        (change(camera_model="PINHOLE"), r"camera_model is PINHOLE, not OPENCV_FISHEYE"),
        (change(fl_x=-1.0), r"focal length \(-1,"),
        (change(cx=1e9), r"transforms\.json: its lens"),
        (lambda folder: (folder / "dslr/resized_images").rename(folder / "x"), r"resized_images: no such folder"),
    ],
    ids=["no k1", "k3 null", "k2 nan", "folds", "pinhole", "focal", "centre", "no images"],
)  # fmt: skip
def test_bad_files_are_named_in_one_line(fisheye: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(fisheye)
    with pytest.raises(UserError, match=message) as caught:
        open_scene(fisheye, masks=None).source.load(0)
    assert "\n" not in str(caught.value)


def test_undistorted_images_that_are_not_there_are_not_replaced_by_others(fisheye: Path) -> None:
    with pytest.raises(
        UserError, match=r"transforms_undistorted\.json: no such file: check data\.root, .*data\.camera"
    ):
        open_scene(fisheye, masks=None, camera="undistorted")
