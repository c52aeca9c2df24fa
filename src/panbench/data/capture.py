"""Your own captures: one shape for all that importers read, and the writer of the exported ScanNet layout from it."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from panbench import __version__
from panbench.data.draft import appearing
from panbench.data.file import File
from panbench.data.images import image_size, read_color, read_integers, resize_nearest
from panbench.data.json_file import read_json
from panbench.data.npy import parse_npy
from panbench.data.point_cloud import write_ply
from panbench.data.room_export import write_json
from panbench.data.scannet_files import Pinhole
from panbench.data.scannet_reader import COLOR_SUFFIXES, MILLIMETRES, nearest_rotation
from panbench.data.select import Candidate, Select, choose
from panbench.data.undistort import Lens, Undistortion
from panbench.errors import UserError
from panbench.masks.mask_set import (
    INSTANCE,
    MANIFEST,
    SCORE,
    SEMANTIC,
    FrameMasks,
    MaskManifest,
    MaskSet,
    content_hash,
)
from panbench.scene import LabelSpace, Points

log = logging.getLogger(__name__)

MARK = "import.json"
CLOUD = "points.ply"
_SAME = 0.01  # pixels by which intrinsics may differ and count as the same
_COVERED = 0.9  # least share of the common view that each camera must see
_Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class CaptureFrame:
    """One image of a capture.

    Attributes:
        name: what the source calls it.
        color: its file.
        lens: of the camera, for some size of the image; it is scaled to the file's own.
        camera_to_world: [4, 4], OpenCV axes, in the source's unit of length; not finite where the tracker was lost.
        depth: 16-bit image or .npy of z-depth in ``Capture.depth_unit``, 0 = none, in the view of the colour image.
        hidden: reads where pixels must not count [h, w], or None.
        label, instance: images of raw class ids and of object ids: the ground truth.
    """

    name: str
    color: File
    lens: Lens
    camera_to_world: NDArray[np.float64]
    depth: File | None = None
    hidden: Callable[[], NDArray[np.bool_]] | None = None
    label: File | None = None
    instance: File | None = None


@dataclass(frozen=True, eq=False)
class CaptureMasks:
    """A set of pseudo-masks: what reads those of a frame by its name (None: it has none), and what made them."""

    read: Callable[[str], FrameMasks | None]
    manifest: MaskManifest | None


@dataclass(frozen=True, eq=False)
class Capture:
    """What an importer read; images are decoded when they are written.

    Attributes:
        kind: of the source: "nerfstudio", ….
        folder: of the source.
        index: the file that lists frames or poses, whose sha256 goes into ``import.json``; None where there is none.
        frames: in the order of the path.
        depth_unit: metres of 1 in depth images.
        split: names of training and test frames, or None.
        points: a cloud, in the world and the unit of the poses.
        masks: pseudo-mask sets by NAME.
        classes: the file of the label space, or what is in one; None where the source has none.
    """

    kind: str
    folder: Path
    index: Path | None
    frames: Sequence[CaptureFrame]
    depth_unit: float = 0.001
    split: Mapping[str, Sequence[str]] | None = None
    points: Points | None = None
    masks: Mapping[str, CaptureMasks] = field(default_factory=dict)
    classes: Path | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ImportOptions:
    """What the user decides.

    Attributes:
        scale: metres of the source's unit of length.
        stride, count, select: which frames are kept: every stride-th, then ``count`` of them, chosen by ``select``
            (:func:`panbench.data.select.choose`). Where the source has a split, of the training frames.
        classes: a ``classes.json`` to take instead of the source's.
        settings: what else the importer was told, for ``import.json``.
    """

    scale: float = 1.0
    stride: int = 1
    count: int | None = None
    select: Select = "even"
    classes: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_capture(
    capture: Capture, out: Path, name: str | None = None, options: ImportOptions | None = None, *, progress: bool = True
) -> Path:
    """Write a capture as the scene ``out/name`` in the exported ScanNet layout.

    All frames get the view of one pinhole camera: that of most frames, undistorted. Images that have it already are
    copied as they are; others are resampled, colours bilinearly, depth and ids by picking pixels. Frames are numbered
    in their order, or keep their numbers where all are named by one; ``import.json`` has the name of each number.
    Hidden pixels lose depth and labels; their colours stay.

    Args:
        out: folder of scenes; made if missing.
        name: of the scene; None: that of the source's folder.

    Returns:
        The scene's folder. It appears in one step when it is complete; an earlier import is replaced.

    Raises:
        UserError: the capture is damaged or contradictory, or the scene cannot be written.
    """
    options = options or ImportOptions()
    if not (math.isfinite(options.scale) and options.scale > 0) or options.stride < 1 or (options.count or 1) < 1:
        raise UserError(
            f"import: scale {options.scale:g} must be positive, stride {options.stride} and count {options.count} "
            "at least 1"
        )
    name = re.sub(r"[^\w.-]+", "_", name or capture.folder.resolve().name).strip(".") or "scene"
    posed, lost = _posed(capture, options.scale)
    numbers = _numbers([frame.name for frame in capture.frames])
    kept = _kept(capture, posed, options)
    lenses = {frame.name: _fitted(frame) for frame in kept}
    view = _View(_common(list(lenses.values())), capture)
    console = Console(stderr=True)
    with appearing(out / name, MARK) as draft:
        for folder in ("color", "depth", "pose", "intrinsic", "label-filt", "instance-filt"):
            (draft / folder).mkdir()
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            written = pool.map(lambda f: _write_frame(draft, numbers[f.name], f, lenses[f.name], view), kept)
            sizes = list(
                track(written, name, len(kept), console=console, disable=not (progress and console.is_terminal))
            )
        for folder in ("depth", "label-filt", "instance-filt"):
            if not any((draft / folder).iterdir()):
                (draft / folder).rmdir()
        _write_intrinsics(draft, view.pinhole, {size for size in sizes if size is not None}, capture)
        _write_splits(draft, capture, kept, numbers)
        for mask_name, masks in capture.masks.items():
            _close_masks(draft / f"masks_{mask_name}", masks)
        if capture.points is not None:
            cloud = capture.points
            scaled = replace(cloud, positions=(cloud.positions * np.float32(options.scale)).astype(np.float32))
            write_ply(draft / CLOUD, scaled)
        _write_classes(draft, capture, options.classes)
        if (capture.folder / "synthetic.json").is_file():
            shutil.copyfile(capture.folder / "synthetic.json", draft / "synthetic.json")
        index = capture.index
        content = None if index is None else hashlib.sha256(index.read_bytes()).hexdigest()
        record = {
            "format": "panbench-import",
            "version": 1,
            "panbench": __version__,
            "from": capture.kind,
            "source": capture.folder.resolve().name,
            "index": None if index is None else {"file": index.name, "sha256": content},
            "options": {
                "scale": options.scale, "stride": options.stride, "count": options.count, "select": options.select,
                **options.settings,
            },
            "frames": {str(numbers[f.name]): f.name for f in sorted(kept, key=lambda f: numbers[f.name])},
            "lost": lost,
            "left_out": len(posed) - len(kept),
        }  # fmt: skip
        write_json(draft / MARK, record)
    log.info(
        "%s: %d of %d frames (%d lost), %dx%d%s", out / name, len(kept), len(capture.frames), len(lost),
        view.pinhole.width, view.pinhole.height, "" if (out / name / "depth").is_dir() else ", no depth",
    )  # fmt: skip
    if not (out / name / "classes.json").is_file():
        log.warning(
            "%s: has no classes.json yet; panbench fit asks for one: write it, or import again with --classes FILE",
            out / name,
        )
    return out / name


def mask_sets(folder: Path, stems: Mapping[str, str]) -> dict[str, CaptureMasks]:
    """The sets ``masks_NAME`` beside a source, by NAME; ``stems`` has the stem of each frame's images by its name."""

    def reader(masks: MaskSet) -> Callable[[str], FrameMasks | None]:
        have = set(masks.stems())
        return lambda name: masks.read(stems[name]) if stems[name] in have else None

    out: dict[str, CaptureMasks] = {}
    for path in sorted(folder.glob("masks_*/")):
        masks = MaskSet.open(path)
        out[path.name.removeprefix("masks_")] = CaptureMasks(reader(masks), masks.manifest)
    return out


def beside(capture: Capture) -> Capture:
    """The capture with what lies beside its source in the folders of our own layout.

    ``label-filt/STEM.png`` and ``instance-filt/STEM.png``, ``masks_NAME/``, ``classes.json`` and, where the source's
    own format has no split, ``splits.json`` with the names or stems of frames. STEM is that of the colour image.

    Raises:
        UserError: such a file is damaged, or several images have one stem.
    """
    folder = capture.folder
    stems = {frame.name: PurePosixPath(frame.name).stem for frame in capture.frames}
    masks = mask_sets(folder, stems)
    labelled = (folder / "label-filt").is_dir() and (folder / "instance-filt").is_dir()
    split = capture.split or _read_split(folder / "splits.json", stems)
    if (masks or labelled) and len(set(stems.values())) < len(stems):
        raise UserError(f"{folder}: several images have one name in different folders: labels cannot be told apart")

    def found(kind: str, name: str) -> Path | None:
        path = folder / kind / f"{stems[name]}.png"
        return path if path.is_file() else None

    frames = capture.frames
    if labelled:
        frames = [
            replace(f, label=found("label-filt", f.name), instance=found("instance-filt", f.name)) for f in frames
        ]
    classes = folder / "classes.json"
    return replace(
        capture,
        frames=frames,
        split=split,
        masks={**masks, **capture.masks},
        classes=classes if classes.is_file() else capture.classes,
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them: frame_9 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]


def read_source_json(path: Path, what: str) -> Any:
    """The content of a JSON file of a source.

    Raises:
        UserError: it is missing or no JSON; ``what`` it should be is in the message.
    """
    return read_json(path, f"write {what} again", missing=f"give a folder with {what}")


# -------------------------------------------------------------------------------------------------------- what is kept


def _posed(capture: Capture, scale: float) -> tuple[list[CaptureFrame], list[str]]:
    """Frames with a pose, made rigid and in metres, and the names of those that have none."""
    posed: list[CaptureFrame] = []
    lost: list[str] = []
    for frame in capture.frames:
        if not np.isfinite(frame.camera_to_world).all():
            lost.append(frame.name)
            continue
        rotation = nearest_rotation(frame.camera_to_world[:3, :3])
        if rotation is None:
            raise UserError(
                f"{capture.index or capture.folder}: the pose of {frame.name} is no rotation and translation: "
                "export the poses again"
            )
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, scale * frame.camera_to_world[:3, 3]
        if np.abs(pose[:3, 3]).max() > 1e5:
            raise UserError(
                f"{capture.index or capture.folder}: {frame.name} is {np.abs(pose[:3, 3]).max():.3g} m from the "
                "origin: subtract one offset from all poses, or correct --scale"
            )
        posed.append(replace(frame, camera_to_world=pose))
    if not posed:
        raise UserError(f"{capture.index or capture.folder}: no frame has a finite pose: export the poses again")
    return posed, lost


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """Frame numbers by name: those that the files are named by, if all are, else the order."""
    stems = [PurePosixPath(name).stem for name in names]
    if all(re.fullmatch("[0-9]{1,9}", stem) for stem in stems) and len({int(s) for s in stems}) == len(stems):
        return {name: int(stem) for name, stem in zip(names, stems, strict=True)}
    return {name: number for number, name in enumerate(names)}


def _kept(capture: Capture, posed: Sequence[CaptureFrame], options: ImportOptions) -> list[CaptureFrame]:
    test = set() if capture.split is None else set(capture.split["test"])
    # A frame that the split does not name is not wanted.
    wanted = None if capture.split is None else {*capture.split["train"], *test}
    train = [f for f in posed if f.name not in test and (wanted is None or f.name in wanted)][:: options.stride]
    candidates = [Candidate(f.color, f.camera_to_world) for f in train]
    chosen = {train[i].name for i in choose(candidates, options.count, options.select, capture.folder)} | test
    kept = [f for f in posed if f.name in chosen]
    if not kept:
        raise UserError(f"{capture.folder}: no frames are left: check its split and --stride")
    return kept


def _read_split(path: Path, stems: Mapping[str, str]) -> dict[str, list[str]] | None:
    if not path.is_file():
        return None
    data = read_source_json(path, 'splits.json with {"train": [...], "test": [...]}')
    by_stem = {stem: name for name, stem in stems.items()}
    try:
        names = {part: [str(n) for n in data[part]] for part in ("train", "test")}
        return {part: [n if n in stems else by_stem[PurePosixPath(n).stem] for n in names[part]] for part in names}
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{path}: is not {{"train": [...], "test": [...]}} with names of frames ({error}): correct it'
        ) from error


# ------------------------------------------------------------------------------------------------------------- the view


def _fitted(frame: CaptureFrame) -> Lens:
    """The lens at the size of the image.

    Raises:
        UserError: the image has another shape, or the lens is none.
    """
    lens, (width, height) = frame.lens, image_size(frame.color)
    values = (lens.fx, lens.fy, lens.cx, lens.cy, *lens.coefficients)
    if not all(math.isfinite(v) for v in values) or min(lens.fx, lens.fy, lens.width, lens.height) <= 0:
        raise UserError(f"{frame.color}: focal length ({lens.fx:g}, {lens.fy:g}) or size is not positive: correct it")
    if abs(width * lens.height - height * lens.width) > max(width, height, lens.width, lens.height):
        turned = width == lens.height and height == lens.width
        raise UserError(
            f"{frame.color}: is {width}x{height}, its camera {lens.width}x{lens.height}: "
            + ("turn the image as the camera saw it" if turned else "give the images that the poses were made with")
        )
    return _scaled(lens, width, height)


def _scaled(lens: Lens, width: int, height: int) -> Lens:
    sx, sy = width / lens.width, height / lens.height
    return replace(lens, width=width, height=height, fx=lens.fx * sx, fy=lens.fy * sy, cx=lens.cx * sx, cy=lens.cy * sy)


def _common(lenses: Sequence[Lens]) -> Pinhole:
    """The camera of most frames; of equally many, the narrowest, whose view the others cover."""
    counts = Counter(lenses)
    lens = max(counts, key=lambda one: (counts[one], one.fx / one.width))
    if lens.model == "pinhole":
        return Pinhole(lens.width, lens.height, lens.fx, lens.fy, lens.cx, lens.cy)
    return Undistortion(lens).pinhole


class _View:
    """The pinhole camera that all frames get, and the way to it from their own."""

    def __init__(self, pinhole: Pinhole, capture: Capture) -> None:
        self.pinhole = pinhole
        self.capture = capture
        self.way = cache(self._way)

    def _way(self, lens: Lens) -> Undistortion | None:
        """None: an image of this lens has the view already, at its own size."""
        target = self.pinhole.resized(lens.width, lens.height)
        ours = (target.fx, target.fy, target.cx, target.cy)
        theirs = (lens.fx, lens.fy, lens.cx, lens.cy)
        same = all(abs(a - b) <= _SAME for a, b in zip(ours, theirs, strict=True))
        if lens.model == "pinhole" and same:
            return None
        way = Undistortion(lens, target)
        covered = float(way.nearest(np.ones((lens.height, lens.width), dtype=np.uint8)).mean())
        if covered < _COVERED:
            raise UserError(
                f"{self.capture.folder}: a camera with focal length {lens.fx:.0f} at {lens.width}x{lens.height} covers "
                f"{covered:.0%} of the view of most frames: import the images of each camera on their own"
            )
        return way


# -------------------------------------------------------------------------------------------------------------- writing


def _write_frame(draft: Path, number: int, frame: CaptureFrame, lens: Lens, view: _View) -> tuple[int, int] | None:
    """Write all files of a frame; returns the size of its depth image, if it has one."""
    _write_color(draft / "color", number, frame, lens, view)
    np.savetxt(draft / "pose" / f"{number}.txt", frame.camera_to_world, fmt="%.9f")
    hidden = _hidden(frame, lens, view)
    size = None
    if frame.depth is not None:
        depth = _write_depth(draft / "depth" / f"{number}.png", frame.depth, lens, view, hidden)
        size = depth.shape[1], depth.shape[0]
    for kind, file in (("label-filt", frame.label), ("instance-filt", frame.instance)):
        if file is not None:
            _save(draft / kind / f"{number}.png", _in_view(read_integers(file), lens, view, hidden))
    for name, masks in view.capture.masks.items():
        found = masks.read(frame.name)
        if found is not None:
            folder = draft / f"masks_{name}"
            for kind, ids in ((SEMANTIC, found.semantic), (INSTANCE, found.instance), (SCORE, found.score)):
                if ids is not None:
                    (folder / kind).mkdir(parents=True, exist_ok=True)
                    _save(folder / kind / f"{number}.png", _in_view(ids, lens, view, hidden))
    return size


def _write_color(folder: Path, number: int, frame: CaptureFrame, lens: Lens, view: _View) -> None:
    suffix = Path(frame.color.name).suffix.lower()
    way = view.way(lens)
    fits = way is None and (lens.width, lens.height) == (view.pinhole.width, view.pinhole.height)
    if fits and suffix in COLOR_SUFFIXES:
        (folder / f"{number}{suffix}").write_bytes(frame.color.read_bytes())
        return
    image = read_color(frame.color, None if way is not None else (view.pinhole.width, view.pinhole.height))
    if way is not None:
        image = way.color(image)
        if image.shape[:2] != (view.pinhole.height, view.pinhole.width):
            size = view.pinhole.width, view.pinhole.height
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if suffix in (".jpg", ".jpeg"):
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=95, subsampling=0)
    else:
        Image.fromarray(image).save(folder / f"{number}.png")


def _hidden(frame: CaptureFrame, lens: Lens, view: _View) -> NDArray[np.bool_] | None:
    """Where pixels of the view must not count [H, W]; None: nowhere."""
    if frame.hidden is None:
        return None
    hidden = resize_nearest(frame.hidden(), lens.width, lens.height)
    way = view.way(lens)
    if way is None:
        return hidden.astype(bool)
    return way.hidden(np.where(hidden, 0, 255).astype(np.uint8)) == 0


def _in_view(image: _Ids, lens: Lens, view: _View, hidden: NDArray[np.bool_] | None) -> _Ids:
    """An image of ids or depth [h, w] of a frame as the view shows it, at its own size, 0 at hidden pixels."""
    way = view.way(_scaled(lens, image.shape[1], image.shape[0]))
    if way is not None:
        image = way.nearest(image)
    if hidden is not None:
        image = np.where(resize_nearest(hidden, image.shape[1], image.shape[0]), 0, image).astype(image.dtype)
    return image


def _write_depth(path: Path, file: File, lens: Lens, view: _View, hidden: NDArray[np.bool_] | None) -> _Ids:
    raw = _read_npy(file) if file.name.lower().endswith(".npy") else read_integers(file)
    if raw.dtype == np.uint8:
        raise UserError(f"{file}: is an 8-bit image; depth needs 16 bits or a .npy file: export it again")
    if raw.dtype == np.uint16 and view.capture.depth_unit == 1 / MILLIMETRES:
        millimetres: _Ids = raw.astype(np.uint16, copy=False)
    else:
        scaled = raw.astype(np.float64) * (view.capture.depth_unit * MILLIMETRES)
        usable = np.isfinite(scaled) & (scaled > 0) & (scaled < 65534.5)
        millimetres = np.where(usable, np.round(np.where(usable, scaled, 0)), 0).astype(np.uint16)
    shown = _in_view(millimetres, lens, view, hidden)
    if shown is raw and file.name.lower().endswith(".png"):
        path.write_bytes(file.read_bytes())
    else:
        _save(path, shown)
    return shown


def _read_npy(file: File) -> NDArray[np.floating]:
    """A map [h, w] of numbers.

    Raises:
        UserError: it is none, or is cut off.
    """
    try:
        values = parse_npy(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is no .npy file of depth ({error}): export it again") from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise UserError(f"{file}: has shape {values.shape}, not [height, width]: export it again")
    return values.astype(np.float64)


def _save(path: Path, image: _Ids) -> None:
    Image.fromarray(image.astype(np.uint8 if image.dtype == np.uint8 else np.uint16, copy=False)).save(
        path, compress_level=3
    )


def _write_intrinsics(draft: Path, pinhole: Pinhole, sizes: set[tuple[int, int]], capture: Capture) -> None:
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h}" for w, h in sorted(sizes))
        raise UserError(f"{capture.folder}: its depth images are of sizes {shown}: export them at one size")
    kinds = [("color", pinhole), *(("depth", pinhole.resized(*size)) for size in sizes)]
    for kind, k in kinds:
        matrix = np.eye(4)
        # These files put the centre of the first pixel at 0.
        matrix[:2, :3] = [[k.fx, 0, k.cx - 0.5], [0, k.fy, k.cy - 0.5]]
        np.savetxt(draft / "intrinsic" / f"intrinsic_{kind}.txt", matrix, fmt="%.9f")


def _write_splits(draft: Path, capture: Capture, kept: Sequence[CaptureFrame], numbers: Mapping[str, int]) -> None:
    if capture.split is None:
        return
    test = set(capture.split["test"])
    parts = {"train": [f for f in kept if f.name not in test], "test": [f for f in kept if f.name in test]}
    write_json(
        draft / "splits.json",
        {part: [str(n) for n in sorted(numbers[f.name] for f in frames)] for part, frames in parts.items()},
    )


def _close_masks(folder: Path, masks: CaptureMasks) -> None:
    if masks.manifest is None or not folder.is_dir():
        return
    frames = sorted(p.stem for p in (folder / SEMANTIC).glob("*.png"))
    manifest = masks.manifest.model_copy(update={"frames": frames, "sha256": content_hash(folder, frames)})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")


def _write_classes(draft: Path, capture: Capture, given: Path | None) -> None:
    source = given or capture.classes
    if source is None:
        return
    if isinstance(source, Path):
        data = read_source_json(
            source, 'classes.json with {"classes": [{"id": 1, "name": "wall", "thing": false}, ...]}'
        )
    else:
        data = dict(source)
    try:
        LabelSpace.from_dict(data)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{source}: is no label space ({error}): correct the file") from error
    write_json(draft / "classes.json", data)
