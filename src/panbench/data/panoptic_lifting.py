"""Reads the scene folders of Panoptic Lifting (and of the methods that took over its preprocessing).

::

    color/N.jpg  depth/N.png (u16 mm)  pose/N.txt (camera to world)  intrinsic/intrinsic_color.txt
    rs_semantics/N.png  rs_instance/N.png         ground truth: class and object; 0 = void, stuff
    m2f_semantics/N.png  m2f_instance/N.png       pseudo-masks of Mask2Former; instance ids run on over the frames
    m2f_probabilities/N.npz                       probability, confidence; optional: the score
    m2f_invalid/N.png                             255 where there is no mask; optional
    invalid/N.jpg                                 not 0 where pixels must not count; optional
    splits.json                                   {"train": [...], "test": [...]}

``segmentation_data.pkl`` is never opened: unpickling runs what is in it. It has the number of classes, which of them
are things, and the class of each instance; the classes are those of ``classes.json`` in the folder, else the 21 of its
ScanNet scenes, and an instance's class is that of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from panbench.data.capture import Capture, CaptureFrame, CaptureMasks, beside, read_source_json
from panbench.data.images import read_color, read_integers, resize_nearest
from panbench.data.npy import parse_npy
from panbench.data.rgbd import read_rgbd
from panbench.data.zip_file import list_zip
from panbench.errors import UserError
from panbench.masks.mask_set import FrameMasks, MaskManifest
from panbench.scene import LabelSpace

MASKS = "m2f"
CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "counter", "shelves", "curtain",
    "ceiling", "refrigerator", "television", "person", "toilet", "sink", "lamp", "bag", "other",
)  # fmt: skip
"""Names of the classes 1 ... 21 of its ScanNet scenes."""
THINGS = frozenset({"bed", "chair", "sofa", "refrigerator", "television", "person", "toilet", "sink", "bag"})
_LARGEST = 1 << 28  # bytes that an array of a .npz may take


def is_panoptic_lifting(source: Path) -> bool:
    """Whether it has its labels."""
    return (source / "color").is_dir() and any((source / n).is_dir() for n in ("rs_semantics", "m2f_semantics"))


def read_panoptic_lifting(source: Path) -> Capture:
    """Read a scene folder; the masks become the set ``m2f``.

    Raises:
        UserError: something is missing, damaged or contradictory; names the file and the remedy.
    """
    capture = beside(read_rgbd(source))
    frames = [_labelled(frame, source) for frame in capture.frames]
    classes = (
        read_source_json(capture.classes, "classes.json") if isinstance(capture.classes, Path) else default_classes()
    )
    masks = dict(capture.masks)
    if (source / "m2f_semantics").is_dir():
        try:
            labels = LabelSpace.from_dict(classes)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{source / 'classes.json'}: is no label space ({error}): correct the file") from error
        manifest = MaskManifest(
            generator="Mask2Former",
            settings={"layout": "panoptic-lifting", "test_time_augmentation": True},
            synthetic=(source / "synthetic.json").is_file(),
            classes=labels.to_dict(),
        )
        masks[MASKS] = CaptureMasks(mask_reader(source, labels), manifest)
    return replace(capture, kind="panoptic-lifting", frames=frames, masks=masks, classes=capture.classes or classes)


def default_classes() -> dict[str, Any]:
    """The label space of its ScanNet scenes, as ``classes.json`` has it."""
    rows = [{"id": k, "name": name, "thing": name in THINGS} for k, name in enumerate(CLASSES, start=1)]
    # The class images hold these very ids.
    return {"classes": rows, "gt_map": {str(k): k for k in range(1, len(CLASSES) + 1)}}


def _labelled(frame: CaptureFrame, source: Path) -> CaptureFrame:
    stem = frame.color.stem
    semantic, instance = source / "rs_semantics" / f"{stem}.png", source / "rs_instance" / f"{stem}.png"
    if semantic.is_file() != instance.is_file():
        raise UserError(f"{source}: frame {stem} has only one of rs_semantics and rs_instance: make them again")
    if semantic.is_file():
        frame = replace(frame, label=semantic, instance=instance)
    invalid = source / "invalid" / f"{stem}.jpg"
    if not invalid.is_file():
        return frame
    # A JPEG's black is not quite 0.
    return replace(frame, hidden=lambda: read_color(invalid).max(axis=2) > 127)


def mask_reader(source: Path, labels: LabelSpace) -> Callable[[str], FrameMasks | None]:
    """What reads the masks of a frame by its name or stem, in the folder's own classes; None where it has none.

    It raises UserError: an image is missing, damaged, or holds a class that ``labels`` does not have.
    """
    is_thing = labels.is_thing()

    def read(name: str) -> FrameMasks | None:
        stem = Path(name).stem
        path = source / "m2f_semantics" / f"{stem}.png"
        if not path.is_file():
            return None
        semantic = read_integers(path)
        instance = read_integers(source / "m2f_instance" / f"{stem}.png")
        if instance.shape != semantic.shape:
            raise UserError(f"{path}: differs in size from the instance image of its frame: make the masks again")
        invalid = source / "m2f_invalid" / f"{stem}.png"
        if invalid.is_file():
            nothing = resize_nearest(read_integers(invalid).astype(bool), semantic.shape[1], semantic.shape[0])
            semantic = np.where(nothing, 0, semantic)
        strange = int(semantic.max(initial=0))
        if strange >= labels.size:
            raise UserError(
                f"{path}: holds class {strange}, the label space has {labels.size - 1}: give its classes.json"
            )
        # The ids of a frame mean nothing in another, so that those of each may begin at 1.
        instance = np.unique(np.where(is_thing[semantic], instance, 0), return_inverse=True)
        ids = instance[1].reshape(semantic.shape) + (0 if instance[0][0] == 0 else 1)
        return FrameMasks(semantic.astype(np.uint16), ids.astype(np.uint16), _score(source, stem, semantic.shape))

    return read


def _score(source: Path, stem: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """255 × confidence [H, W]; it may be stored smaller."""
    path = source / "m2f_probabilities" / f"{stem}.npz"
    if not path.is_file():
        return None
    confidence = np.nan_to_num(_read_npz(path, "confidence").astype(np.float32)).clip(0, 1)
    if confidence.ndim != 2:
        raise UserError(f"{path}: confidence has shape {confidence.shape}, not [height, width]: make the masks again")
    resized = Image.fromarray(confidence).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.round(np.array(resized) * 255).astype(np.uint8)


def _read_npz(path: Path, name: str) -> NDArray[Any]:
    """One array of a .npz file; its size is looked at before it is unpacked, and nothing is unpickled."""
    try:
        members = {member.name: member for member in list_zip(path, (".npy",), _LARGEST)}
        return parse_npy(members[f"{name}.npy"].read_bytes())
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: has no array {name} that can be read ({error}): make the masks again") from error
