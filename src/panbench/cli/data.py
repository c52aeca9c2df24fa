"""The verb ``panbench data``: picks its own verb. One file each: ``data_<verb>.py`` with ``add_to`` and ``run``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

# verb: (module, what it does). A module has ``add_to(parser)``, which states its options and imports nothing heavy, and
# ``run(options) -> exit status``.
VERBS: dict[str, tuple[str, str]] = {
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
    parser = argparse.ArgumentParser(prog="panbench data", description="Make, read and check data.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, text) in VERBS.items():
        options = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(module).add_to(options)
    args = parser.parse_args(list(argv))
    return int(importlib.import_module(VERBS[args.verb][0]).run(args))
