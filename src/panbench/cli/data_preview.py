"""``panbench data preview``: look at a scene."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from panbench.errors import UserError

_log = logging.getLogger(__name__)


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="a scene's folder, or a folder of scenes")
    parser.add_argument("--scene", help="name of the scene, if there are several")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png", help="picture to write")
    parser.add_argument("--frames", type=int, default=8, help="how many frames to show (default: 8)")


def run(options: argparse.Namespace) -> int:
    """Draw the scene.

    Raises:
        UserError: with cause and remedy, if the scene cannot be opened.
    """
    from panbench.data.check import to_show
    from panbench.data.detect import LAYOUTS, find_scenes
    from panbench.data.preview import write_preview

    if options.frames < 1:
        raise UserError(f"--frames is {options.frames}: show at least one")
    scenes = find_scenes(options.root, options.scene)
    if len(scenes) > 1:
        names = ", ".join(s.folder.name for s in scenes[:8]) + (", ..." if len(scenes) > 8 else "")
        raise UserError(f"{options.root}: holds {len(scenes)} scenes: choose one with --scene ({names})")
    (found,) = scenes
    shown = to_show(found)
    title = (
        f"{found.folder.name}: {LAYOUTS[found.layout][0]}, {len(shown.source)} frames, {len(shown.train)} for training"
    )
    _log.info("wrote %s", write_preview(shown, options.out, title, rows=options.frames))
    return 0
