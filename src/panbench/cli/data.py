"""The verb ``panbench data``: picks its own verb. One file each: ``data_<verb>.py`` with ``add_to`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence

from panbench.cli.verbs import run_verb

# verb: (module, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "import": ("panbench.cli.data_import", "convert a nerfstudio, COLMAP, RGB-D or Panoptic Lifting capture"),
    "make-room": ("panbench.cli.data_make_room", "make a procedural furnished room in ScanNet-V2's layout"),
    "info": ("panbench.cli.data_info", "tell what there is of a scene: frames, sizes, depth, classes, masks"),
    "check": ("panbench.cli.data_check", "find every fault of a scene, with file and remedy"),
    "preview": ("panbench.cli.data_preview", "draw frames of a scene and the room from above"),
}


def main(argv: Sequence[str]) -> int:
    """Run ``panbench data ...``; returns the exit status.

    Raises:
        UserError: with cause and remedy, from the verb.
    """
    return run_verb("data", "Make, read and check data.", VERBS, argv)
