"""Which importer reads a capture."""

from __future__ import annotations

import math
from pathlib import Path

from panbench.data.capture import Capture
from panbench.data.colmap import find_model, read_colmap
from panbench.data.nerfstudio import is_nerfstudio, read_nerfstudio
from panbench.data.panoptic_lifting import is_panoptic_lifting, read_panoptic_lifting
from panbench.data.rgbd import Convention, is_rgbd, read_rgbd
from panbench.errors import UserError

KINDS = ("nerfstudio", "colmap", "rgbd", "panoptic-lifting")


def detect(source: Path) -> str:
    """The form of a capture.

    Raises:
        UserError: it is none that is known, or is in our own layout already.
    """
    if not source.exists():
        raise UserError(f"{source}: no such folder: give that of the capture")
    # ns-process-data leaves COLMAP's model beside its transforms: the more particular form comes first.
    if is_nerfstudio(source):
        return "nerfstudio"
    if is_panoptic_lifting(source):
        return "panoptic-lifting"
    if find_model(source) is not None:
        return "colmap"
    if all((source / name).is_dir() for name in ("color", "pose", "intrinsic")):
        raise UserError(
            f"{source}: is in the exported ScanNet layout already: give it as data.root, or convert it with --from rgbd"
        )
    if is_rgbd(source):
        return "rgbd"
    raise UserError(
        f"{source}: is no capture that is known: expected transforms.json (nerfstudio), sparse/0/cameras.* (COLMAP), "
        "rgb/ with poses (RGB-D) or m2f_semantics/ (Panoptic Lifting)"
    )


def read_capture(
    source: Path,
    kind: str,
    *,
    images: Path | None = None,
    depth: Path | None = None,
    depth_scale: float | None = None,
    convention: Convention = "opencv",
    world_to_camera: bool = False,
) -> Capture:
    """Read a capture of one of ``KINDS``.

    Args:
        images, depth: folders elsewhere than in the source.
        depth_scale: value of a metre in depth images; None: 1000.
        convention, world_to_camera: of the poses of "rgbd".

    Raises:
        UserError: the source is damaged, or an option does not apply to its form.
    """
    if depth_scale is not None and not (math.isfinite(depth_scale) and depth_scale > 0):
        raise UserError(f"import: --depth-scale is {depth_scale:g}; it must be positive")
    unit = 0.001 if depth_scale is None else 1.0 / depth_scale
    if kind == "rgbd":
        return read_rgbd(
            source, images=images, depth=depth, depth_unit=unit, convention=convention, world_to_camera=world_to_camera
        )
    if convention != "opencv" or world_to_camera:
        raise UserError(f"import: --pose-convention and --world-to-camera are for rgbd; poses of {kind} are known")
    if kind == "colmap":
        return read_colmap(source, images=images, depth=depth, depth_unit=unit)
    if images is not None or depth is not None or depth_scale is not None:
        raise UserError(f"import: --images, --depth and --depth-scale are for colmap and rgbd; {kind} has its own")
    return read_nerfstudio(source) if kind == "nerfstudio" else read_panoptic_lifting(source)
