"""The verb ``panbench data``: make and inspect data. So far: ``panbench data make-room``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

_log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run ``panbench data ...``; returns the exit status.

    Raises:
        UserError: with cause and remedy, if the room cannot be made.
    """
    parser = argparse.ArgumentParser(prog="panbench data", description="Make data.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    room = verbs.add_parser("make-room", help="make a procedural furnished room in ScanNet-V2's layout")
    room.add_argument("--out", type=Path, required=True, help="root folder that the scene is written to")
    room.add_argument("--size", default="small", help="tiny, small (60 frames 320x240) or full (200 frames 640x480)")
    room.add_argument("--seed", type=int, default=0, help="which room (0 to 899)")
    room.add_argument(
        "--masks",
        nargs="+",
        default=None,
        metavar="PRESET",
        help="pseudo-mask presets; default: clean light medium heavy",
    )
    room.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(list(argv))

    from panbench.data.mask_noise import PRESETS
    from panbench.data.rooms import make_room

    folder = make_room(
        args.out, size=args.size, seed=args.seed, masks=args.masks or tuple(PRESETS), progress=not args.quiet
    )
    _log.info("wrote %s", folder)
    return 0
