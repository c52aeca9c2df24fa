"""Writes a scene of the exported ScanNet layout as ScanNet-V2 is downloaded: stream, archives, annotated mesh."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panbench.data.draft import appearing
from panbench.data.images import image_size, read_integers
from panbench.data.room_export import TSV_NAME, write_label_table
from panbench.data.scannet_files import list_numbered
from panbench.data.sens import SensFrame, SensHeader, write_sens
from panbench.errors import UserError

_MESH_FILES = (
    "_vh_clean_2.ply", "_vh_clean_2.labels.ply", "_vh_clean_2.0.010000.segs.json", ".aggregation.json", ".txt",
)  # fmt: skip
# What panbench keeps beside the files of the data set.
_SIDE_FILES = ("classes.json", "splits.json", "synthetic.json", "masks_scores.json", "stats.json")
_MICROSECONDS = 33_333  # from frame to frame


def write_scannet_raw(room: Path, out: Path) -> Path:
    """Write the room as ``out/scans/<scene>``, and the label table as ``out/scannetv2-labels.combined.tsv``.

    Colour images go into the stream as they are, depth is packed by zlib. Frames that the room calls lost keep their
    pose of -inf.

    Args:
        room: folder of a scene in the exported ScanNet layout, with depth, mesh and aggregation.
        out: the folder of the release; made if missing.

    Returns:
        The scene's folder. It appears in one step when it is complete; a scene of that name that was there before is
        replaced if it is a room, too.

    Raises:
        UserError: the room is damaged, a scene of that name is there that is no room, or the folder cannot be written.
    """
    target = out / "scans" / room.name
    with appearing(target, "synthetic.json") as draft:
        _provide_label_table(room, out)
        _write_stream(room, draft / f"{room.name}.sens")
        for kind in ("label", "instance"):
            _write_archive(room / f"{kind}-filt", draft / f"{room.name}_2d-{kind}-filt.zip")
        for name in (*(room.name + end for end in _MESH_FILES), *_SIDE_FILES):
            if (room / name).is_file():
                shutil.copyfile(room / name, draft / name)
        for folder in (*sorted(room.glob("masks_*/")), room / "gt"):
            if folder.is_dir():
                shutil.copytree(folder, draft / folder.name)
    return target


def _provide_label_table(room: Path, out: Path) -> None:
    if (out / TSV_NAME).exists():
        return
    draft = out / f".{TSV_NAME}.{room.name}"
    given = room.parent / TSV_NAME
    if given.is_file():
        shutil.copyfile(given, draft)
    else:
        write_label_table(draft)
    draft.replace(out / TSV_NAME)


def _write_stream(room: Path, path: Path) -> None:
    color, depth = list_numbered(room / "color", (".jpg",)), list_numbered(room / "depth", (".png",))
    if list(color) != list(range(len(color))) or not color or list(depth) != list(color):
        raise UserError(f"{room}: its colour and depth images are not numbered 0, 1, 2, ...: make the room again")
    calibration = room / "intrinsic"
    header = SensHeader(
        color_intrinsic=_matrix(calibration / "intrinsic_color.txt"),
        color_extrinsic=_matrix(calibration / "extrinsic_color.txt"),
        depth_intrinsic=_matrix(calibration / "intrinsic_depth.txt"),
        depth_extrinsic=_matrix(calibration / "extrinsic_depth.txt"),
        color_size=image_size(color[0]),
        depth_size=image_size(depth[0]),
        sensor="panbench room",
    )

    def frames() -> Iterator[SensFrame]:
        for number in color:
            pose = _matrix(room / "pose" / f"{number}.txt")
            stored = read_integers(depth[number]).astype(np.uint16)
            yield SensFrame(color[number].read_bytes(), stored, pose, _MICROSECONDS * number)

    write_sens(path, header, frames())


def _matrix(path: Path) -> NDArray[np.float64]:
    try:
        return np.array(path.read_text().split(), dtype=np.float64).reshape(4, 4)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{path}: is no file of a 4x4 matrix ({error}): make the room again") from error


def _write_archive(folder: Path, path: Path) -> None:
    """The images of a folder, in numeric order, without the time of day: the same images give the same archive."""
    images = list_numbered(folder, (".png",))
    if not images:
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in images.values():
            info = zipfile.ZipInfo(f"{folder.name}/{image.name}")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, image.read_bytes())
