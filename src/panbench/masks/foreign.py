"""Masks that other programs left: PanopticRecon's script, Panoptic Lifting, COCO's panoptic format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from panbench.data.capture import read_source_json
from panbench.data.images import read_packed_ids
from panbench.data.panoptic_lifting import default_classes, mask_reader
from panbench.errors import UserError
from panbench.masks.mask_set import INSTANCE, MANIFEST, SCORE, SEMANTIC, FrameMasks, MaskSet, read_manifest
from panbench.scene import LabelSpace

_LARGEST_JSON = 1 << 28  # bytes; COCO's own annotation of 5,000 pictures has 15 million
_SAFE_BYTE = 127  # PanopticRecon's script casts ids to int8


@dataclass(frozen=True, eq=False)
class ForeignMasks:
    """Masks in the classes of the program that made them.

    Attributes:
        form: a key of :data:`FORMS`.
        generator: the program, as far as it is known.
        names: of the classes by id; {}: they have only ids.
        stems: of the frames.
        read: the masks of a frame by its stem; raises UserError where they are damaged.
        files: what they are read from.
        settings: what else is known of their making.
        synthetic, associated: as in :class:`panbench.masks.mask_set.MaskManifest`.
    """

    form: str
    generator: str
    names: Mapping[int, str]
    stems: tuple[str, ...]
    read: Callable[[str], FrameMasks]
    files: Callable[[str], list[Path]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    synthetic: bool = False
    associated: bool = False


# -------------------------------------------------------------------------------------------- PanopticRecon's script


def read_panopticrecon(folder: Path) -> ForeignMasks:
    """The output of PanopticRecon's script: ``semantic_image``, ``instance_image``; ``score`` where there is one.

    Raises:
        UserError: there are no such images, or they are JPEG, which is lossy.
    """
    semantic = folder / SEMANTIC
    stems = _png_stems(semantic)
    lossy = sorted(p.name for p in semantic.glob("*") if p.suffix.lower() in (".jpg", ".jpeg") and p.stem not in stems)
    if lossy:
        raise UserError(
            f"{semantic / lossy[0]}: is a JPEG ({len(lossy)} such files), which garbles class ids: run the script on "
            "PNG images, or have it write PNG"
        )
    if not stems:
        raise UserError(f"{semantic}: holds no PNG file: give the folder with {SEMANTIC}/ and {INSTANCE}/")
    manifest = read_manifest(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    masks, listed = MaskSet(folder, manifest), _listed_instances(folder / "thing_semantic_label.json")

    def read(stem: str) -> FrameMasks:
        made = masks.read(stem)
        largest = int(made.instance.max(initial=0))
        if made.instance.dtype == np.uint8 and max(largest, listed.get(stem, 0)) > _SAFE_BYTE:
            raise UserError(
                f"{folder / INSTANCE / stem}.png: has instances beyond {_SAFE_BYTE} in 8 bits, where the script's ids "
                "wrap around: make the masks again with 16-bit instance images"
            )
        return made

    return ForeignMasks(
        form="panopticrecon",
        generator="PanopticRecon's Grounded-SAM script" if manifest is None else manifest.generator,
        names={},
        stems=tuple(stems),
        read=read,
        files=lambda stem: [folder / kind / f"{stem}.png" for kind in (SEMANTIC, INSTANCE, SCORE)],
        settings={} if manifest is None else manifest.settings,
        synthetic=manifest is not None and manifest.synthetic,
        associated=manifest is not None and manifest.associated,
    )


def _listed_instances(path: Path) -> dict[str, int]:
    """How many instances the script lists of each frame."""
    if not path.is_file():
        return {}
    try:
        data = TypeAdapter(dict[str, list[int | str]]).validate_json(_limited(path))
    except ValidationError as error:
        raise UserError(f"{path}: is damaged ({_first(error)}): make the masks again, or remove it") from error
    return {Path(name).stem: len(classes) for name, classes in data.items()}


# --------------------------------------------------------------------------------------------------- Panoptic Lifting


def read_panoptic_lifting(folder: Path) -> ForeignMasks:
    """Mask2Former's masks in a scene folder of Panoptic Lifting: ``m2f_semantics``, ``m2f_instance``, and the
    confidence of ``m2f_probabilities``. Classes are those of its ``classes.json``, else the 21 of its ScanNet scenes.

    Raises:
        UserError: there are no such images, or the classes are damaged.
    """
    stems = _png_stems(folder / "m2f_semantics")
    if not stems:
        raise UserError(f"{folder / 'm2f_semantics'}: holds no PNG file: give the folder with m2f_semantics/")
    own = folder / "classes.json"
    try:
        labels = LabelSpace.from_dict(read_source_json(own, "classes.json") if own.is_file() else default_classes())
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{own}: is no label space ({error}): correct the file") from error
    reader = mask_reader(folder, labels)

    def read(stem: str) -> FrameMasks:
        made = reader(stem)
        assert made is not None, "only listed frames are read"
        return made

    kinds = (("m2f_semantics", "png"), ("m2f_instance", "png"), ("m2f_invalid", "png"), ("m2f_probabilities", "npz"))
    return ForeignMasks(
        form="panoptic-lifting",
        generator="Mask2Former (Panoptic Lifting)",
        names={c.id: c.name for c in labels.classes},
        stems=tuple(stems),
        read=read,
        files=lambda stem: [folder / kind / f"{stem}.{end}" for kind, end in kinds],
        synthetic=(folder / "synthetic.json").is_file(),
    )


# --------------------------------------------------------------------------------------------------------------- COCO


_Id = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


class _Segment(BaseModel):
    id: Annotated[int, Field(ge=1, lt=1 << 24)]
    category_id: _Id
    iscrowd: Annotated[int, Field(ge=0, le=1)] = 0
    score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None


class _Annotation(BaseModel):
    file_name: Annotated[str, Field(min_length=1, max_length=255)]
    image_id: int | str | None = None
    segments_info: list[_Segment]


class _Image(BaseModel):
    id: int | str
    file_name: Annotated[str, Field(min_length=1, max_length=1024)]


class _Category(BaseModel):
    id: _Id
    name: Annotated[str, Field(min_length=1, max_length=200)]


class _Coco(BaseModel):
    images: list[_Image] = Field(default_factory=list)
    annotations: list[_Annotation]
    categories: list[_Category]


def read_coco(source: Path) -> ForeignMasks:
    """COCO's panoptic format: a JSON file, and PNG images beside it or in the folder of its name.

    A segment's id is R + 256 G + 65536 B. A crowd is labelled, but is no instance. ``score`` of segments_info is used
    where it is there.

    Args:
        source: the JSON file, or the folder that it is in.

    Raises:
        UserError: there is no such file, or it is damaged or contradictory.
    """
    path = _only_json(source) if source.is_dir() else source
    try:
        data = _Coco.model_validate_json(_limited(path))
    except ValidationError as error:
        raise UserError(
            f"{path}: is no panoptic annotation in COCO's format ({_first(error)}): give one with annotations, "
            "categories and PNG images"
        ) from error
    names = {c.id: c.name for c in data.categories}
    if len(names) < len(data.categories):
        raise UserError(f"{path}: has two categories of one id: correct it")
    image_names = {str(image.id): image.file_name for image in data.images}
    by_stem: dict[str, _Annotation] = {}
    for annotation in data.annotations:
        if Path(annotation.file_name).name != annotation.file_name or not annotation.file_name.isprintable():
            raise UserError(f"{path}: names {_printable(annotation.file_name)!r}, which is no file name: correct it")
        unknown = [s.category_id for s in annotation.segments_info if s.category_id not in names]
        if unknown:
            raise UserError(
                f"{path}: {annotation.file_name} has category {unknown[0]}, which is not listed: correct it"
            )
        image = image_names.get(str(annotation.image_id), annotation.file_name)
        stem = _printable(Path(image).stem)
        if stem in by_stem:
            raise UserError(f"{path}: annotates {stem} twice: correct it")
        by_stem[stem] = annotation
    if not by_stem:
        raise UserError(f"{path}: has no annotations: give the file of the masks")
    folder = _coco_images(path, next(iter(by_stem.values())).file_name)
    number = {category: k for k, category in enumerate(names, start=1)}

    def read(stem: str) -> FrameMasks:
        annotation = by_stem[stem]
        return _read_coco_frame(folder / annotation.file_name, annotation, number)

    return ForeignMasks(
        form="coco",
        generator="",
        names={number[category]: _printable(name) for category, name in names.items()},
        stems=tuple(by_stem),
        read=read,
        files=lambda stem: [path, folder / by_stem[stem].file_name],
    )


def _read_coco_frame(path: Path, annotation: _Annotation, number: Mapping[int, int]) -> FrameMasks:
    packed = read_packed_ids(path)
    ids, place = np.unique(packed, return_inverse=True)
    place = place.reshape(packed.shape)
    segments = {s.id: s for s in annotation.segments_info}
    semantic, instance, score = (np.zeros(len(ids), dtype=np.int64) for _ in range(3))
    for k, segment_id in enumerate(ids.tolist()):
        if segment_id == 0:
            continue
        segment = segments.get(segment_id)
        if segment is None:
            raise UserError(
                f"{path}: holds segment {segment_id}, which its annotation does not list: export both again"
            )
        semantic[k] = number[segment.category_id]
        instance[k] = 0 if segment.iscrowd else k + 1
        score[k] = 0 if segment.score is None else round(255 * segment.score)
    if len(ids) > 65535:
        raise UserError(f"{path}: holds {len(ids)} segments; at most 65534 are read: it is no image of ids")
    scored = any(s.score is not None for s in annotation.segments_info)
    return FrameMasks(semantic[place], instance[place], score[place].astype(np.uint8) if scored else None)


def _only_json(folder: Path) -> Path:
    found = sorted(p for p in folder.glob("*.json") if p.is_file())
    if len(found) != 1:
        raise UserError(f"{folder}: holds {len(found)} JSON files instead of one: give the path of the annotation's")
    return found[0]


def _coco_images(path: Path, first: str) -> Path:
    places = (path.with_suffix(""), path.parent, path.parent / "panoptic")
    for folder in places:
        if (folder / first).is_file():
            return folder
    raise UserError(f"{path}: its image {first} is neither in {places[0]} nor beside it: put the PNG images there")


# -------------------------------------------------------------------------------------------------------------- common


FORMS: dict[str, Callable[[Path], ForeignMasks]] = {
    "panopticrecon": read_panopticrecon,
    "panoptic-lifting": read_panoptic_lifting,
    "coco": read_coco,
}


def read_class_map(path: Path) -> dict[str, str | None]:
    """``{"their class, by name or id": "class of the scene", or null for void}``.

    Raises:
        UserError: it is missing or not of this form.
    """
    try:
        return TypeAdapter(dict[str, str | None]).validate_json(_limited(path))
    except ValidationError as error:
        raise UserError(
            f'{path}: is not {{"<their class>": "<class of the scene>", or null for void}} ({_first(error)}): '
            "correct it"
        ) from error


def _png_stems(folder: Path) -> list[str]:
    return sorted(p.stem for p in folder.glob("*") if p.suffix == ".png" and not p.name.startswith("."))


def _limited(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{path}: is larger than {_LARGEST_JSON >> 20} MiB: give a smaller file, of one scene")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): give the right file") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return _printable(" ".join(f"{place} {first['msg']}".split()))[:200]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
