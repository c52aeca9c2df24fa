"""Reads one scene of ScanNet-V2, exported or as it is downloaded (:mod:`panbench.data.scannet_raw`).

The exported layout::

    <scene>/color/N.jpg  depth/N.png (u16 mm)  pose/N.txt (camera to world)  intrinsic/intrinsic_{color,depth}.txt
            label-filt/N.png (raw ScanNet id)  instance-filt/N.png (object id + 1)      optional: the ground truth
            masks_<name>/{semantic_image,instance_image,score}/N.png                    optional: pseudo-masks
            classes.json  splits.json  <scene>.txt  synthetic.json                      label space, split, sizes, mark
            gt/depth_gt.npz                                         rendered scenes: true depth, as the depth images

Where there is no folder of ground truth, the downloaded archives or the annotated mesh serve.

N is the frame number; files are joined by it, not by the order of a listing. The files put the centre of pixel (i, j)
at (i, j) and the principal point of a centred camera at (W - 1) / 2; here centres are at + 0.5, so half a pixel is
added on reading.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panbench.data.cache import ByteBudgetCache
from panbench.data.depth_image import depth_size
from panbench.data.depth_image import read_depth as read_depth_image
from panbench.data.file import File
from panbench.data.images import image_size as size_of_image
from panbench.data.images import read_color, read_integers, resize_nearest
from panbench.data.label_tables import read_labels
from panbench.data.scannet_annotation import MeshTruth, read_mesh_truth
from panbench.data.scannet_files import (
    FrameFiles,
    Pinhole,
    SceneFiles,
    axis_alignment,
    inverse_of_rigid,
    list_numbered,
    list_side_files,
    make_pinhole,
    need_partner,
    read_facts,
    rigid,
)
from panbench.data.scannet_files import nearest_rotation as nearest_rotation  # readers of other layouts use it
from panbench.data.scannet_raw import list_raw, sens_path
from panbench.data.select import Candidate, Select, choose
from panbench.data.true_depth import TrueDepth
from panbench.errors import UserError
from panbench.masks.mask_set import UNFINISHED
from panbench.scene import Camera, Frame, LabelSpace, PanopticMap, Scene

log = logging.getLogger(__name__)

_NOISE_SEED = 0x6E6F697365  # the noise is part of the data: it does not follow the seed of a run
COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
MILLIMETRES = 1000.0
_D = TypeVar("_D", np.uint16, np.float32)


@dataclass(frozen=True)
class CompactFrame:
    """A decoded frame in the fewest bytes: what the cache holds."""

    color: NDArray[np.uint8]
    depth_mm: NDArray[np.uint16] | None
    masks: CompactMap | None
    truth: CompactMap | None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        depth = 0 if self.depth_mm is None else self.depth_mm.nbytes
        return self.color.nbytes + depth + sum(m.nbytes for m in (self.masks, self.truth) if m is not None)


@dataclass(frozen=True)
class CompactMap:
    """A panoptic map in small integers; ``score`` is in 1/255."""

    semantic: NDArray[np.uint8 | np.uint16]
    instance: NDArray[np.uint8 | np.uint16]
    score: NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.semantic.nbytes + self.instance.nbytes + (0 if self.score is None else self.score.nbytes)

    def expand(self) -> PanopticMap:
        """As int64 ids and float32 score in [0, 1]."""
        score = None if self.score is None else torch.from_numpy(self.score.astype(np.float32) / 255.0)
        return PanopticMap(
            torch.from_numpy(self.semantic.astype(np.int64)), torch.from_numpy(self.instance.astype(np.int64)), score
        )


class ScanNetSource:
    """Frames of one scene, decoded on demand and cached up to a byte budget (a :class:`panbench.scene.FrameSource`).

    Every :class:`Frame` owns its tensors: changing one does not change what the next ``load`` returns.
    """

    def __init__(
        self,
        files: Sequence[FrameFiles],
        color: Pinhole,
        depth: Pinhole | None,
        size: tuple[int, int],
        labels: LabelSpace,
        max_depth: float,
        cache_bytes: int,
        true_depth: TrueDepth | None = None,
        mesh_truth: MeshTruth | None = None,
    ) -> None:
        """Args: the frames; intrinsics of the colour and depth files; output (width, height); label space;
        depth [m] beyond which a measurement counts as none; bytes the cache may take; true depth of the test frames, of
        the size and the intrinsics of the depth files; ground truth of the frames that have no label images.
        """
        self.files = list(files)
        self._stored = color
        self._output = color.resized(*size)
        self._depth = depth
        self._labels = labels
        self.is_thing = labels.is_thing()
        self.max_depth_mm = min(max_depth * MILLIMETRES, 65534.0)  # 65535 marks "no measurement" in some exports
        self._true_depth = true_depth
        self._mesh_truth = mesh_truth
        self._cache: ByteBudgetCache[int, CompactFrame] = ByteBudgetCache(cache_bytes)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """File stem of the frame's colour image."""
        return self.files[index].name

    def camera(self, index: int) -> Camera:
        """Pose and intrinsics at the output size; decodes nothing."""
        k = self._output
        return Camera(k.width, k.height, k.fx, k.fy, k.cx, k.cy, self.files[index].world_to_camera)

    def load(self, index: int) -> Frame:
        """The frame at the output size.

        Raises:
            UserError: one of its files is damaged or does not fit the scene; names the file.
        """
        held = self._cache.get(index, self.decode)
        depth = None if held.depth_mm is None else torch.from_numpy(held.depth_mm.astype(np.float32) / MILLIMETRES)
        return Frame(
            name=self.name(index),
            index=index,
            camera=self.camera(index),
            color=torch.from_numpy(held.color.copy()),
            depth=depth,
            masks=None if held.masks is None else held.masks.expand(),
            truth=None if held.truth is None else held.truth.expand(),
            true_depth=self._load_true_depth(self.name(index)),
        )

    def decode(self, index: int) -> CompactFrame:
        """Read what the cache will hold of a frame; raises as :meth:`load` does."""
        files = self.files[index]
        return CompactFrame(
            color=self.read_color(files),
            depth_mm=None if files.depth is None else self.read_depth(files, files.depth),
            masks=self.read_masks(files),
            truth=self._read_truth(index),
        )

    def read_color(self, files: FrameFiles) -> NDArray[np.uint8]:
        """Colour image at the output size."""
        self.check_size(files)
        return read_color(files.color, (self._output.width, self._output.height))

    def check_size(self, files: FrameFiles) -> None:
        """Raises: UserError: the frame's colour image has not the size of the scene's first."""
        stored = size_of_image(files.color)
        if stored != (self._stored.width, self._stored.height):
            raise UserError(
                f"{files.color}: is {stored[0]}x{stored[1]}, the scene's first image is "
                f"{self._stored.width}x{self._stored.height}: all colour images of a scene must have one size"
            )

    def read_depth(self, files: FrameFiles, path: File) -> NDArray[np.uint16]:
        """Depth [mm] at the output size: each pixel's ray is looked up in the depth image, never interpolated."""
        raw = read_depth_image(path)
        measured = np.where(raw <= self.max_depth_mm, raw, 0)
        if files.depth_noise > 0:
            noisy = add_depth_noise(measured, files.depth_noise, files.number)
            measured = np.where(noisy <= self.max_depth_mm, noisy, 0)
        return self._looked_up(measured.astype(np.uint16), path)

    def _load_true_depth(self, name: str) -> Tensor | None:
        found = None if self._true_depth is None else self._true_depth.get(name)
        if found is None or self._true_depth is None:
            return None
        return torch.from_numpy(self._looked_up(found, self._true_depth.path))

    def _looked_up(self, depth: NDArray[_D], path: File) -> NDArray[_D]:
        """A map in the depth camera [h, w] at the output size, 0 where that camera does not see."""
        source = self._depth
        assert source is not None  # open_scene gives depth intrinsics whenever it lists depth files
        if depth.shape != (source.height, source.width):
            raise UserError(
                f"{path}: is {depth.shape[1]}x{depth.shape[0]}, the scene's first depth image is "
                f"{source.width}x{source.height}: all depth images of a scene must have one size"
            )
        out, k = np.zeros((self._output.height, self._output.width), dtype=depth.dtype), self._output
        columns = np.floor((np.arange(k.width) + 0.5 - k.cx) / k.fx * source.fx + source.cx).astype(np.int64)
        rows = np.floor((np.arange(k.height) + 0.5 - k.cy) / k.fy * source.fy + source.cy).astype(np.int64)
        in_x, in_y = (columns >= 0) & (columns < source.width), (rows >= 0) & (rows < source.height)
        out[np.ix_(in_y, in_x)] = depth[np.ix_(rows[in_y], columns[in_x])]
        return out

    def _read_truth(self, index: int) -> CompactMap | None:
        files = self.files[index]
        if files.label is None or files.instance is None:
            if self._mesh_truth is None:
                return None
            raw, instance = self._mesh_truth.view(self.camera(index))
            return self._compact(self._labels.map_raw(raw), instance, None, files.color)
        semantic = self._labels.map_raw(np.asarray(read_integers(files.label)))
        return self._compact(semantic, read_integers(files.instance), None, files.instance)

    def read_masks(self, files: FrameFiles) -> CompactMap | None:
        """Pseudo-masks at the output size; None where the frame has none."""
        if files.mask_semantic is None or files.mask_instance is None:
            return None
        semantic = read_integers(files.mask_semantic)
        known = np.zeros(max(self._labels.size, int(semantic.max()) + 1), dtype=bool)
        known[[0, *(c.id for c in self._labels.classes)]] = True
        strange = np.unique(semantic[~known[semantic]])
        if strange.size:
            raise UserError(
                f"{files.mask_semantic}: holds class id {int(strange[0])}, which the label space {self._labels.name} "
                "does not have: make the masks with the scene's classes.json, or pass theirs as data.label_space"
            )
        score = None if files.mask_score is None else read_integers(files.mask_score)
        if score is not None and score.dtype != np.uint8:
            raise UserError(f"{files.mask_score}: must be 8-bit (255 x score): write it again")
        return self._compact(semantic, read_integers(files.mask_instance), score, files.mask_instance)

    def _compact(
        self,
        semantic: NDArray[np.integer],
        instance: NDArray[np.integer],
        score: NDArray[np.integer] | None,
        path: File,
    ) -> CompactMap:
        if semantic.shape != instance.shape or (score is not None and score.shape != semantic.shape):
            raise UserError(f"{path}: differs in size from the class and score images of its frame: export all again")
        # An instance id may lie under a stuff mask that won the pixel later: stuff has no instances.
        instance = np.where(self.is_thing[semantic], instance, 0)
        size = (self._output.width, self._output.height)
        return CompactMap(
            smallest_ids(resize_nearest(semantic, *size)),
            smallest_ids(resize_nearest(instance, *size)),
            None if score is None else np.ascontiguousarray(resize_nearest(score, *size), dtype=np.uint8),
        )


def open_scene(
    folder: Path,
    *,
    masks: str | None = "medium",
    image_size: tuple[int, int] | None = None,
    stride: int = 1,
    split_file: Path | None = None,
    label_space: str | Path | None = None,
    test_every: int = 5,
    cache_bytes: int = 2 << 30,
    max_depth: float = 8.0,
    views: int | None = None,
    depth_noise: float = 0.0,
    select: Select = "even",
    axis_align: bool = False,
) -> Scene:
    """Open a scene folder, exported (``color/`` is there) or as downloaded; images are decoded when they are asked for.

    Frames whose pose is not finite (the tracker was lost) are dropped and reported. The split is that of
    ``split_file``, else of ``<scene>/splits.json``, else every ``test_every``-th kept frame is test (0: none).
    ``stride`` keeps every stride-th frame; where a split file rules, it thins the training frames only, so the test set
    stays comparable. ``views`` then keeps that many of the training frames that are left, chosen by ``select``.

    ``depth_noise`` = s adds what a worse depth sensor would add: independent Gaussian noise of s · z² metres at depth
    z, the axial error of triangulation (Khoshelham and Elberink 2012, who found s = 0.0014 for the first Kinect). Depth
    of test frames stays as it is.

    Args:
        folder: the scene's folder.
        masks: pseudo-masks: NAME for the folder ``masks_NAME`` in the scene, or a path; None or "none" for none.
        image_size: (width, height) of all maps; None keeps the colour images' size.
        label_space: a ``classes.json`` elsewhere, or the name of a packaged label space; None: that of the scene
            (:func:`panbench.data.label_tables.label_space_file`), else scannet20.
        cache_bytes: budget of the cache of decoded frames.
        max_depth: metres; measurements beyond count as none.
        views: number of training frames; None: all.
        depth_noise: standard deviation at 1 m of noise added to the depth of training frames, metres; 0: none.
        select: which frames ``views`` keeps (:func:`panbench.data.select.choose`).
        axis_align: put ``axisAlignment`` of ``<scene>.txt`` on top of the poses.

    Raises:
        UserError: something is missing, damaged or contradictory; names the file and the remedy.
    """
    if stride < 1 or test_every < 0 or max_depth <= 0 or (image_size is not None and min(image_size) < 1):
        raise UserError(
            f"data: stride {stride} must be at least 1, test_every {test_every} at least 0, max_depth {max_depth} "
            f"positive, image_size {image_size} positive"
        )
    check_views_and_noise(views, depth_noise)
    labels = read_labels(folder, label_space, default="scannet20")
    mask_folder = find_masks(folder, masks)
    world = axis_alignment(folder) if axis_align else np.eye(4)
    raw = sens_path(folder).is_file() and not (folder / "color").is_dir()
    listed = list_raw(folder, mask_folder, world) if raw else _list_exported(folder, mask_folder, world)
    files, lost, color, depth = list(listed.frames), listed.lost, listed.color, listed.depth
    mesh_truth = None if any(f.label for f in files) else read_mesh_truth(folder, world)
    size = image_size or (color.width, color.height)
    kept = list(range(len(files)))
    split_path = split_file or folder / "splits.json"
    if split_file is not None or split_path.is_file():
        train, test = _read_split(split_path, files, lost)
        train = train[::stride]
    else:
        kept = kept[::stride]
        test = [i for n, i in enumerate(kept) if test_every and n % test_every == 0]
        train = [i for i in kept if i not in set(test)]
    train = [train[i] for i in choose([_candidate(files[i]) for i in train], views, select, folder)]
    _check_labelled(files, train, test, folder, mask_folder)
    if depth_noise > 0:
        if depth is None:
            raise UserError(f"{folder}: has no depth to add noise to: leave out data.depth_noise")
        noisy = set(train)
        files = [replace(f, depth_noise=depth_noise) if i in noisy else f for i, f in enumerate(files)]
    log.info(
        "%s: %d of %d frames have a pose (%d lost), %d train, %d test, %dx%d, %s, %s, masks %s",
        folder.name, len(files), len(files) + len(lost), len(lost), len(train), len(test), *size,
        "depth" if depth else "no depth",
        "ground truth" if mesh_truth or files[test[0] if test else 0].label else "no ground truth",
        mask_folder.name if mask_folder else "none",
    )  # fmt: skip
    # Only frames in use stay in the source, so that indices are dense.
    used = sorted({*train, *test})
    place = {old: new for new, old in enumerate(used)}
    true_depth = TrueDepth(folder, [files[i].name for i in test]) if depth else None
    source = ScanNetSource(
        [files[i] for i in used], color, depth, size, labels, max_depth, cache_bytes, true_depth, mesh_truth
    )
    return Scene(
        dataset="scannet",
        name=folder.name,
        synthetic=(folder / "synthetic.json").is_file(),
        source=source,
        train=tuple(place[i] for i in train),
        test=tuple(place[i] for i in test),
        labels=labels,
        mask_hash=hash_masks([files[i] for i in train]) if mask_folder else "",
        data_hash=hash_names_and_sizes(folder),
    )


def check_views_and_noise(views: int | None, depth_noise: float) -> None:
    """Raises: UserError: fewer than one view, or noise that is negative or not finite."""
    if (views is not None and views < 1) or not 0 <= depth_noise < math.inf:
        raise UserError(f"data: views {views} must be at least 1 or null, depth_noise {depth_noise} at least 0")


def find_masks(folder: Path, masks: str | None) -> Path | None:
    """The folder of a mask set, given by NAME (``masks_NAME`` in the scene) or path; None for none."""
    if masks is None or masks in ("", "none"):
        return None
    # A name first: a folder that happens to be called "medium" in the working directory must not win.
    named = folder / f"masks_{masks}"
    path = named if named.is_dir() else Path(masks).expanduser()
    if not path.is_dir():
        known = sorted(p.name.removeprefix("masks_") for p in folder.glob("masks_*") if p.is_dir())
        choices = ", ".join([*known, "none"])
        raise UserError(f"{named}: no such folder of pseudo-masks; set data.masks to one of: {choices}")
    semantic = path / "semantic_image"
    if not any(semantic.glob("*.png")):
        if any(semantic.glob("*.jpg")):
            raise UserError(f"{semantic}: holds JPEG files, which garble class ids: write the masks as PNG")
        raise UserError(f"{semantic}: holds no PNG file: the mask set is empty, make the masks again")
    if (path / UNFINISHED).is_file():
        raise UserError(f"{path}: is unfinished: run the command that makes these masks again, it goes on")
    return path


def _list_exported(folder: Path, masks: Path | None, world: NDArray[np.float64]) -> SceneFiles:
    """Frames that have a finite pose, with ``world`` put on top of the poses."""
    color = list_numbered(folder / "color", COLOR_SUFFIXES)
    if not color:
        raise UserError(
            f"{folder / 'color'}: holds no images, and there is no {sens_path(folder).name}; expected a scene in "
            "ScanNet's exported layout (color/ depth/ pose/ intrinsic/) or as downloaded: check data.root and "
            "data.scene"
        )
    depth = list_numbered(folder / "depth", (".png",))
    pose = list_numbered(folder / "pose", (".txt",))
    sides = list_side_files(folder, masks)
    need_partner(depth, color, folder / "color", "colour image")
    need_partner(color, pose, folder / "pose", "pose")
    if depth:
        need_partner(color, depth, folder / "depth", "depth image")
    poses = {number: _read_pose(pose[number], world) for number in color}
    frames = [
        sides.frame(number, color[number].stem, matrix, color[number], depth.get(number))
        for number, matrix in poses.items()
        if matrix is not None
    ]
    if not frames:
        raise UserError(f"{folder / 'pose'}: no pose is finite: the scene's tracking failed, use another scene")
    lost = frozenset(number for number, matrix in poses.items() if matrix is None)
    return SceneFiles(frames, lost, *_read_intrinsics(folder, frames[0]))


def _read_matrix(path: Path, sizes: Iterable[int]) -> NDArray[np.float64]:
    """Square matrix of a text file.

    Raises:
        UserError: not numbers, or not one of the given sizes.
    """
    try:
        values = np.array(path.read_text().split(), dtype=np.float64)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: export the scene again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a text file of numbers ({error}): export it again") from error
    for size in sizes:
        if values.size == size * size:
            return values.reshape(size, size)
    expected = " or ".join(f"{s}x{s}" for s in sizes)
    raise UserError(f"{path}: holds {values.size} numbers instead of a {expected} matrix: export it again")


def _read_pose(path: Path, world: NDArray[np.float64]) -> Tensor | None:
    """world_to_camera [4, 4] float32 of a camera-to-world file; None if the tracker was lost (any entry not finite)."""
    matrix = _read_matrix(path, (4,))
    if not np.isfinite(matrix).all():
        return None
    exact = rigid(matrix)
    if exact is None:
        raise UserError(f"{path}: its 3x3 part is no rotation, so it is no camera-to-world pose: export it again")
    return inverse_of_rigid(world @ exact)


def _read_intrinsics(folder: Path, first: FrameFiles) -> tuple[Pinhole, Pinhole | None]:
    """Intrinsics of colour and depth images at their stored sizes."""
    facts = read_facts(folder)
    color = _read_pinhole(folder / "intrinsic" / "intrinsic_color.txt", first.color, facts, "color")
    if first.depth is None:
        return color, None
    path = folder / "intrinsic" / "intrinsic_depth.txt"
    if path.is_file():
        depth = _read_pinhole(path, first.depth, facts, "depth")
    else:
        depth = color.resized(*depth_size(first.depth))
    extrinsic = folder / "intrinsic" / "extrinsic_depth.txt"
    if extrinsic.is_file() and np.abs(_read_matrix(extrinsic, (4,)) - np.eye(4)).max() > 0.001:
        log.warning("%s: is not the identity; depth is used as if taken from the colour camera's place", extrinsic)
    return color, depth


def _read_pinhole(path: Path, image: File, facts: Mapping[str, str], kind: str) -> Pinhole:
    """Intrinsics at the size of ``image``; the file's are for the size in ``<scene>.txt``, else for the image's own."""
    matrix = _read_matrix(path, (4, 3))
    width, height = depth_size(image) if kind == "depth" else size_of_image(image)
    try:
        stated = (int(facts.get(f"{kind}Width", width)), int(facts.get(f"{kind}Height", height)))
    except ValueError as error:
        raise UserError(
            f"{path.parents[1] / path.parents[1].name}.txt: {kind}Width or {kind}Height is no number: correct it"
        ) from error
    pinhole = make_pinhole(matrix, stated)
    if pinhole is None:
        raise UserError(
            f"{path}: focal length ({matrix[0, 0]:g}, {matrix[1, 1]:g}) and centre ({matrix[0, 2] + 0.5:g}, "
            f"{matrix[1, 2] + 0.5:g}) do not fit images of {stated[0]}x{stated[1]}: give the intrinsics of the stored "
            f"images, or state {kind}Width and {kind}Height of the intrinsics in {path.parents[1].name}.txt"
        )
    return pinhole.resized(width, height)


def _read_split(path: Path, files: Sequence[FrameFiles], lost: Set[int]) -> tuple[list[int], list[int]]:
    """Positions of the train and test frames; frames without a pose are left out."""
    place = {f.number: i for i, f in enumerate(files)}
    try:
        data = json.loads(path.read_text())
        names = {part: [int(name) for name in data[part]] for part in ("train", "test")}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such split file: correct data.split_file") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(
            f'{path}: is not {{"train": [frame, ...], "test": [frame, ...]}} ({error!r}): correct it'
        ) from error
    for number in (*names["train"], *names["test"]):
        if number not in place and number not in lost:
            raise UserError(f"{path}: names frame {number}, which the scene does not have: correct the split")
    both = sorted(set(names["train"]) & set(names["test"]))
    if both:
        raise UserError(f"{path}: frame {both[0]} is both train and test ({len(both)} such frames): correct the split")
    train, test = (sorted({place[n] for n in names[part] if n in place}) for part in ("train", "test"))
    return train, test


def _candidate(frame: FrameFiles) -> Candidate:
    return Candidate(frame.color, frame.world_to_camera.double().inverse().numpy())


def _check_labelled(
    files: Sequence[FrameFiles], train: Sequence[int], test: Sequence[int], folder: Path, masks: Path | None
) -> None:
    """Training frames need masks where there is a mask set, test frames the truth where the scene has any."""
    if not train:
        raise UserError(f"{folder}: no training frames are left: check the split file, data.stride and data.test_every")
    check_masked([files[i] for i in train], masks)
    bare = [files[i] for i in test if files[i].label is None]
    if any(f.label for f in files) and bare:
        raise UserError(
            f"{folder / 'label-filt'}: has no label of test frame {bare[0].name} ({len(bare)} such frames): "
            "extract all labels again"
        )


def check_masked(train: Sequence[FrameFiles], masks: Path | None) -> None:
    """Raises: UserError: there is a mask set, and it lacks a training frame."""
    bare = [frame for frame in train if frame.mask_semantic is None]
    if masks and bare:
        raise UserError(
            f"{masks / 'semantic_image'}: has no mask of training frame {bare[0].name} ({len(bare)} such frames): "
            "make the masks of all training frames"
        )


def hash_masks(files: Sequence[FrameFiles]) -> str:
    """sha256 over the names and contents of the pseudo-mask files of these frames."""
    digest = hashlib.sha256()
    for frame in files:
        for path in (frame.mask_semantic, frame.mask_instance, frame.mask_score):
            if path is not None:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.parent.name}/{path.name} {content}\n".encode())
    return digest.hexdigest()


def hash_names_and_sizes(folder: Path) -> str:
    """sha256 over the names and sizes of the scene's files, pseudo-masks left out."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if not name.parts[0].startswith(("masks_", ".")):
            digest.update(f"{name.as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def add_depth_noise(raw: NDArray[np.integer], deviation: float, number: int) -> NDArray[np.float64]:
    """Depth in whole mm with noise of ``deviation`` · z² metres; the same each time for a frame. 0 stays 0.

    With z in mm that is deviation · z² / 1000 mm.
    """
    rng = np.random.default_rng([_NOISE_SEED, number])
    z = raw.astype(np.float64)
    moved = np.round(z + deviation * z**2 / MILLIMETRES * rng.standard_normal(z.shape))
    return np.where(raw > 0, np.maximum(moved, 0), 0)


def smallest_ids(ids: NDArray[np.generic]) -> NDArray[np.uint8 | np.uint16]:
    """The same ids in one byte where they fit, else in two."""
    return np.ascontiguousarray(ids, dtype=np.uint8 if int(ids.max(initial=0)) < 256 else np.uint16)
