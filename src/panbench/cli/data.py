"""The verb ``panbench data``: picks its own verb. One file each: ``data_<verb>.py`` with ``add_to`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence

from panbench.cli.verbs import run_verb

# verb: (module, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "make-room": ("panbench.cli.data_make_room", "make a procedural furnished room in ScanNet-V2's layout"),
}


def main(argv: Sequence[str]) -> int:
    """Run ``panbench data ...``; returns the exit status.

    Raises:
        UserError: with cause and remedy, from the verb.
    """
    return run_verb("data", "Make, read and check data.", VERBS, argv)
