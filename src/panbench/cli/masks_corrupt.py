"""``panbench masks corrupt``: a mask set made from a scene's true labels by a noise model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

_log = logging.getLogger(__name__)
_LEVELS = ("clean", "light", "medium", "heavy")


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("scene", type=Path, help="the scene's folder, with ground truth")
    parser.add_argument("--out", required=True, metavar="NAME", help="mask set to make: masks_NAME in the scene")
    rates = parser.add_mutually_exclusive_group(required=True)
    rates.add_argument("--level", choices=_LEVELS, help="error rates that come with panbench")
    rates.add_argument("--noise", type=Path, metavar="FILE", help="error rates of a file, as fit-noise writes it")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Make the masks, or those that are missing; returns the exit status.

    Raises:
        UserError: the scene has no truth, the file is no noise file, or the masks cannot be written.
    """
    from panbench.data.detect import find_scene
    from panbench.data.mask_noise import PRESETS
    from panbench.masks.corrupt import corrupt_scene, read_noise

    noise = PRESETS[options.level] if options.level else read_noise(options.noise.expanduser())
    manifest = corrupt_scene(
        find_scene(options.scene),
        options.out,
        noise,
        level=options.level or options.noise.name,
        seed=options.seed,
        progress=not options.quiet,
    )
    _log.info("wrote %d frames: panbench fit ... --data.masks %s", len(manifest.frames), options.out)
    return 0
