"""``panbench data make-room``: write a built-in room."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

_log = logging.getLogger(__name__)


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("--out", type=Path, required=True, help="root folder that the scene is written to")
    parser.add_argument("--size", default="small", help="tiny, small (60 frames 320x240) or full (200 frames 640x480)")
    parser.add_argument("--seed", type=int, default=0, help="which room (0 to 899)")
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
    from panbench.data.mask_noise import PRESETS
    from panbench.data.rooms import make_room

    folder = make_room(
        options.out,
        size=options.size,
        seed=options.seed,
        masks=options.masks or tuple(PRESETS),
        progress=not options.quiet,
    )
    _log.info("wrote %s", folder)
    return 0
