"""``panbench masks associate``: give the instances of a mask set ids that are the same object in all frames."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

_log = logging.getLogger(__name__)


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("scene", type=Path, help="the scene's folder; it needs depth and poses")
    parser.add_argument("--masks", required=True, metavar="NAME", help="mask set to start from: NAME or a path")
    parser.add_argument("--out", required=True, metavar="NAME", help="mask set to make: masks_NAME in the scene")
    parser.add_argument("--voxel", type=float, default=0.05, help="metres; larger with uncertain poses (default: 0.05)")
    parser.add_argument("--min-frames", type=int, default=3, help="drop objects of fewer frames (default: 3)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Associate the masks; returns the exit status.

    Raises:
        UserError: the scene or the masks cannot be read or written, or the scene has no depth.
    """
    from panbench.masks.associate import AssociationSettings, associate_set

    manifest = associate_set(
        options.scene.expanduser(),
        options.masks,
        options.out,
        AssociationSettings(voxel=options.voxel, min_frames=options.min_frames),
        progress=not options.quiet,
    )
    _log.info("wrote %d frames, %s objects: masks_%s", len(manifest.frames), manifest.settings["objects"], options.out)
    return 0
