"""``panbench masks import``: masks that another program made."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

_log = logging.getLogger(__name__)
_FORMS = ("panopticrecon", "panoptic-lifting", "coco")


def add_to(parser: argparse.ArgumentParser) -> None:
    """State the options."""
    parser.add_argument(
        "form",
        choices=_FORMS,
        help="panopticrecon: semantic_image/ and instance_image/; panoptic-lifting: m2f_semantics/ and m2f_instance/; "
        "coco: panoptic JSON with PNG images",
    )
    parser.add_argument("folder", type=Path, help="where the masks are; for coco also the JSON file itself")
    parser.add_argument("--scene", type=Path, required=True, help="the scene's folder")
    parser.add_argument("--out", required=True, metavar="NAME", help="mask set to make: masks_NAME in the scene")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help='JSON: {"their class, by name or id": "class of the scene" or null}',
    )
    parser.add_argument(
        "--resize", action="store_true", help="stretch masks of another shape to that of the colour images (nearest)"
    )
    parser.add_argument("--own", action="store_true", help="the masks belong to one method, not to all of a comparison")
    parser.add_argument("--synthetic", action="store_true", help="the masks were made from ground truth")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> int:
    """Import the masks; returns the exit status.

    Raises:
        UserError: the masks or the scene cannot be read, or do not belong together.
    """
    from panbench.data.detect import find_scene
    from panbench.errors import UserError
    from panbench.masks.foreign import FORMS, read_class_map
    from panbench.masks.importing import import_masks

    folder: Path = options.folder.expanduser()
    if not folder.is_dir() and not (options.form == "coco" and folder.is_file()):
        raise UserError(f"{folder}: no such folder: give that of the masks")
    done = import_masks(
        find_scene(options.scene),
        folder,
        FORMS[options.form](folder),
        options.out,
        class_map=read_class_map(options.classes.expanduser()) if options.classes else None,
        resize=options.resize,
        labels="own" if options.own else "shared",
        synthetic=options.synthetic,
        progress=not options.quiet,
    )
    if done.unused:
        _log.info("%d masks are of no frame that is used, %s among them", len(done.unused), done.unused[0])
    if done.bare_train:
        _log.warning(
            "%d training frames have no masks, %s among them: data.masks refuses such a set",
            len(done.bare_train),
            done.bare_train[0],
        )
    elif done.bare:
        _log.info("%d test frames have no masks, %s among them", len(done.bare), done.bare[0])
    _log.info("wrote %d frames: panbench fit ... --data.masks %s", len(done.manifest.frames), options.out)
    return 0
