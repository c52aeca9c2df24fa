"""Pictures of a run as files of their own: each kind of some test views, and crops of the instances that went wrong.

::

    views/index.json          {"size": [h, w], "views": [{"name": "120", "kinds": {"photo": "120.photo.jpg", ...}}]}
    instances/index.json      {"instances": [{"true_id": 17, ..., "crops": {"photo": "17.photo.jpg", ...}}]}

Photographs are JPEG, labels PNG of few colours. An index is written after the files that it names.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from panbench.protocol.results import InstanceResult, SceneResult
from panbench.report.diagnosis import worst_instances
from panbench.report.pictures import (
    ObjectColors,
    Picture,
    SheetRow,
    class_picture,
    depth_colors,
    error_map,
    normal_colors,
    object_picture,
)
from panbench.scene import LabelSpace
from panbench.training.files import write_text

INDEX = "index.json"
LONGEST = 640
"""Pixels of the longer side of a view; larger views are made smaller."""
WORST = 24
"""Most instances that are shown."""

_PHOTOGRAPHS = ("photo", "render", "depth", "normal")
_QUALITY = 85
_CROP = 240  # pixels of the longer side of a crop, about
_AROUND = 0.4  # context on each side of an instance, in its longer sides
_LEAST_AROUND = 12  # pixels


def write_views(
    folder: Path, rows: Sequence[SheetRow], labels: LabelSpace, objects: ObjectColors, span: tuple[float, float]
) -> Path:
    """Write the pictures of some views, in place of older ones, and return their index.

    Kinds are ``photo``, ``render``, ``depth``, ``normal``, ``semantic``, ``instance``, ``truth_semantic``,
    ``truth_instance`` and ``error``; a view has those that are known of it.

    Args:
        folder: to write to.
        rows: the views, all of one size.
        labels, objects: for colours.
        span: depth of the first and the last colour, metres.

    Raises:
        OSError: if a file cannot be written.
    """
    _make_empty(folder)
    views: list[dict[str, object]] = []
    height, width = rows[0].semantic.shape
    shrink = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    for row in rows:
        pictures = _kinds(row, labels, objects, span)
        kinds = {k: _write(folder, row.name, k, _resized(p, size, k in _PHOTOGRAPHS)) for k, p in pictures.items()}
        views.append({"name": row.name, "kinds": kinds})
    return _write_index(folder, {"size": size, "views": views})


def write_instances(
    folder: Path,
    result: SceneResult,
    view: Callable[[str], SheetRow],
    labels: LabelSpace,
    objects: ObjectColors,
) -> Path:
    """Write crops of the true instances that were not found, in place of older ones, and return their index.

    The worst come first: those with the most pixels outside of the prediction that fits best. Each is shown, with its
    true outline, in the frame where most of it is lost.

    Args:
        folder: to write to.
        result: names the instances.
        view: gives a frame by name.
        labels, objects: for colours.

    Raises:
        OSError: if a file cannot be written.
    """
    _make_empty(folder)
    shown = worst_instances(result, WORST)
    frames = _frames_to_show(shown, result)
    entries: dict[int, Mapping[str, object]] = {}
    for name in dict.fromkeys(frames.values()):
        row = view(name)
        assert row.true_semantic is not None
        assert row.true_instance is not None
        truth, error = (row.true_semantic, row.true_instance), error_map(row, labels, objects.matched)
        pictures = {
            "photo": row.photo,
            "truth": object_picture(*truth, labels, objects.true),
            "instance": object_picture(row.semantic, row.instance, labels, objects.predicted),
            "error": error,
        }
        for instance in (i for i in shown if frames[i.true_id] == name):
            crops = _crops(pictures, row.true_instance == instance.true_id)
            files = {kind: _write(folder, str(instance.true_id), kind, crop) for kind, crop in crops.items()}
            facts = instance.model_dump(include={"true_id", "class_name", "verdict", "coverage", "pixels"})
            entries[instance.true_id] = facts | {"frame": name, "crops": files}
    return _write_index(folder, {"instances": [entries[i.true_id] for i in shown]})


def _kinds(row: SheetRow, labels: LabelSpace, objects: ObjectColors, span: tuple[float, float]) -> dict[str, Picture]:
    out = {"photo": row.photo}
    if row.render is not None:
        out["render"] = row.render
    if row.depth is not None:
        out["depth"] = depth_colors(row.depth, *span)
    if row.normal is not None:
        out["normal"] = normal_colors(row.normal)
    out["semantic"] = class_picture(row.semantic, labels)
    out["instance"] = object_picture(row.semantic, row.instance, labels, objects.predicted)
    if row.true_semantic is not None and row.true_instance is not None:
        out["truth_semantic"] = class_picture(row.true_semantic, labels)
        out["truth_instance"] = object_picture(row.true_semantic, row.true_instance, labels, objects.true)
        out["error"] = error_map(row, labels, objects.matched)
    return out


def _frames_to_show(instances: Sequence[InstanceResult], result: SceneResult) -> dict[int, str]:
    """For each instance the frame in which most of its pixels are not of its best prediction, else most pixels."""
    counts = result.counts.unpack()
    out: dict[int, str] = {}
    for instance in instances:
        here = counts.true_id == instance.true_id
        good = (counts.pred_id == instance.best_id) & (counts.pred_class == instance.true_class)
        size = np.bincount(counts.frame[here], counts.pixels[here], len(result.frames))
        lost = np.bincount(counts.frame[here], (counts.pixels * ~good)[here], len(result.frames))
        out[instance.true_id] = result.frames[int(np.lexsort((-size, -lost))[0])]
    return out


def _crops(pictures: Mapping[str, Picture], mask: NDArray[np.bool_]) -> dict[str, Picture]:
    """The surroundings of a mask in each picture, near the size of a crop, with the outline of the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    margin = max(_LEAST_AROUND, round(_AROUND * longer))
    box = tuple(
        slice(max(0, int(found[0]) - margin), min(length, int(found[-1]) + 1 + margin))
        for found, length in zip((rows, columns), mask.shape, strict=True)
    )
    height, width = mask[box].shape
    longest = max(height, width)
    scale = _CROP // longest if longest <= _CROP else _CROP / longest
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    inside = _resized(mask[box].astype(np.uint8), size, smooth=False) > 0
    near, around = (np.asarray(binary_dilation(inside, iterations=n), dtype=bool) for n in (1, 2))
    line, rim = near & ~inside, around & ~near
    out: dict[str, Picture] = {}
    for kind, picture in pictures.items():
        crop = _resized(picture[box], size, kind in _PHOTOGRAPHS).copy()
        crop[line] = 255
        crop[rim] = 0
        out[kind] = crop
    return out


def _resized(picture: Picture, size: tuple[int, int], smooth: bool) -> Picture:
    """At (rows, columns); labels are not mixed."""
    if picture.shape[:2] == size:
        return picture
    rule = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[1], size[0]), rule))


def _write(folder: Path, name: str, kind: str, picture: Picture) -> str:
    """Write ``NAME.KIND.jpg`` or ``.png`` and return the file's name."""
    buffer = io.BytesIO()
    if kind in _PHOTOGRAPHS:
        file = f"{name}.{kind}.jpg"
        Image.fromarray(picture).save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    else:
        file = f"{name}.{kind}.png"
        _with_palette(picture).save(buffer, format="PNG", optimize=True)
    (folder / file).write_bytes(buffer.getvalue())
    return file


def _with_palette(picture: Picture) -> Image.Image:
    """The same colours by a table, if a table of 256 can hold them."""
    height, width = picture.shape[:2]
    packed = np.zeros((height, width, 4), dtype=np.uint8)
    packed[..., :3] = picture
    colors, index = np.unique(packed.view(np.uint32), return_inverse=True)
    if len(colors) > 256:
        return Image.fromarray(picture)
    image = Image.frombytes("P", (width, height), index.astype(np.uint8).tobytes())
    image.putpalette(colors.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    return image


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_index(folder: Path, content: Mapping[str, object]) -> Path:
    path = folder / INDEX
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path
