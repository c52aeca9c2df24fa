"""``panbench data import``: convert a capture into the exported ScanNet layout."""

from __future__ import annotations

import argparse
from pathlib import Path

_KINDS = ("nerfstudio", "colmap", "rgbd", "panoptic-lifting")


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("source", type=Path, help="folder of the capture (or a transforms.json)")
    parser.add_argument("--out", type=Path, required=True, help="root folder that the scene is written to")
    parser.add_argument(
        "--from", dest="kind", choices=_KINDS, default=None, help="form of the source; default: found out"
    )
    parser.add_argument("--name", default=None, help="name of the scene; default: that of the source's folder")
    parser.add_argument("--classes", type=Path, default=None, help="classes.json of the scene; default: the source's")
    geometry = parser.add_argument_group("lengths and axes")
    geometry.add_argument(
        "--scale", type=float, default=1.0, help="metres of one unit of the source's world (COLMAP's has no scale)"
    )
    geometry.add_argument(
        "--depth-scale", type=float, default=None,
        help="value of a metre in depth images of colmap and rgbd; default: 1000 (millimetres); TUM: 5000",
    )  # fmt: skip
    geometry.add_argument(
        "--pose-convention", choices=("opencv", "opengl"), default="opencv",
        help="camera axes of rgbd poses: x right, y down, z forward; or y up, z backward",
    )  # fmt: skip
    geometry.add_argument("--world-to-camera", action="store_true", help="rgbd poses map the world to the camera")
    places = parser.add_argument_group("folders of colmap and rgbd")
    places.add_argument("--images", type=Path, default=None, help="colour images, if elsewhere")
    places.add_argument("--depth", type=Path, default=None, help="depth images, if elsewhere")
    frames = parser.add_argument_group("which frames (where the source has a split: of the training frames)")
    frames.add_argument("--stride", type=int, default=1, help="keep every n-th")
    frames.add_argument("--count", type=int, default=None, help="then keep so many")
    frames.add_argument(
        "--select", choices=("even", "sharpest", "coverage"), default="even",
        help="which: evenly along the path, the sharpest of each part of it, or far apart in pose",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Import; returns the exit status.

    Raises:
        UserError: with cause and remedy, if the source cannot be read or the scene not be written.
    """
    from panbench.data.capture import ImportOptions, write_capture
    from panbench.data.importers import detect, read_capture

    kind = options.kind or detect(options.source)
    capture = read_capture(
        options.source,
        kind,
        images=options.images,
        depth=options.depth,
        depth_scale=options.depth_scale,
        convention=options.pose_convention,
        world_to_camera=options.world_to_camera,
    )
    settings = {
        "depth_scale": options.depth_scale,
        "pose_convention": options.pose_convention,
        "world_to_camera": options.world_to_camera,
    }
    write_capture(
        capture,
        options.out,
        options.name,
        ImportOptions(
            scale=options.scale,
            stride=options.stride,
            count=options.count,
            select=options.select,
            classes=options.classes,
            settings=settings,
        ),
        progress=not options.quiet,
    )
    return 0
