"""Writes a scene of the exported ScanNet layout in that of ScanNet++: DSLR images, poses, mesh, labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from panbench.data.draft import appearing
from panbench.data.images import read_color, read_integers
from panbench.data.room_export import write_json
from panbench.data.scannet_files import Pinhole
from panbench.data.scannet_reader import open_scene
from panbench.data.undistort import Lens, Undistortion
from panbench.scene import Scene

# k1 ... k4 of the lens of write_fisheye: a made-up one, bent about as much as real fisheye lenses are.
LENS = (-0.03, -0.006, 0.002, -0.0004)
_MASK_KINDS = ("semantic_image", "instance_image", "score")


def scene_name(room: Path) -> str:
    """A name of ten hexadecimal digits, as ScanNet++'s scenes have: the room's digits, filled with zeros."""
    return "".join(c for c in room.name if c.isdigit())[:10].ljust(10, "0")


def from_mesh_world(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix of the transforms files [4, 4] of a camera-to-world pose with OpenCV axes, in the mesh's world.

    As the ScanNet++ toolbox writes it, for instant-ngp: camera axes y and z reversed, world axes x and y swapped, z
    reversed.
    """
    out = pose.copy()
    out[:3, 1:3] *= -1
    out = out[[1, 0, 2, 3]]
    out[2] *= -1
    return out


def write_scannetpp(room: Path, out: Path) -> Path:
    """Write the room as ``out/<name>``; what ScanNet++ has no place for (sensor depth, lost frames) is left out.

    The images are those of a pinhole camera, so there are no distorted ones and no reconstruction of them: the files of
    COLMAP hold the poses alone.

    Args:
        room: folder of a scene in the exported ScanNet layout, with mesh and aggregation.
        out: folder of scenes; made if missing.

    Returns:
        The scene's folder. It appears in one step when it is complete; a room of that name that was there is replaced.

    Raises:
        UserError: the room is damaged, a scene is there that is no room, or the folder cannot be written.
    """

    def write(draft: Path, scene: Scene) -> None:
        c = scene.source.camera(0)
        lens = Lens("pinhole", c.width, c.height, c.fx, c.fy, c.cx, c.cy)
        images = draft / "dslr" / "undistorted_images"
        images.mkdir(parents=True)
        for frame in _names(scene):
            shutil.copyfile(room / "color" / f"{frame}.jpg", images / _image_name(frame))
        _write_cameras(draft / "dslr", scene, lens, "transforms_undistorted.json")
        for masks in sorted(room.glob("masks_*/")):
            copy_masks(masks, draft / masks.name, scene, _image_stem)

    return write_room(room, out, write)


def write_fisheye(room: Path, out: Path) -> Path:
    """Write the room as ``out/<name>``, its images as a fisheye lens in the camera's place sees them.

    The lens is the widest of its form that sees nothing beyond the room's pictures, so no pixel is made up
    (:func:`lens_within`). The pseudo-masks are those of the pinhole camera that the images are undistorted to, as the
    reader takes them, resampled without mixing ids.

    Args:
        room: folder of a scene in the exported ScanNet layout, with mesh and aggregation.
        out: folder of scenes; made if missing.

    Returns:
        The scene's folder, as from :func:`write_scannetpp`.

    Raises:
        UserError: as :func:`write_scannetpp`; or OpenCV is not installed.
    """

    def write(draft: Path, scene: Scene) -> None:
        c = scene.source.camera(0)
        camera = Pinhole(c.width, c.height, c.fx, c.fy, c.cx, c.cy)
        lens = lens_within(camera)
        rows, columns = _seen_by_lens(lens, camera)
        images, shown = draft / "dslr" / "resized_images", draft / "dslr" / "resized_anon_masks"
        images.mkdir(parents=True)
        shown.mkdir()
        for frame in _names(scene):
            picture = read_color(room / "color" / f"{frame}.jpg")
            bent = [
                map_coordinates(picture[..., k].astype(np.float32), (rows, columns), mode="nearest") for k in range(3)
            ]
            bent = np.clip(np.round(np.stack(bent, axis=-1)), 0, 255).astype(np.uint8)
            Image.fromarray(bent).save(images / _image_name(frame), "JPEG", quality=98, subsampling=0)
            nothing_hidden = np.full((camera.height, camera.width), 255, dtype=np.uint8)
            Image.fromarray(nothing_hidden).save(shown / f"{_image_stem(frame)}.png")
        _write_cameras(draft / "dslr", scene, lens, "transforms.json")
        straight = Undistortion(lens).pinhole
        for masks in sorted(room.glob("masks_*/")):
            copy_masks(masks, draft / masks.name, scene, _image_stem, lambda m: _seen_by_pinhole(m, camera, straight))

    return write_room(room, out, write)


def write_room(room: Path, out: Path, write: Callable[[Path, Scene], None]) -> Path:
    """Write ``out/<name>`` of a room in one step: what ``write`` puts into a draft, mesh, annotation, label space.

    Raises:
        UserError: as :func:`write_scannetpp`.
    """
    scene = open_scene(room, masks=None, test_every=0)
    name = scene_name(room)
    with appearing(out / name, "synthetic.json") as draft:
        write(draft, scene)
        _write_scans(draft / "scans", room, name)
        for file in ("classes.json", "synthetic.json"):
            if (room / file).is_file():
                shutil.copyfile(room / file, draft / file)
    return out / name


def lens_within(camera: Pinhole, coefficients: tuple[float, float, float, float] = LENS) -> Lens:
    """The fisheye lens in a pinhole camera's place whose farthest image corner is that of the camera.

    With θ_d(θ) growing more slowly than tan θ, everything else that it sees lies inside of the camera's image, too.
    """
    x = np.array([-camera.cx, camera.width - camera.cx]) / camera.fx
    y = np.array([-camera.cy, camera.height - camera.cy]) / camera.fy
    farthest = float(np.hypot(np.abs(x).max(), np.abs(y).max()))
    scale = farthest / float(_theta_d(np.arctan([farthest]), coefficients)[0])
    fx, fy = scale * camera.fx, scale * camera.fy
    return Lens("fisheye", camera.width, camera.height, fx, fy, camera.cx, camera.cy, coefficients)


def _theta_d(theta: NDArray[np.float64], k: Sequence[float]) -> NDArray[np.float64]:
    t = theta**2
    return theta * (1 + t * (k[0] + t * (k[1] + t * (k[2] + t * k[3]))))


def _theta(theta_d: NDArray[np.float64], k: Sequence[float]) -> NDArray[np.float64]:
    """The angle to the axis of each θ_d, by Newton's method."""
    theta = theta_d.copy()
    for _ in range(20):
        t = theta**2
        slope = 1 + t * (3 * k[0] + t * (5 * k[1] + t * (7 * k[2] + t * 9 * k[3])))
        theta -= (_theta_d(theta, k) - theta_d) / slope
    return theta


def _seen_by_lens(lens: Lens, camera: Pinhole) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Row and column [H, W] in the camera's picture of what each pixel of the lens sees; first pixel's centre at 0."""
    x = (np.arange(lens.width, dtype=np.float64)[None, :] + 0.5 - lens.cx) / lens.fx
    y = (np.arange(lens.height, dtype=np.float64)[:, None] + 0.5 - lens.cy) / lens.fy
    theta_d = np.hypot(x, y)
    # On the axis the ratio is 1.
    ratio = np.where(theta_d > 0, np.tan(_theta(theta_d, lens.coefficients)) / np.where(theta_d > 0, theta_d, 1), 1.0)
    return y * ratio * camera.fy + camera.cy - 0.5, x * ratio * camera.fx + camera.cx - 0.5


def _seen_by_pinhole(image: NDArray[np.integer], camera: Pinhole, wanted: Pinhole) -> NDArray[np.integer]:
    """A map of ids [H, W] in ``camera`` as ``wanted`` in its place sees it; every value is one of the map's."""
    column = np.floor((np.arange(wanted.width) + 0.5 - wanted.cx) / wanted.fx * camera.fx + camera.cx).astype(np.int64)
    row = np.floor((np.arange(wanted.height) + 0.5 - wanted.cy) / wanted.fy * camera.fy + camera.cy).astype(np.int64)
    return image[np.clip(row, 0, camera.height - 1)[:, None], np.clip(column, 0, camera.width - 1)]


def _names(scene: Scene) -> list[str]:
    return [scene.source.name(i) for i in range(len(scene.source))]


def _image_stem(frame: str) -> str:
    return f"DSC{int(frame):05d}"


def _image_name(frame: str) -> str:
    return f"{_image_stem(frame)}.JPG"


def _write_cameras(folder: Path, scene: Scene, lens: Lens, transforms_name: str) -> None:
    """Transforms, lists and the files of COLMAP."""
    (folder / "nerfstudio").mkdir()
    (folder / "colmap").mkdir()
    frames: dict[int, Mapping[str, object]] = {}
    images: list[str] = []
    for index, frame in enumerate(_names(scene)):
        to_camera = scene.source.camera(index).world_to_camera.numpy().astype(np.float64)
        numbers = [*Rotation.from_matrix(to_camera[:3, :3]).as_quat(scalar_first=True), *to_camera[:3, 3]]
        images += [f"{index + 1} {' '.join(repr(float(v)) for v in numbers)} 1 {_image_name(frame)}", ""]
        frames[index] = {
            "file_path": _image_name(frame),
            "mask_path": f"{_image_stem(frame)}.png",
            "transform_matrix": from_mesh_world(camera_to_world(to_camera)).tolist(),
            "is_bad": False,
        }
    model = "OPENCV_FISHEYE" if lens.model == "fisheye" else "PINHOLE"
    transforms = {
        "fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy, "w": lens.width, "h": lens.height,
        **{f"k{i + 1}": k for i, k in enumerate(lens.coefficients or (0.0,) * 4)},
        "camera_model": model,
        "frames": [frames[i] for i in scene.train],
        "test_frames": [frames[i] for i in scene.test],
        "has_mask": lens.model == "fisheye",
    }  # fmt: skip
    write_json(folder / "nerfstudio" / transforms_name, transforms)
    lists = {part: [frames[i]["file_path"] for i in indices] for part, indices in _parts(scene)}
    write_json(folder / "train_test_lists.json", {**lists, "has_masks": lens.model == "fisheye"})
    header = "# Poses alone; written by panbench\n"
    numbers = " ".join(repr(v) for v in (lens.fx, lens.fy, lens.cx, lens.cy, *lens.coefficients))
    (folder / "colmap" / "cameras.txt").write_text(f"{header}1 {model} {lens.width} {lens.height} {numbers}\n")
    (folder / "colmap" / "images.txt").write_text(header + "\n".join(images) + "\n")
    (folder / "colmap" / "points3D.txt").write_text(header)


def camera_to_world(world_to_camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse [4, 4] of a rigid matrix."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = world_to_camera[:3, :3].T, -world_to_camera[:3, :3].T @ world_to_camera[:3, 3]
    return pose


def _parts(scene: Scene) -> tuple[tuple[str, Sequence[int]], tuple[str, Sequence[int]]]:
    return ("train", scene.train), ("test", scene.test)


def _write_scans(folder: Path, room: Path, name: str) -> None:
    folder.mkdir()
    shutil.copyfile(room / f"{room.name}_vh_clean_2.ply", folder / "mesh_aligned_0.05.ply")
    segments = json.loads((room / f"{room.name}_vh_clean_2.0.010000.segs.json").read_text())
    write_json(folder / "segments.json", {"sceneId": name, "segIndices": segments["segIndices"]}, indent=None)
    groups = json.loads((room / f"{room.name}.aggregation.json").read_text())["segGroups"]
    # Objects count from 1, as the ids of ScanNet's instance images do.
    objects = [
        {"id": g["objectId"] + 1, "objectId": g["objectId"] + 1, "label": g["label"], "segments": g["segments"]}
        for g in groups
    ]
    write_json(folder / "segments_anno.json", {"sceneId": name, "segGroups": objects}, indent=None)


def copy_masks(
    masks: Path,
    out: Path,
    scene: Scene,
    stem: Callable[[str], str],
    change: Callable[[NDArray[np.integer]], NDArray[np.integer]] | None = None,
) -> None:
    """Write a mask set's images under the names that ``stem`` gives their frames, changed by ``change``, if given."""
    for kind in _MASK_KINDS:
        if not (masks / kind).is_dir():
            continue
        (out / kind).mkdir(parents=True)
        for frame in _names(scene):
            path, target = masks / kind / f"{frame}.png", out / kind / f"{stem(frame)}.png"
            if not path.is_file():
                continue
            if change is None:
                shutil.copyfile(path, target)
            else:
                Image.fromarray(np.ascontiguousarray(change(read_integers(path)))).save(target)
