"""``panbench data make-room``: write a built-in room."""

from __future__ import annotations

import argparse
import importlib
import logging
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)

# layout: (module, writer). A writer takes the folder of a room in the exported ScanNet layout and the folder to write
# to, and returns the scene's. Imported when it is asked for.
LAYOUTS: dict[str, tuple[str, str]] = {
    "scannet-raw": ("panbench.data.scannet_raw_export", "write_scannet_raw"),
    "scannetpp": ("panbench.data.scannetpp_export", "write_scannetpp"),
    "scannetpp-fisheye": ("panbench.data.scannetpp_export", "write_fisheye"),
    "scannetpp-iphone": ("panbench.data.iphone_export", "write_iphone"),
    "nerfstudio": ("panbench.data.capture_export", "write_nerfstudio"),
    "colmap": ("panbench.data.capture_export", "write_colmap"),
    "rgbd": ("panbench.data.capture_export", "write_rgbd"),
    "panoptic-lifting": ("panbench.data.capture_export", "write_panoptic_lifting"),
}


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("--out", type=Path, required=True, help="root folder that the scene is written to")
    parser.add_argument("--size", default="small", help="tiny, small (60 frames 320x240) or full (200 frames 640x480)")
    parser.add_argument("--seed", type=int, default=0, help="which room (0 to 899)")
    parser.add_argument(
        "--layout",
        choices=["scannet", *LAYOUTS],
        default="scannet",
        help="files to write: scannet (exported frames, the default) or those of another data set or kind of capture; "
        "scannet-raw is ScanNet-V2 as it is downloaded",
    )
    parser.add_argument(
        "--masks",
        nargs="+",
        default=None,
        metavar="PRESET",
        help="pseudo-mask presets; default: clean light medium heavy",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Make the room; returns the exit status.

    Raises:
        UserError: with cause and remedy, if the room cannot be made.
    """
    if options.layout == "scannet":
        folder = _make(options, options.out)
    else:
        module, writer = LAYOUTS[options.layout]
        with tempfile.TemporaryDirectory(prefix="panbench-room-") as place:
            folder = getattr(importlib.import_module(module), writer)(_make(options, Path(place)), options.out)
    _log.info("wrote %s", folder)
    return 0


def _make(options: argparse.Namespace, out: Path) -> Path:
    from panbench.data.mask_noise import PRESETS
    from panbench.data.rooms import make_room

    return make_room(
        out,
        size=options.size,
        seed=options.seed,
        masks=options.masks or tuple(PRESETS),
        progress=not options.quiet,
    )
