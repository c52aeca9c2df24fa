"""Checks the files of a scene in the exported ScanNet-V2 layout one by one, and goes on past each fault.

:func:`panbench.data.scannet_reader.open_scene` refuses a scene at its first fault. Here every file is looked at, and
what is whole is handed on so that its content can be checked, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panbench.data.check_faults import Faults, count
from panbench.data.images import image_size, read_integers
from panbench.data.label_tables import read_labels
from panbench.data.scannet_files import FrameFiles, Pinhole, inverse_of_rigid, read_facts, rigid
from panbench.data.scannet_reader import COLOR_SUFFIXES
from panbench.errors import UserError
from panbench.scene import LabelSpace

_MASK_IMAGES = ("semantic_image", "instance_image", "score")
_EXPORT = "export the scene again"


@dataclass(frozen=True)
class Inventory:
    """What is there and can be worked with.

    Attributes:
        folder: of the scene.
        frames: those with a colour image and a rigid pose, in order; without their labels and masks.
        names: of all frames.
        color, depth: intrinsics at the stored sizes; None where unknown.
        labels: the label space, if there is a whole one.
        train: numbers of the training frames.
        truth: label and instance image by frame number.
        masks: per mask set its folder, and its class, instance and score image by frame number.
    """

    folder: Path
    frames: list[FrameFiles]
    names: list[str]
    color: Pinhole | None
    depth: Pinhole | None
    labels: LabelSpace | None
    train: frozenset[int]
    truth: dict[int, tuple[Path, Path | None]]
    masks: dict[Path, dict[int, tuple[Path, Path | None, Path | None]]]


def take_stock(folder: Path, faults: Faults) -> Inventory:
    """List and join the files of a scene; poses, intrinsics, classes, split and image sizes are read."""
    color = _listed(folder / "color", COLOR_SUFFIXES, faults)
    depth = _listed(folder / "depth", (".png",), faults)
    pose = _listed(folder / "pose", (".txt",), faults)
    label = _listed(folder / "label-filt", (".png",), faults)
    instance = _listed(folder / "instance-filt", (".png",), faults)
    if not color:
        faults.add("missing-file", "error", folder / "color", "holds no images", _EXPORT)
    _partners(color, pose, folder / "pose", "no pose", faults)
    _partners(depth, color, folder / "color", "no colour image for a depth image", faults)
    _partners(label, instance, folder / "instance-filt", "no instance image for a label image", faults)
    if depth:
        _partners(color, depth, folder / "depth", "no depth image", faults)
    elif color:
        faults.add("no-depth", "warning", folder / "depth", "holds no depth images", f"{_EXPORT}, if it has depth")
    color_size = _one_size(color, "colour images", faults)
    depth_size = _one_size(depth, "depth images", faults)
    poses, lost = _read_poses(pose, color, faults)
    labels = _read_labels(folder, faults)
    train, test = _read_split(folder, [n for n in color if n in poses], lost, set(color), faults)
    if label:
        _partners(
            {n: color[n] for n in test if n in color},
            label,
            folder / "label-filt",
            "no label image for a test frame",
            faults,
        )
    masks: dict[Path, dict[int, tuple[Path, Path | None, Path | None]]] = {}
    for path in sorted(p for p in folder.glob("masks_*") if p.is_dir()):
        sets = [_listed(path / kind, (".png",), faults) for kind in _MASK_IMAGES]
        masks[path] = {n: (file, sets[1].get(n), sets[2].get(n)) for n, file in sets[0].items()}
        _partners(sets[0], sets[1], path / "instance_image", "no instance image for a class image", faults)
        if sets[2]:
            _partners(sets[0], sets[2], path / "score", "no score image for a class image", faults)
        bare = [str(n) for n in sorted(train) if n not in sets[0]]
        if bare:
            faults.add(
                "missing-mask",
                "error",
                path / "semantic_image",
                "no mask of a training frame",
                "make the masks of all training frames",
                bare,
            )
    color_pinhole, depth_pinhole = _read_intrinsics(folder, color_size, depth_size, faults)
    return Inventory(
        folder=folder,
        frames=[
            FrameFiles(
                number=n, name=color[n].stem, world_to_camera=poses[n], color=color[n], depth=depth.get(n), label=None,
                instance=None, mask_semantic=None, mask_instance=None, mask_score=None,
            )
            for n in color
            if n in poses
        ],
        names=[path.stem for path in color.values()],
        color=color_pinhole,
        depth=depth_pinhole,
        labels=labels,
        train=frozenset(train),
        truth={n: (file, instance.get(n)) for n, file in label.items()},
        masks=masks,
    )  # fmt: skip


def check_labels(stock: Inventory, number: int, faults: Faults) -> None:
    """Look into the label and mask images of one frame."""
    name = str(number)
    if number in stock.truth:
        label, instance = stock.truth[number]
        maps = _read_maps((label, instance, None), name, faults)
        if maps is not None and stock.labels is not None:
            semantic = stock.labels.map_raw(maps[0])
            if not semantic.any():
                faults.add(
                    "no-truth",
                    "warning",
                    label.parent,
                    "none of its raw ids is in gt_map of classes.json",
                    "add the raw ids that belong to the classes",
                    [name],
                )
            _check_instances(stock.labels, semantic, maps[1], label.parent, name, faults)
    for folder, files in stock.masks.items():
        if number not in files:
            continue
        maps = _read_maps(files[number], name, faults)
        if maps is not None:
            check_masks(stock.labels, maps[0], maps[1], folder, name, faults)


def check_masks(
    labels: LabelSpace | None,
    semantic: NDArray[np.integer],
    instance: NDArray[np.integer] | None,
    folder: object,
    name: str,
    faults: Faults,
) -> None:
    """Look at the class and instance map of one frame of a mask set."""
    if not semantic.any():
        faults.add("empty-mask", "warning", folder, "no pixel has a class", "make these masks again", [name])
    if labels is None:
        return
    known = {0, *(c.id for c in labels.classes)}
    strange = [int(v) for v in np.unique(semantic) if int(v) not in known]
    if strange:
        ids = ", ".join(map(str, strange[:4]))
        faults.add(
            "label-outside",
            "error",
            folder,
            f"class id {ids} is not in the label space",
            "make the masks with the scene's classes.json, or pass theirs as data.label_space",
            [name],
        )
        semantic = np.where(np.isin(semantic, strange), 0, semantic)
    _check_instances(labels, semantic, instance, folder, name, faults)


def _check_instances(
    labels: LabelSpace,
    semantic: NDArray[np.integer],
    instance: NDArray[np.integer] | None,
    folder: object,
    name: str,
    faults: Faults,
) -> None:
    if instance is None:
        return
    thing = labels.is_thing()[semantic]
    if thing.any() and (instance[thing] == 0).mean() > 0.01:
        faults.add(
            "no-instance",
            "warning",
            folder,
            "pixels of things have no instance",
            "give every thing an instance id, or make its class stuff in classes.json",
            [name],
        )


def _read_maps(
    files: Sequence[Path | None], name: str, faults: Faults
) -> tuple[NDArray[np.integer], NDArray[np.integer] | None] | None:
    """Class and instance map; None if there is no whole class map. Sizes must be equal."""
    maps: list[NDArray[np.integer] | None] = []
    for file in files:
        try:
            maps.append(None if file is None else read_integers(file))
        except UserError as error:
            faults.add_error("unreadable", error, [name])
            maps.append(None)
    semantic, instance, score = maps
    for other, file in ((instance, files[1]), (score, files[2])):
        if semantic is not None and other is not None and file is not None and other.shape != semantic.shape:
            faults.add(
                "image-size", "error", file.parent, "differs in size from the class image", "write both again", [name]
            )
            instance = instance if other is score else None
    return None if semantic is None else (semantic, instance)


def _listed(folder: Path, suffixes: Sequence[str], faults: Faults) -> dict[int, Path]:
    """Files by frame number."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            if path.suffix.lower() in (".jpg", ".jpeg"):
                faults.add(
                    "missing-file",
                    "error",
                    folder,
                    "holds JPEG files, which garble ids and depth",
                    "write PNG",
                    [path.stem],
                )
            continue
        if not path.stem.isdecimal():
            faults.add("stray-file", "error", path, "its name is not a frame number", "rename or remove it")
        elif (first := found.setdefault(int(path.stem), path)) != path:
            faults.add("stray-file", "error", path, f"is the same frame number as {first.name}", "remove one of them")
    return dict(sorted(found.items()))


def _partners(have: Mapping[int, Path], partners: Mapping[int, Path], folder: Path, what: str, faults: Faults) -> None:
    missing = [path.stem for number, path in have.items() if number not in partners]
    if missing:
        faults.add("missing-file", "error", folder, what, _EXPORT, missing)


def _one_size(files: Mapping[int, Path], what: str, faults: Faults) -> tuple[int, int] | None:
    """The size that most of the images have; the others are faults."""
    sizes: dict[int, tuple[int, int]] = {}
    for number, path in files.items():
        try:
            sizes[number] = image_size(path)
        except UserError as error:
            faults.add_error("unreadable", error, [path.stem])
    if not sizes:
        return None
    values = list(sizes.values())
    usual = max(set(values), key=values.count)
    for size in sorted(set(values) - {usual}):
        names = [files[n].stem for n, s in sizes.items() if s == size]
        faults.add(
            "image-size", "error", files[next(iter(files))].parent,
            f"{size[0]}x{size[1]}, but most {what} are {usual[0]}x{usual[1]}", "export them at one size", names,
        )  # fmt: skip
    return usual


def read_matrix(path: Path) -> NDArray[np.float64]:
    """Square matrix of 3 or 4 rows of a text file.

    Raises:
        UserError: it is none.
    """
    try:
        values = np.array(path.read_text().split(), dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a text file of numbers: {_EXPORT}") from error
    if values.size not in (9, 16):
        raise UserError(f"{path}: holds {count(values.size, 'number')} instead of a 4x4 matrix: {_EXPORT}")
    return values.reshape(3 if values.size == 9 else 4, -1)


def _read_poses(
    pose: Mapping[int, Path], color: Mapping[int, Path], faults: Faults
) -> tuple[dict[int, Tensor], set[int]]:
    """World to camera of the frames that have a rigid pose, and the frames whose pose is not finite."""
    poses: dict[int, Tensor] = {}
    lost: set[int] = set()
    for number, path in pose.items():
        try:
            matrix = read_matrix(path)
        except UserError as error:
            faults.add_error("unreadable", error, [path.stem])
            continue
        if not np.isfinite(matrix).all():
            lost.add(number)
            continue
        whole = matrix.shape == (4, 4) and np.abs(matrix[3] - (0, 0, 0, 1)).max() <= 1e-3
        exact = rigid(matrix) if whole else None
        if exact is None:
            faults.add("not-rigid", "error", path.parent, _why_not_rigid(matrix, whole), _EXPORT, [path.stem])
            continue
        poses[number] = inverse_of_rigid(exact)
    if lost and len(lost) == len(pose):
        faults.add(
            "lost-pose",
            "error",
            next(iter(pose.values())).parent,
            "no pose is finite: tracking failed",
            "use another scene",
        )
    elif lost:
        names = [pose[n].stem for n in sorted(lost)]
        faults.add(
            "lost-pose",
            "warning",
            pose[min(lost)].parent,
            "poses that are not finite: the tracker was lost",
            "nothing to do, such frames are left out",
            names,
        )
    return {n: m for n, m in poses.items() if n in color}, lost


def _why_not_rigid(matrix: NDArray[np.float64], whole: bool) -> str:
    if not whole:
        return "the last row of the pose is not 0 0 0 1"
    determinant = float(np.linalg.det(matrix[:3, :3]))
    if determinant < 0:
        return "the pose mirrors (one axis is reversed)"
    scaled = matrix.copy()
    scaled[:3, :3] /= max(float(np.cbrt(determinant)), 1e-12)
    return "the 3x3 part of the pose is no rotation" if rigid(scaled) is None else "the pose scales as well as rotates"


def _read_labels(folder: Path, faults: Faults) -> LabelSpace | None:
    try:
        return read_labels(folder, None, default="scannet20")
    except UserError as error:
        faults.add_error("classes", error)
        return None


def _read_split(
    folder: Path, posed: Sequence[int], lost: set[int], known: set[int], faults: Faults
) -> tuple[set[int], set[int]]:
    """Training and test frames; without a split file as the reader splits by default."""
    path = folder / "splits.json"
    if not path.is_file():
        test = set(posed[::5])
        return set(posed) - test, test
    try:
        data = json.loads(path.read_text())
        train, test = ({int(name) for name in data[part]} for part in ("train", "test"))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        faults.add("split", "error", path, 'is not {"train": [frame, ...], "test": [frame, ...]}', "correct it")
        return set(), set()
    strange = sorted((train | test) - known)
    if strange:
        faults.add("split", "error", path, "names frames that the scene does not have", "correct it", map(str, strange))
    if train & test:
        faults.add(
            "split",
            "error",
            path,
            "has frames that are both train and test",
            "correct it",
            map(str, sorted(train & test)),
        )
    if not (train & set(posed)):
        faults.add("split", "error", path, "leaves no training frame with a pose", "correct it")
    return train & known - lost, test & known - lost


def _read_intrinsics(
    folder: Path, color: tuple[int, int] | None, depth: tuple[int, int] | None, faults: Faults
) -> tuple[Pinhole | None, Pinhole | None]:
    """Intrinsics at the stored sizes."""
    facts = read_facts(folder)
    first = _pinhole(folder / "intrinsic" / "intrinsic_color.txt", color, facts, "color", faults)
    if depth is None or color is None:
        return first, None
    path = folder / "intrinsic" / "intrinsic_depth.txt"
    own = path.is_file()
    ratio = (depth[0] / depth[1]) / (color[0] / color[1])
    if abs(ratio - 1) > 0.03:
        faults.add(
            "aspect", "warning" if own else "error", folder / "depth",
            f"depth is {depth[0]}x{depth[1]}, colour {color[0]}x{color[1]}: another ratio of the sides",
            "be sure that intrinsic_depth.txt is of these images" if own else f"give {path.relative_to(folder)}",
        )  # fmt: skip
    if own:
        return first, _pinhole(path, depth, facts, "depth", faults)
    return first, None if first is None else first.resized(*depth)


def _pinhole(
    path: Path, size: tuple[int, int] | None, facts: Mapping[str, str], kind: str, faults: Faults
) -> Pinhole | None:
    if size is None:
        return None
    scene = path.parents[1].name
    remedy = f"give the intrinsics of the stored images, or state {kind}Width and {kind}Height in {scene}.txt"
    try:
        matrix = read_matrix(path)
        stated = (int(facts.get(f"{kind}Width", size[0])), int(facts.get(f"{kind}Height", size[1])))
    except UserError as error:
        faults.add_error("intrinsics", error)
        return None
    except ValueError:
        faults.add(
            "intrinsics",
            "error",
            path.parents[1] / f"{path.parents[1].name}.txt",
            f"{kind}Width or {kind}Height is no number",
            "correct it",
        )
        return None
    fx, fy, cx, cy = (float(v) for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2] + 0.5, matrix[1, 2] + 0.5))
    if not (np.isfinite([fx, fy, cx, cy]).all() and min(fx, fy, *stated) > 0):
        faults.add("intrinsics", "error", path, f"focal length ({fx:g}, {fy:g}) is not positive", remedy)
        return None
    pinhole = Pinhole(*stated, fx, fy, cx, cy).resized(*size)
    off = not (0.25 < pinhole.cx / size[0] < 0.75 and 0.25 < pinhole.cy / size[1] < 0.75)
    # Lenses of 15 to 150 degrees; pixels that are squares within a twentieth.
    wide = not 0.13 < pinhole.fx / size[0] < 3.8
    oblong = abs(pinhole.fx / pinhole.fy - 1) > 0.05
    if off or wide or oblong:
        why = "the centre is off the middle" if off else "an odd field of view" if wide else "pixels that are oblong"
        what = f"focal length ({fx:g}, {fy:g}), centre ({cx:g}, {cy:g}) do not fit images of {stated[0]}x{stated[1]}"
        faults.add("intrinsics", "error" if off else "warning", path, f"{what}: {why}", remedy)
    return None if off else pinhole
