"""Lists one scene of ScanNet-V2 as it is downloaded.

::

    scans/<scene>/<scene>.sens                                         colour, depth, poses, calibration
                  <scene>.txt                                          the axis alignment, optional
                  <scene>_2d-label-filt.zip  _2d-instance-filt.zip     ground truth, optional, read in place
                  <scene>_vh_clean_2.ply  _vh_clean_2.0.010000.segs.json  <scene>.aggregation.json
                                                                       ground truth where the archives are missing
                  classes.json  splits.json  masks_<name>/             as in the exported layout, all optional
    scannetv2-labels.combined.tsv                                      above or beside scans/

Everything is named by the frame's number in the stream, as in the exported layout.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panbench.data.scannet_files import (
    FrameFiles,
    Pinhole,
    SceneFiles,
    inverse_of_rigid,
    list_side_files,
    make_pinhole,
    rigid,
)
from panbench.data.sens import SensFile
from panbench.errors import UserError

log = logging.getLogger(__name__)


def sens_path(folder: Path) -> Path:
    """Where a scene's stream is."""
    return folder / f"{folder.name}.sens"


def list_raw(folder: Path, masks: Path | None, world: NDArray[np.float64]) -> SceneFiles:
    """The frames of a scene's stream. Nothing is decoded.

    Args:
        folder: the scene's folder.
        masks: folder of a mask set, if any.
        world: rigid transform [4, 4] to put on top of the poses.

    Raises:
        UserError: the stream or an archive is damaged or cut off, a pose is none, or no frame has one.
    """
    path = sens_path(folder)
    sens = SensFile(path)
    sides = list_side_files(folder, masks)
    h = sens.header
    color = _pinhole(path, "colour", h.color_intrinsic, h.color_size)
    frames: list[FrameFiles] = []
    lost: set[int] = set()
    for number, pose in enumerate(sens.poses):
        if not np.isfinite(pose).all():
            lost.add(number)
            continue
        exact = rigid(pose)
        if exact is None:
            raise UserError(
                f"{path}: the pose of frame {number} has no rotation in its 3x3 part: the file is damaged, download it "
                "again"
            )
        payload = sens.color(number)
        frames.append(sides.frame(number, payload.stem, inverse_of_rigid(world @ exact), payload, sens.depth(number)))
    if not frames:
        raise UserError(f"{path}: no pose is finite: the scene's tracking failed, use another scene")
    bare = next((f for f in frames if f.depth is None), None)
    has_depth = any(f.depth for f in frames)
    if has_depth and bare is not None:
        raise UserError(f"{path}: frame {bare.name} has no depth: the file is damaged, download it again")
    if not np.abs(h.color_extrinsic - h.depth_extrinsic).max() <= 0.001:  # one of them may be NaN
        log.warning("%s: its depth camera is not at the colour camera's place; depth is used as if it were", path)
    depth = _pinhole(path, "depth", h.depth_intrinsic, h.depth_size) if has_depth else None
    return SceneFiles(frames, frozenset(lost), color, depth)


def _pinhole(path: Path, kind: str, matrix: NDArray[np.float64], size: tuple[int, int]) -> Pinhole:
    pinhole = make_pinhole(matrix, size)
    if pinhole is None:
        raise UserError(
            f"{path}: its {kind} intrinsics do not fit images of {size[0]}x{size[1]}: the file is damaged, download it "
            "again"
        )
    return pinhole
