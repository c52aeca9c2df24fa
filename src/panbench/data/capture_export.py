"""Writes a scene of the exported ScanNet layout as captures come: nerfstudio, COLMAP, RGB-D, Panoptic Lifting.

What these forms have no place for (ground truth, pseudo-masks, label space, the synthetic mark) is put beside in the
folders of our own layout, where the importers look for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData
from scipy.spatial.transform import Rotation

from panbench.data.draft import appearing
from panbench.data.images import read_color, read_integers
from panbench.data.point_cloud import write_ply
from panbench.data.room_export import write_json
from panbench.data.scannet_reader import open_scene
from panbench.data.undistort import Lens
from panbench.masks.mask_set import INSTANCE, SCORE, SEMANTIC, MaskSet
from panbench.scene import Points, Scene

_BESIDE = ("label-filt", "instance-filt", "classes.json", "synthetic.json")
_Matrix = NDArray[np.float64]


def write_nerfstudio(room: Path, out: Path, lens: Lens | None = None) -> Path:
    """Write the room as ``out/<name>``: ``transforms.json``, ``images``, ``depth`` and ``sparse_pc.ply``.

    The world is turned as ns-process-data turns COLMAP's, with ``applied_transform`` telling how.

    Args:
        room: folder of a scene in the exported ScanNet layout.
        out: folder of captures; made if missing.
        lens: write the images as this lens would have taken them, with the room's principal point and image size; None:
            the pinhole camera of the room. Pixels outside of the room's images are hidden by ``mask_path``.

    Returns:
        The capture's folder. It appears in one step when it is complete; an earlier one is replaced.

    Raises:
        UserError: the room is damaged, or the folder cannot be written.
    """
    scene = open_scene(room, masks=None, test_every=0)
    applied = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]])
    turn = np.vstack([applied, [0, 0, 0, 1]])
    camera = scene.source.camera(0)
    lens = lens or Lens("pinhole", camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
    folder = out / room.name
    with appearing(folder, "transforms.json") as draft:
        for name in ("images", "depth", "masks"):
            (draft / name).mkdir()
        bent = _Bent(scene, lens) if lens.model != "pinhole" else None
        rows: dict[str, dict[str, object]] = {}
        for index, stem, pose in _frames(scene):
            opengl = turn @ pose @ np.diag([1.0, -1.0, -1.0, 1.0])
            color = _color(room, stem)
            row: dict[str, object] = {
                "file_path": f"images/{color.name}" if bent is None else f"images/{stem}.png",
                "transform_matrix": opengl.tolist(),
                "depth_file_path": f"depth/{stem}.png",
            }
            if bent is None:
                shutil.copyfile(color, draft / "images" / color.name)
                shutil.copyfile(room / "depth" / f"{stem}.png", draft / "depth" / f"{stem}.png")
            else:
                row["mask_path"] = f"masks/{stem}.png"
                bent.write(room, draft, stem)
            rows[scene.source.name(index)] = row
        if bent is None:
            (draft / "masks").rmdir()
        names = ("k1", "k2", "k3", "k4") if lens.model == "fisheye" else ("k1", "k2", "p1", "p2", "k3")
        parts = {
            part: [rows[scene.source.name(i)]["file_path"] for i in indices]
            for part, indices in (("train", scene.train), ("val", scene.test), ("test", scene.test))
        }
        data = {
            "camera_model": {"pinhole": "PINHOLE", "opencv": "OPENCV", "fisheye": "OPENCV_FISHEYE"}[lens.model],
            "w": lens.width, "h": lens.height, "fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy,
            **dict(zip(names, lens.coefficients, strict=False)),
            "applied_transform": applied.tolist(),
            "ply_file_path": "sparse_pc.ply",
            "frames": list(rows.values()),
            **{f"{part}_filenames": names for part, names in parts.items()},
        }  # fmt: skip
        write_json(draft / "transforms.json", data)
        cloud = _cloud(room)
        turned = (cloud.positions.astype(np.float64) @ applied[:, :3].T).astype(np.float32)
        write_ply(draft / "sparse_pc.ply", Points(turned, cloud.colors))
        _copy_beside(room, draft, scene, bent)
    return folder


def write_colmap(room: Path, out: Path) -> Path:
    """Write the room as ``out/<name>``: ``images``, ``depth`` and ``sparse/0`` as text, with points but no tracks.

    Arguments, result and errors as in :func:`write_nerfstudio`.
    """
    scene = open_scene(room, masks=None, test_every=0)
    folder = out / room.name
    with appearing(folder, "sparse/0/cameras.txt") as draft:
        model = draft / "sparse" / "0"
        for path in (model, draft / "images", draft / "depth"):
            path.mkdir(parents=True)
        lines: list[str] = []
        for index, stem, pose in _frames(scene):
            color = _color(room, stem)
            shutil.copyfile(color, draft / "images" / color.name)
            shutil.copyfile(room / "depth" / f"{stem}.png", draft / "depth" / f"{stem}.png")
            quaternion = Rotation.from_matrix(pose[:3, :3].T).as_quat(scalar_first=True)
            numbers = [*quaternion.tolist(), *(-pose[:3, :3].T @ pose[:3, 3]).tolist()]
            # The second line of an image lists its observations: there are none.
            lines += [f"{index + 1} {' '.join(repr(v) for v in numbers)} 1 {color.name}", ""]
        k = scene.source.camera(0)
        intrinsics = " ".join(repr(v) for v in (k.fx, k.fy, k.cx, k.cy))
        (model / "cameras.txt").write_text(f"# written by panbench\n1 PINHOLE {k.width} {k.height} {intrinsics}\n")
        (model / "images.txt").write_text("# written by panbench\n" + "\n".join(lines) + "\n")
        cloud = _cloud(room)
        assert cloud.colors is not None  # room meshes have colours
        rows = zip(cloud.positions.tolist(), np.round(cloud.colors * 255).astype(int).tolist(), strict=True)
        points = [f"{n} {' '.join(map(repr, xyz))} {' '.join(map(str, rgb))} 0" for n, (xyz, rgb) in enumerate(rows, 1)]
        (model / "points3D.txt").write_text("# written by panbench\n" + "\n".join(points) + "\n")
        _copy_split(draft, scene)
        _copy_beside(room, draft, scene, None)
    return folder


def write_rgbd(room: Path, out: Path) -> Path:
    """Write the room as ``out/<name>``: ``rgb``, ``depth``, ``intrinsics.txt`` and a ``trajectory.txt`` in TUM's form.

    Times are the frame numbers, in seconds. Arguments, result and errors as in :func:`write_nerfstudio`.
    """
    scene = open_scene(room, masks=None, test_every=0)
    folder = out / room.name
    with appearing(folder, "trajectory.txt") as draft:
        for name in ("rgb", "depth"):
            (draft / name).mkdir()
        lines = ["# time tx ty tz qx qy qz qw"]
        for _, stem, pose in _frames(scene):
            color = _color(room, stem)
            shutil.copyfile(color, draft / "rgb" / color.name)
            shutil.copyfile(room / "depth" / f"{stem}.png", draft / "depth" / f"{stem}.png")
            numbers = [*pose[:3, 3].tolist(), *Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()]
            lines.append(f"{stem} {' '.join(repr(v) for v in numbers)}")
        (draft / "trajectory.txt").write_text("\n".join(lines) + "\n")
        matrix = scene.source.camera(0).intrinsics.double().numpy()
        matrix[:2, 2] -= 0.5
        np.savetxt(draft / "intrinsics.txt", matrix, fmt="%.9f")
        _copy_split(draft, scene)
        _copy_beside(room, draft, scene, None)
    return folder


def write_panoptic_lifting(room: Path, out: Path, masks: str = "medium") -> Path:
    """Write the room as ``out/<name>`` in Panoptic Lifting's layout, with a mask set of the room as Mask2Former's.

    ``segmentation_data.pkl`` and the probabilities of all classes are left out: nothing here reads them. The classes
    are the room's own, in ``classes.json``.

    Args:
        masks: NAME of the room's mask set.

    Other arguments, result and errors as in :func:`write_nerfstudio`.
    """
    scene = open_scene(room, masks=None, test_every=0)
    folder = out / room.name
    found = MaskSet.open(room / f"masks_{masks}")
    labels, is_thing = scene.labels, scene.labels.is_thing()
    with appearing(folder, "rs_semantics") as draft:
        made = ("color", "depth", "pose", "rs_semantics", "rs_instance", "m2f_semantics", "m2f_instance")
        for name in (*made, "m2f_probabilities"):
            (draft / name).mkdir()
        shutil.copytree(room / "intrinsic", draft / "intrinsic")
        counter = 0
        for _, stem, pose in _frames(scene):
            color = _color(room, stem)
            shutil.copyfile(color, draft / "color" / color.name)
            shutil.copyfile(room / "depth" / f"{stem}.png", draft / "depth" / f"{stem}.png")
            np.savetxt(draft / "pose" / f"{stem}.txt", pose, fmt="%.9f")
            semantic = labels.map_raw(read_integers(room / "label-filt" / f"{stem}.png"))
            instance = read_integers(room / "instance-filt" / f"{stem}.png")
            _save(draft / "rs_semantics" / f"{stem}.png", semantic)
            _save(draft / "rs_instance" / f"{stem}.png", np.where(is_thing[semantic], instance, 0))
            pseudo = found.read(stem)
            things = np.where(is_thing[pseudo.semantic], pseudo.instance, 0)
            # Ids run on over the scene, as the original preprocessing counts them.
            _save(draft / "m2f_semantics" / f"{stem}.png", pseudo.semantic)
            _save(draft / "m2f_instance" / f"{stem}.png", np.where(things > 0, things.astype(np.int64) + counter, 0))
            counter += int(things.max(initial=0))
            if pseudo.score is not None:
                confidence = pseudo.score.astype(np.float32) / np.float32(255)
                np.savez_compressed(draft / "m2f_probabilities" / f"{stem}.npz", confidence=confidence)
        data = json.loads((room / "classes.json").read_text())
        data["gt_map"] = {str(c.id): c.id for c in labels.classes}
        write_json(draft / "classes.json", data)
        _copy_split(draft, scene)
        if scene.synthetic:
            shutil.copyfile(room / "synthetic.json", draft / "synthetic.json")
    return folder


class _Bent:
    """Images of a pinhole camera as a distorting lens in its place would have taken them; looked up, not mixed."""

    def __init__(self, scene: Scene, lens: Lens) -> None:
        import cv2  # only who asks for a lens needs it

        camera = scene.source.camera(0)
        pixels = np.stack(np.meshgrid(np.arange(lens.width), np.arange(lens.height)), axis=-1).astype(np.float64)
        # OpenCV puts the centre of the first pixel at 0, in the lens's image as in ours.
        matrix = np.array([[lens.fx, 0, lens.cx - 0.5], [0, lens.fy, lens.cy - 0.5], [0, 0, 1]])
        undistort = cv2.fisheye.undistortPoints if lens.model == "fisheye" else cv2.undistortPoints
        rays = undistort(pixels.reshape(-1, 1, 2), matrix, np.array(lens.coefficients)).reshape(pixels.shape)
        x = camera.fx * rays[..., 0] + camera.cx - 0.5
        y = camera.fy * rays[..., 1] + camera.cy - 0.5
        self._column, self._row = (np.round(v).astype(np.int64) for v in (x, y))
        self.shown = (
            (self._column >= 0) & (self._column < camera.width) & (self._row >= 0) & (self._row < camera.height)
        )

    def __call__(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        out = np.zeros((*self.shown.shape, *image.shape[2:]), dtype=image.dtype)
        out[self.shown] = image[self._row[self.shown], self._column[self.shown]]
        return out

    def write(self, room: Path, draft: Path, stem: str) -> None:
        """Colour, depth and the mask of what is hidden."""
        _save(draft / "images" / f"{stem}.png", self(read_color(_color(room, stem))))
        _save(draft / "depth" / f"{stem}.png", self(read_integers(room / "depth" / f"{stem}.png")))
        _save(draft / "masks" / f"{stem}.png", (255 * self.shown).astype(np.uint8))


def _frames(scene: Scene) -> Iterator[tuple[int, str, _Matrix]]:
    """Index, name and camera-to-world [4, 4], OpenCV axes, of each frame."""
    for index in range(len(scene.source)):
        to_camera = scene.source.camera(index).world_to_camera.double().numpy()
        yield index, scene.source.name(index), np.linalg.inv(to_camera)


def _color(room: Path, stem: str) -> Path:
    return next(p for suffix in (".jpg", ".png", ".jpeg") if (p := room / "color" / f"{stem}{suffix}").is_file())


def _cloud(room: Path) -> Points:
    """The vertices of the room's mesh."""
    rows = PlyData.read(str(room / f"{room.name}_vh_clean_2.ply"))["vertex"].data
    positions = np.stack([rows[a] for a in "xyz"], axis=1).astype(np.float32)
    colors = np.stack([rows[a] for a in ("red", "green", "blue")], axis=1).astype(np.float32) / np.float32(255)
    return Points(positions, colors)


def _copy_split(draft: Path, scene: Scene) -> None:
    names = {part: [scene.source.name(i) for i in ids] for part, ids in (("train", scene.train), ("test", scene.test))}
    write_json(draft / "splits.json", names)


def _copy_beside(room: Path, draft: Path, scene: Scene, bent: _Bent | None) -> None:
    """Put what the form has no place for beside it, as the importers expect it."""
    stems = {scene.source.name(i) for i in range(len(scene.source))}
    folders = [room / name for name in _BESIDE[:2]]
    folders += [masks / kind for masks in sorted(room.glob("masks_*/")) for kind in (SEMANTIC, INSTANCE, SCORE)]
    for folder in folders:
        target = draft / folder.relative_to(room)
        for path in sorted(folder.glob("*.png")):
            if path.stem not in stems:
                continue
            target.mkdir(parents=True, exist_ok=True)
            if bent is None:
                shutil.copyfile(path, target / path.name)
            else:
                _save(target / path.name, bent(read_integers(path)))
    for masks in sorted(room.glob("masks_*/manifest.json")):
        shutil.copyfile(masks, draft / masks.relative_to(room))
    for name in _BESIDE[2:]:
        if (room / name).is_file():
            shutil.copyfile(room / name, draft / name)


def _save(path: Path, image: NDArray[np.generic]) -> None:
    Image.fromarray(image.astype(np.uint8 if image.dtype == np.uint8 else np.uint16, copy=False)).save(
        path, compress_level=3
    )
