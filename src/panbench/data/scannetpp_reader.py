"""Reads one ScanNet++ scene: its DSLR images, undistorted or as the fisheye lens saw them, or the iPhone's video.

::

    <scene>/dslr/nerfstudio/transforms_undistorted.json      intrinsics (PINHOLE), frames, test_frames, is_bad
            dslr/nerfstudio/transforms.json                  the same of the lens (OPENCV_FISHEYE)
            dslr/colmap/images.txt                           poses in the world of the mesh
            dslr/train_test_lists.json                       the split; without it frames and test_frames
            dslr/undistorted_images/NAME.JPG                 or resized_undistorted_images, as in the release
            dslr/undistorted_anon_masks/NAME.png             or resized_undistorted_masks: 255 where nothing is hidden
            dslr/resized_images/NAME.JPG                     or original_images: of the lens
            dslr/resized_anon_masks/NAME.png                 or original_anon_masks: of the lens
            iphone/                                          video, depth, poses: see panbench.data.iphone
            scans/mesh_aligned_0.05.ply                      depth, and the ground truth's shape
            scans/segments.json segments_anno.json           the ground truth's labels, optional
            masks_<name>/{semantic_image,instance_image,score}/NAME.png          optional: pseudo-masks; of the iPhone's
                                                             frames, NAME is frame_000012
            classes.json  synthetic.json                     label space, mark

There are no depth or label images of DSLR views: both are cast from the mesh, at the centres of the pixels that are
worked with. A triangle has the labels of its first vertex. Where annotated objects overlap, a vertex belongs to the
smallest, or to the last one listed.
Images of the lens are undistorted when they are decoded, by ScanNet++'s own recipe; all maps, and the pseudo-masks, are
those of the pinhole camera that results. The iPhone's frames have their own depth, that of its sensor.
Hidden pixels have no depth and no labels; their colours stay in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from panbench.data.file import File
from panbench.data.images import image_size as size_of_image
from panbench.data.images import read_color, read_integers, resize_nearest
from panbench.data.iphone import DEPTH_SIZE, DepthFile, IphoneDepth, VideoFile, VideoFrame, frame_stem, read_poses
from panbench.data.json_file import read_json
from panbench.data.mesh import MeshCaster, read_mesh
from panbench.data.scannet_files import FrameFiles, Pinhole, inverse_of_rigid
from panbench.data.scannet_reader import (
    MILLIMETRES,
    CompactFrame,
    CompactMap,
    ScanNetSource,
    add_depth_noise,
    check_masked,
    check_views_and_noise,
    find_masks,
    hash_masks,
    hash_names_and_sizes,
    nearest_rotation,
    smallest_ids,
)
from panbench.data.scannetpp_labels import read_label_space
from panbench.data.select import Candidate, Select, choose
from panbench.data.undistort import Lens, Undistortion
from panbench.errors import UserError
from panbench.scene import Camera, LabelSpace, Scene

log = logging.getLogger(__name__)

CameraChoice = Literal["auto", "undistorted", "fisheye", "iphone"]
Overlap = Literal["smallest", "last"]


@dataclass(frozen=True)
class DslrFiles:
    """Names of the files of one form of the DSLR images: transforms, camera model in it, images, what is hidden."""

    transforms: str
    model: str
    images: tuple[str, ...]
    hidden: tuple[str, ...]


UNDISTORTED = DslrFiles(
    "transforms_undistorted.json",
    "PINHOLE",
    ("undistorted_images", "resized_undistorted_images"),
    ("undistorted_anon_masks", "resized_undistorted_masks"),
)
FISHEYE = DslrFiles(
    "transforms.json",
    "OPENCV_FISHEYE",
    ("resized_images", "original_images"),
    ("resized_anon_masks", "original_anon_masks"),
)
IPHONE = Path("iphone") / "pose_intrinsic_imu.json"
MARKS = ("dslr", str(IPHONE))  # what a scene's folder is known by
_POSE_TOLERANCE = 0.01  # metres and parts of 1, between the poses of the two files


@dataclass(frozen=True, eq=False)
class VertexLabels:
    """Class id and object id of every vertex of the mesh [V]; 0: none."""

    semantic: NDArray[np.int32]
    instance: NDArray[np.int32]


class ScanNetPPSource(ScanNetSource):
    """Frames of one scene; depth and ground truth are cast from the mesh when a frame is decoded."""

    def __init__(
        self,
        files: Sequence[FrameFiles],
        hidden: Sequence[Path | VideoFrame | None],
        color: Pinhole,
        size: tuple[int, int],
        labels: LabelSpace,
        max_depth: float,
        cache_bytes: int,
        caster: MeshCaster,
        vertices: VertexLabels | None,
        undistortion: Undistortion | None = None,
        depth: Pinhole | None = None,
        pinholes: Sequence[Pinhole] | None = None,
    ) -> None:
        """Args: the frames, and of each the image of what is hidden; intrinsics of the colour files, or of what
        undistortion makes of them; output (width, height); label space; depth [m] beyond which a surface counts as
        none; bytes the cache may take; the mesh; its labels, if any; how images of a lens become those of a pinhole
        camera; intrinsics of the depth images, which see what the colour images see; intrinsics of the colour image of
        each frame, where they differ.
        """
        super().__init__(files, color, depth, size, labels, max_depth, cache_bytes)
        self._pinholes = pinholes
        self._hidden = list(hidden)
        self._caster = caster
        self._vertices = vertices
        self._undistortion = undistortion

    def camera(self, index: int) -> Camera:
        camera = super().camera(index)
        if self._pinholes is None:
            return camera
        k = self._pinholes[index].resized(camera.width, camera.height)
        return replace(camera, fx=k.fx, fy=k.fy, cx=k.cx, cy=k.cy)

    def read_color(self, files: FrameFiles) -> NDArray[np.uint8]:
        if self._undistortion is None:
            return super().read_color(files)
        self.check_size(files)
        straight = Image.fromarray(self._undistortion.color(read_color(files.color)))
        camera = self.camera(0)
        return np.array(straight.resize((camera.width, camera.height), Image.Resampling.LANCZOS))

    def _shown(self, path: Path | VideoFrame, camera: Camera) -> NDArray[np.bool_]:
        """Where nothing is hidden [H, W]."""
        if isinstance(path, VideoFrame):  # coded with loss: 0 and 255 only nearly
            mask = np.where(path.read_color()[..., 0] >= 128, 255, 0)
        else:
            mask = read_integers(path)
        if self._undistortion is not None:
            k = self._undistortion.pinhole
            mask = self._undistortion.hidden(resize_nearest(mask, k.width, k.height).astype(np.uint8))
        return resize_nearest(mask, camera.width, camera.height) == 255

    def decode(self, index: int) -> CompactFrame:
        files = self.files[index]
        camera = self.camera(index)
        depth, vertex = self._caster.view(camera)
        shown = np.ones(depth.shape, dtype=bool)
        path = self._hidden[index]
        if path is not None:
            shown = self._shown(path, camera)
        masks = self.read_masks(files)
        if masks is not None:
            masks = replace(masks, semantic=masks.semantic * shown, instance=masks.instance * shown)
        if files.depth is None:
            millimetres = np.round(depth * MILLIMETRES)
            if files.depth_noise > 0:
                millimetres = add_depth_noise(millimetres.astype(np.int64), files.depth_noise, files.number)
            millimetres = np.where(millimetres <= self.max_depth_mm, millimetres, 0)
        else:
            millimetres = self.read_depth(files, files.depth)
        truth = None
        if self._vertices is not None:
            seen = shown & (vertex >= 0)
            semantic = np.where(seen, self._vertices.semantic[vertex], 0)
            instance = np.where(seen & self.is_thing[semantic], self._vertices.instance[vertex], 0)
            truth = CompactMap(smallest_ids(semantic), smallest_ids(instance))
        return CompactFrame(
            color=self.read_color(files),
            depth_mm=np.where(shown, millimetres, 0).astype(np.uint16),
            masks=masks,
            truth=truth,
        )


def open_scene(
    folder: Path,
    *,
    masks: str | None = "medium",
    image_size: tuple[int, int] | None = None,
    stride: int = 1,
    label_space: str | Path | None = None,
    include_bad: bool = False,
    cache_bytes: int = 2 << 30,
    max_depth: float = 8.0,
    views: int | None = None,
    depth_noise: float = 0.0,
    select: Select = "even",
    camera: CameraChoice = "auto",
    overlap: Overlap = "smallest",
    test_every: int = 5,
) -> Scene:
    """Open a scene folder; the mesh is read now, images when they are asked for.

    Poses of DSLR images are those of COLMAP, which lie in the world of the mesh; without its files, those of the
    transforms, moved there. Both must agree where both are. Training frames marked as bad are left out, and so are
    frames whose pose is not finite; both are reported. The iPhone's frames that have a pose, a picture and depth are
    thinned by ``stride``, and every ``test_every``-th of them is a test frame (0: none).

    Args:
        folder: the scene's folder.
        masks: pseudo-masks: NAME for the folder ``masks_NAME`` in the scene, or a path; None or "none" for none.
        image_size: (width, height) of all maps; None keeps the images' size.
        stride: keep every stride-th training frame; of the iPhone's, every stride-th frame.
        label_space: see :func:`panbench.data.scannetpp_labels.read_label_space`.
        include_bad: keep training frames that are marked as bad.
        cache_bytes: budget of the cache of decoded frames.
        max_depth: metres; surfaces beyond count as none.
        views: number of training frames; None: all.
        depth_noise: adds Gaussian noise of depth_noise · z² metres to the depth z of training frames; 0: none.
        select: which frames ``views`` keeps (:func:`panbench.data.select.choose`).
        camera: which images: "undistorted", those of the lens ("fisheye"), those of the "iphone", or "auto", the first
            of these that is there.
        overlap: which of several annotated objects a vertex belongs to: the "smallest", as in ScanNet++'s training in
            3D, or the "last" one listed, as in its toolbox for 2D.
        test_every: split of the iPhone's frames.

    Raises:
        UserError: something is missing, damaged or contradictory; names the file and the remedy.
    """
    if stride < 1 or test_every < 0 or max_depth <= 0 or (image_size is not None and min(image_size) < 1):
        raise UserError(
            f"data: stride {stride} must be at least 1, test_every {test_every} at least 0, max_depth {max_depth} and "
            f"image_size {image_size} positive"
        )
    check_views_and_noise(views, depth_noise)
    labels, raw_labels = read_label_space(folder, label_space)
    mask_folder = find_masks(folder, masks)
    chosen = _choose_camera(folder, camera)
    if chosen == "iphone":
        listed = _list_iphone(folder, stride, test_every)
    else:
        listed = _list_dslr(folder, FISHEYE if chosen == "fisheye" else UNDISTORTED, stride, include_bad)
    poses, images = listed.poses, listed.images
    train = [
        listed.train[i] for i in choose([Candidate(images[n], poses[n]) for n in listed.train], views, select, folder)
    ]
    names = sorted({*train, *listed.test})
    place = {name: index for index, name in enumerate(names)}
    noise = set(train) if depth_noise > 0 else set[str]()
    files = [
        _frame_files(
            number, poses[name], images[name], listed.depth.get(name), mask_folder, depth_noise * (name in noise)
        )
        for number, name in enumerate(names)
    ]
    trained = [files[place[name]] for name in train]
    check_masked(trained, mask_folder)
    size = image_size or (listed.color.width, listed.color.height)
    vertices, faces = read_mesh(folder / "scans" / "mesh_aligned_0.05.ply")
    truth = read_annotation(folder, len(vertices), raw_labels, overlap)
    log.info(
        "%s: %s, %d train, %d test, %dx%d, mesh of %d triangles, %s, masks %s",
        folder.name, chosen if chosen == "iphone" else f"{chosen} DSLR", len(train), len(listed.test), *size,
        len(faces), "ground truth" if truth else "no ground truth", mask_folder.name if mask_folder else "none",
    )  # fmt: skip
    source = ScanNetPPSource(
        files,
        [listed.hidden.get(n) for n in names],
        listed.color,
        size,
        labels,
        max_depth,
        cache_bytes,
        MeshCaster(vertices, faces),
        truth,
        listed.undistortion,
        listed.color.resized(*DEPTH_SIZE) if listed.depth else None,
        [listed.pinholes[n] for n in names] if listed.pinholes else None,
    )
    return Scene(
        dataset="scannetpp",
        name=folder.name,
        synthetic=(folder / "synthetic.json").is_file(),
        source=source,
        train=tuple(place[name] for name in train),
        test=tuple(place[name] for name in listed.test),
        labels=labels,
        mask_hash=hash_masks(trained) if mask_folder else "",
        data_hash=hash_names_and_sizes(folder),
    )


@dataclass(frozen=True, eq=False)
class _Views:
    """What a scene has of one camera, by the names of the frames in train and test.

    Attributes:
        train, test: names, in order; train is not empty.
        poses: camera to world [4, 4].
        hidden, depth: of the frames that have them.
        color: intrinsics of the images, or of what undistortion makes of them.
        pinholes: intrinsics of each frame's image, where they differ.
    """

    train: Sequence[str]
    test: Sequence[str]
    poses: Mapping[str, NDArray[np.float64]]
    images: Mapping[str, File]
    hidden: Mapping[str, Path | VideoFrame]
    color: Pinhole
    undistortion: Undistortion | None = None
    depth: Mapping[str, IphoneDepth] = field(default_factory=dict[str, IphoneDepth])
    pinholes: Mapping[str, Pinhole] = field(default_factory=dict[str, Pinhole])


def is_scene(folder: Path) -> bool:
    """The folder holds a scene: its DSLR images or the iPhone's video."""
    return any((folder / mark).exists() for mark in MARKS)


def _choose_camera(folder: Path, camera: CameraChoice) -> CameraChoice:
    """The camera asked for; for "auto" the first that is there."""
    if camera != "auto":
        return camera
    transforms = folder / "dslr" / "nerfstudio"
    if (transforms / UNDISTORTED.transforms).is_file():
        return "undistorted"
    if (transforms / FISHEYE.transforms).is_file():
        return "fisheye"
    return "iphone" if (folder / IPHONE).is_file() else "undistorted"


def _list_dslr(folder: Path, form: DslrFiles, stride: int, include_bad: bool) -> _Views:
    transforms = _read_transforms(folder, form)
    every = _read_poses(folder, form, transforms)
    train, test = _read_split(folder, form, transforms, every, include_bad)
    train = train[::stride]
    names = sorted({*train, *test})
    images, hidden = _find_images(folder, form, names)
    _need_training_frames(train, folder)
    lens = _lens(folder, form, transforms, images[names[0]])
    undistortion = Undistortion(lens) if lens.model == "fisheye" else None
    color = (
        undistortion.pinhole if undistortion else Pinhole(lens.width, lens.height, lens.fx, lens.fy, lens.cx, lens.cy)
    )
    poses = {name: pose for name in names if (pose := every[name]) is not None}
    return _Views(train, test, poses, images, hidden, color, undistortion)


def _list_iphone(folder: Path, stride: int, test_every: int) -> _Views:
    path = folder / IPHONE
    if not path.is_file():
        raise UserError(
            f"{path}: no such file: download the scene's iphone folder, or set data.camera to what is there"
        )
    video = VideoFile(path.with_name("rgb.mkv"))
    every = read_poses(path, video.size)
    depth = DepthFile(path.with_name("depth.bin"), min(max(every) + 1, len(video)))
    mask_path = path.with_name("rgb_mask.mkv")
    masks = VideoFile(mask_path) if mask_path.is_file() else None
    lengths = {video.path: len(video), depth.path: len(depth), **({masks.path: len(masks)} if masks else {})}
    for other, frames in lengths.items():
        missing = sum(number >= frames for number in every)
        # A frame more or less at the end is no sign of damage.
        if missing > max(2, len(every) // 100):
            raise UserError(
                f"{other}: has {frames} frames, {path.name} names {missing} more: it is cut off, download it again"
            )
    there = min(lengths.values())
    kept = {number: pose for number, pose in every.items() if pose is not None and number < there}
    if len(kept) < len(every):
        log.info(
            "%s: left out: %d of the iPhone's frames without a pose, a picture or depth",
            folder.name,
            len(every) - len(kept),
        )
    numbers = list(kept)[::stride]
    test = [number for place, number in enumerate(numbers) if test_every and place % test_every == 0]
    train = sorted(set(numbers) - set(test))
    _need_training_frames(train, folder)
    return _Views(
        train=[frame_stem(n) for n in train],
        test=[frame_stem(n) for n in test],
        poses={frame_stem(n): kept[n].camera_to_world for n in numbers},
        images={frame_stem(n): video.frame(n) for n in numbers},
        hidden={} if masks is None else {frame_stem(n): masks.frame(n) for n in numbers},
        color=kept[numbers[0]].pinhole,
        depth={frame_stem(n): depth.frame(n) for n in numbers},
        pinholes={frame_stem(n): kept[n].pinhole for n in numbers},
    )


def _need_training_frames(train: Sequence[object], folder: Path) -> None:
    if not train:
        raise UserError(
            f"{folder}: no training frames are left: check its lists, data.stride, data.test_every and data.include_bad"
        )


def to_mesh_world(nerfstudio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Camera to world, OpenCV axes and the mesh's world [4, 4], of a matrix of the transforms files.

    They hold instant-ngp's form: OpenGL camera axes, the first two world axes swapped, the third reversed.
    """
    out = nerfstudio.copy()
    out[2] *= -1
    out = out[[1, 0, 2, 3]]
    out[:3, 1:3] *= -1
    return out


def _transforms_path(folder: Path, form: DslrFiles) -> Path:
    return folder / "dslr" / "nerfstudio" / form.transforms


def _read_transforms(folder: Path, form: DslrFiles) -> Mapping[str, Any]:
    path = _transforms_path(folder, form)
    data = read_json(path, "check data.root, data.scene and data.camera, or download the scene's dslr folder again")
    if not isinstance(data, Mapping) or not isinstance(data.get("frames"), list):
        raise UserError(f"{path}: has no list of frames: write or download it again")
    if data.get("camera_model") != form.model:
        stated = data.get("camera_model")
        raise UserError(f"{path}: camera_model is {stated}, not {form.model}: write or download it again")
    for frame in [*data["frames"], *data.get("test_frames", [])]:
        name = frame.get("file_path") if isinstance(frame, Mapping) else None
        if not (isinstance(name, str) and name.isprintable()):
            raise UserError(f"{path}: has a frame without file_path: write or download it again")
    return data


def _read_poses(folder: Path, form: DslrFiles, transforms: Mapping[str, Any]) -> dict[str, NDArray[np.float64] | None]:
    """Camera to world by file name; None where a pose is not finite."""
    path = _transforms_path(folder, form)
    poses: dict[str, NDArray[np.float64] | None] = {}
    for frame in [*transforms["frames"], *transforms.get("test_frames", [])]:
        try:
            matrix = np.array(frame["transform_matrix"], dtype=np.float64).reshape(4, 4)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: frame {frame['file_path']} has no 4x4 transform_matrix: write or download it again"
            ) from error
        pose = to_mesh_world(matrix) if np.isfinite(matrix).all() else None
        poses[frame["file_path"]] = None if pose is None else _rigid(pose, path, frame["file_path"])
    images = folder / "dslr" / "colmap" / "images.txt"
    if not images.is_file():
        return poses
    colmap = _read_colmap(images)
    for name, pose in poses.items():
        other = colmap.get(name)
        if other is None:
            if pose is not None:
                raise UserError(f"{images}: has no image {name}, which {path.name} lists: download both again")
            continue
        if pose is not None and np.abs(pose - other).max() > _POSE_TOLERANCE:
            raise UserError(
                f"{images}: its pose of {name} is not that of {path.name} (they differ by "
                f"{np.abs(pose - other).max():.3g}): the files are of different reconstructions, download both again"
            )
        poses[name] = other
    return poses


def _read_colmap(path: Path) -> dict[str, NDArray[np.float64]]:
    """Camera to world by file name. Every image has two lines; the second, its points, may be empty."""
    try:
        lines = [line for line in path.read_text().split("\n") if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no text file ({error}): download it again") from error
    poses: dict[str, NDArray[np.float64]] = {}
    for line in lines[::2]:
        words = line.split()
        if not words:
            continue
        try:
            values = np.array(words[1:8], dtype=np.float64)
            name = words[9]
            if not np.isfinite(values).all():
                continue
            rotation = Rotation.from_quat(values[:4], scalar_first=True).as_matrix()
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{path}: {line[:60]!r} is not IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME: download it again"
            ) from error
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ values[4:]
        poses[name] = pose
    return poses


def _rigid(pose: NDArray[np.float64], path: Path, name: str) -> NDArray[np.float64]:
    nearest = nearest_rotation(pose[:3, :3])
    if nearest is None:
        raise UserError(f"{path}: the 3x3 part of frame {name} is no rotation: write or download it again")
    return np.block([[nearest, pose[:3, 3:]], [np.zeros((1, 3)), np.ones((1, 1))]])


def _read_split(
    folder: Path,
    form: DslrFiles,
    transforms: Mapping[str, Any],
    poses: Mapping[str, NDArray[np.float64] | None],
    include_bad: bool,
) -> tuple[list[str], list[str]]:
    """File names of the training and test frames that have a pose, in order."""
    path = folder / "dslr" / "train_test_lists.json"
    if path.is_file():
        data = read_json(path, "download it again")
        try:
            lists = {part: [str(name) for name in data[part]] for part in ("train", "test")}
        except (KeyError, TypeError) as error:
            raise UserError(f'{path}: is not {{"train": [...], "test": [...]}}: download it again') from error
    else:
        lists = {
            part: [f["file_path"] for f in transforms.get(key, [])]
            for part, key in (("train", "frames"), ("test", "test_frames"))
        }
    for name in (*lists["train"], *lists["test"]):
        if name not in poses:
            raise UserError(f"{path}: names {name}, which {form.transforms} does not: download both again")
    both = sorted(set(lists["train"]) & set(lists["test"]))
    if both:
        raise UserError(f"{path}: {both[0]} is both train and test ({len(both)} such frames): download it again")
    bad = {f["file_path"] for f in transforms["frames"] if f.get("is_bad")} if not include_bad else set[str]()
    lost = [name for part in lists.values() for name in part if poses[name] is None]
    if lost or bad:
        log.info("%s: left out: %d frames marked as bad, %d without a pose", folder.name, len(bad), len(lost))
    train = sorted(name for name in lists["train"] if name not in bad and poses[name] is not None)
    return train, sorted(name for name in lists["test"] if poses[name] is not None)


def _find_images(folder: Path, form: DslrFiles, names: Sequence[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The colour image of each frame, and the images of what is hidden, where there are any."""
    images = next((p for n in form.images if (p := folder / "dslr" / n).is_dir()), None)
    if images is None:
        raise UserError(
            f"{folder / 'dslr' / form.images[0]}: no such folder, nor {form.images[1]}: download the scene's dslr "
            "folder again, or set data.camera to what is there"
        )
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(f"{images / missing[0]}: no such file{more}: download the images again")
    masks = next((p for n in form.hidden if (p := folder / "dslr" / n).is_dir()), None)
    hidden = {} if masks is None else {n: p for n in names if (p := masks / f"{Path(n).stem}.png").is_file()}
    return {name: images / name for name in names}, hidden


def _frame_files(
    number: int, pose: NDArray[np.float64], image: File, depth: File | None, masks: Path | None, depth_noise: float
) -> FrameFiles:
    def find(kind: str) -> Path | None:
        path = None if masks is None else masks / kind / f"{image.stem}.png"
        return path if path is not None and path.is_file() else None

    semantic, instance = find("semantic_image"), find("instance_image")
    if semantic is not None and instance is None:
        raise UserError(f"{semantic}: has no instance image of its name in instance_image: make the masks again")
    return FrameFiles(
        number=number,
        name=image.stem,
        world_to_camera=inverse_of_rigid(pose),
        color=image,
        depth=depth,
        label=None,
        instance=None,
        mask_semantic=semantic,
        mask_instance=instance,
        mask_score=find("score"),
        depth_noise=depth_noise,
    )


def _lens(folder: Path, form: DslrFiles, transforms: Mapping[str, Any], image: Path) -> Lens:
    """The camera, at the size of ``image``. The files' pixels have their centres at + 0.5, as here."""
    path = _transforms_path(folder, form)
    bent = form.model == "OPENCV_FISHEYE"
    try:
        width, height = int(transforms["w"]), int(transforms["h"])
        fx, fy, cx, cy = (float(transforms[key]) for key in ("fl_x", "fl_y", "cx", "cy"))
        coefficients = tuple(float(transforms[key]) for key in ("k1", "k2", "k3", "k4")) if bent else ()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = "w, h, fl_x, fl_y, cx, cy or k1 ... k4" if bent else "w, h, fl_x, fl_y, cx or cy"
        raise UserError(f"{path}: {what} is missing or no number: download it again") from error
    stored = size_of_image(image)
    if not (np.isfinite([fx, fy, cx, cy, *coefficients]).all() and min(fx, fy, width, height) > 0):
        raise UserError(
            f"{path}: focal length ({fx:g}, {fy:g}) or size {width}x{height} is not positive, or a number is not "
            "finite: correct it"
        )
    if abs(stored[0] * height - stored[1] * width) > max(width, height):
        raise UserError(
            f"{image}: is {stored[0]}x{stored[1]}, the intrinsics in {path.name} are for {width}x{height}: "
            "the images and the file are of different undistortions, write both again"
        )
    k = Pinhole(width, height, fx, fy, cx, cy).resized(*stored)
    lens = Lens("fisheye" if bent else "pinhole", *stored, k.fx, k.fy, k.cx, k.cy, coefficients)
    if bent and not lens.is_fisheye_of_less_than_half_a_turn():
        raise UserError(
            f"{path}: its lens sees half a turn or more, or folds the image: fl_x ... k4 are not of these images, "
            "download it again"
        )
    return lens


def read_annotation(folder: Path, count: int, raw_labels: Mapping[str, int], overlap: Overlap) -> VertexLabels | None:
    """Labels of the mesh's ``count`` vertices, by the class id of each raw label; None where there is no annotation.

    Raises:
        UserError: the annotation is damaged, or not of this mesh.
    """
    scans = folder / "scans"
    segments_path, groups_path = scans / "segments.json", scans / "segments_anno.json"
    if not segments_path.is_file() and not groups_path.is_file():
        return None
    remedy = "download the scene's scans folder again"
    try:
        segments = np.array(read_json(segments_path, remedy)["segIndices"], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{segments_path}: has no list segIndices of whole numbers: {remedy}") from error
    if segments.shape != (count,):
        raise UserError(f"{segments_path}: has {segments.size} vertices, the mesh {count}: {remedy}")
    try:
        groups = [
            (int(g["objectId"]), str(g["label"]), np.array(g["segments"], dtype=np.int64))
            for g in read_json(groups_path, remedy)["segGroups"]
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{groups_path}: has no list segGroups of objectId, label and segments: {remedy}") from error
    wrong = [k for k, _, _ in groups if not 0 < k < 1 << 16]
    if wrong:
        raise UserError(f"{groups_path}: objectId {wrong[0]} is not in 1 ... 65535: {remedy}")
    members = [(k, label, np.flatnonzero(np.isin(segments, part))) for k, label, part in groups if label != "REMOVE"]
    semantic, instance = np.zeros((2, count), dtype=np.int32)
    # Largest first, so that the smallest object has the last word on a vertex.
    order = sorted(members, key=lambda m: -len(m[2])) if overlap == "smallest" else members
    for k, label, vertices in order:
        semantic[vertices], instance[vertices] = raw_labels.get(label, 0), k
    return VertexLabels(semantic, instance)
