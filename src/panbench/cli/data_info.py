"""``panbench data info``: what there is of a scene."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument("root", type=Path, metavar="ROOT", help="a scene's folder, or a folder of scenes")
    parser.add_argument("--scene", help="only the scene of this name")
    parser.add_argument("--json", action="store_true", help="as JSON: one object for a scene, a list for several")


def run(options: argparse.Namespace) -> int:
    """Print what there is.

    Raises:
        UserError: there is no scene.
    """
    from panbench.cli.console import stdout
    from panbench.data.detect import find_scenes
    from panbench.data.info import scene_info

    scenes = find_scenes(options.root, options.scene)
    if options.json:
        found = [scene_info(scene).to_dict() for scene in scenes]
        text = json.dumps(found[0] if len(found) == 1 else found, indent=1)
        stdout().print(text, soft_wrap=True, markup=False, highlight=False)
        return 0
    for scene in scenes:
        stdout().print("\n".join(scene_info(scene).lines()), soft_wrap=True, markup=False, highlight=False)
    return 0
