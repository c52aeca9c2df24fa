"""Writes a scene of the exported ScanNet layout in that of ScanNet++: undistorted DSLR images, poses, mesh, labels."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from panbench.data.room_export import write_json
from panbench.data.scannet_reader import open_scene
from panbench.errors import UserError
from panbench.scene import Scene

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
        The scene's folder. It appears in one step when it is complete.

    Raises:
        UserError: the room is damaged, or the folder cannot be written.
    """
    scene = open_scene(room, masks=None, test_every=0)
    name = scene_name(room)
    try:
        out.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=out))
        try:
            _write_dslr(draft / "dslr", room, scene)
            _write_scans(draft / "scans", room, name)
            for masks in sorted(room.glob("masks_*/")):
                _copy_masks(masks, draft / masks.name, scene)
            for file in ("classes.json", "synthetic.json"):
                if (room / file).is_file():
                    shutil.copyfile(room / file, draft / file)
            draft.chmod(0o755)
            if (out / name).exists():
                shutil.rmtree(out / name)
            draft.rename(out / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot write a scene there ({error.strerror or error}); free space or choose another folder"
        ) from error
    return out / name


def _image_name(frame: str) -> str:
    return f"DSC{int(frame):05d}.JPG"


def _write_dslr(folder: Path, room: Path, scene: Scene) -> None:
    (folder / "nerfstudio").mkdir(parents=True)
    (folder / "colmap").mkdir()
    (folder / "undistorted_images").mkdir()
    source = scene.source
    camera = source.camera(0)
    frames: dict[int, Mapping[str, object]] = {}
    images: list[str] = []
    for index in range(len(source)):
        name = _image_name(source.name(index))
        shutil.copyfile(room / "color" / f"{source.name(index)}.jpg", folder / "undistorted_images" / name)
        to_camera = source.camera(index).world_to_camera.numpy().astype(np.float64)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = to_camera[:3, :3].T, -to_camera[:3, :3].T @ to_camera[:3, 3]
        numbers = [*Rotation.from_matrix(to_camera[:3, :3]).as_quat(scalar_first=True), *to_camera[:3, 3]]
        images += [f"{index + 1} {' '.join(repr(float(v)) for v in numbers)} 1 {name}", ""]
        frames[index] = {
            "file_path": name,
            "mask_path": f"{Path(name).stem}.png",
            "transform_matrix": from_mesh_world(pose).tolist(),
            "is_bad": False,
        }
    k = {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy, "w": camera.width, "h": camera.height}
    transforms = {
        **k,
        **{f"k{i}": 0.0 for i in range(1, 5)},
        "camera_model": "PINHOLE",
        "frames": [frames[i] for i in scene.train],
        "test_frames": [frames[i] for i in scene.test],
        "has_mask": False,
    }
    write_json(folder / "nerfstudio" / "transforms_undistorted.json", transforms)
    lists = {part: [frames[i]["file_path"] for i in indices] for part, indices in _parts(scene)}
    write_json(folder / "train_test_lists.json", {**lists, "has_masks": False})
    header = "# Poses alone; written by panbench\n"
    intrinsics = " ".join(repr(v) for v in (camera.fx, camera.fy, camera.cx, camera.cy))
    (folder / "colmap" / "cameras.txt").write_text(f"{header}1 PINHOLE {camera.width} {camera.height} {intrinsics}\n")
    (folder / "colmap" / "images.txt").write_text(header + "\n".join(images) + "\n")
    (folder / "colmap" / "points3D.txt").write_text(header)


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


def _copy_masks(masks: Path, out: Path, scene: Scene) -> None:
    for kind in _MASK_KINDS:
        if not (masks / kind).is_dir():
            continue
        (out / kind).mkdir(parents=True)
        for index in range(len(scene.source)):
            frame = scene.source.name(index)
            path = masks / kind / f"{frame}.png"
            if path.is_file():
                shutil.copyfile(path, out / kind / f"{Path(_image_name(frame)).stem}.png")
